"""What a server leaves to the next one: what counts though the files of the store do not show it (I3, I10).

- of a source that is being overwritten in place, what it was before;
- of a source directory that is being swapped, what its bundle was at the beginning, and until when that counts;
- which D.bk there are at all, so that one that is made while nobody serves is known to be new.

Owns the form of these notes: a directory with one small file for each, so that a change costs what it touches. They are
written before that happens which they are about, and survive a SIGKILL. They are not synced: they do not outlive the
machine, nor are they meant to.
"""

import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from certfs.core.bundle import BundleSpec
from certfs.core.certificate import SourceContent, parse_source
from certfs.safe_open import private, read_own

log = logging.getLogger("certfs")

_END = b"\n"
_NOTE_BYTES = 1 << 30
"""A note on a swap holds all certificates of a directory."""
_Key = tuple[BundleSpec, bytes | None]
"""A note on a source, or with None on the D.bk of a bundle."""


@dataclass(frozen=True, slots=True)
class Swap:
    """A swap: it ``ends`` at that time (time.monotonic, the same for all processes), and what the sources were."""

    ends: float
    was: Mapping[bytes, SourceContent]


@dataclass(frozen=True, slots=True)
class Estate:
    """What the last server left. ``backups`` are the D.bk that it knew of, with the swap where it was one."""

    kept: dict[BundleSpec, dict[bytes, SourceContent]] = field(default_factory=dict)
    backups: dict[BundleSpec, Swap | None] = field(default_factory=dict)

    def specs(self) -> set[BundleSpec]:
        """Return the bundles that something was left for."""
        return {*self.kept, *self.backups}


class Bequest:
    """The notes of one server, in ``directory``; None for one that leaves nothing. Until `renewed` it leaves nothing.

    A note that cannot be written is logged: only a death is worse for that.
    """

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._is_open = False
        self._files: dict[_Key, str] = {}
        self._count = 0
        self._fails = False

    def read(self) -> Estate | None:
        """Return what the last server left; None where there has been none."""
        return read_estate(self._directory) if self._directory else None

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Be the one server that leaves something: what is left in the context, and nothing of what was there."""
        if self._directory is None:
            yield
            return
        before: set[str] = set()
        try:
            with suppress(FileExistsError):
                os.mkdir(self._directory, 0o700)
            before = set(os.listdir(self._directory))
        except OSError as e:
            self._report(e)
        self._is_open = True
        self._files = {}
        self._count = max(map(_number, before), default=0)
        yield
        for name in before - set(self._files.values()):
            with suppress(OSError):
                os.unlink(f"{self._directory}/{name}")

    def close(self) -> None:
        """Leave it to another server to leave something."""
        self._is_open = False

    def leave_source(self, bundle: BundleSpec, name: bytes, content: SourceContent) -> None:
        """Leave what a source contributes, if it does contribute."""
        if content.certificates:
            note = {"source": os.fsdecode(name), "certificates": _text(content)}
            self._write((bundle, name), note)

    def drop_source(self, bundle: BundleSpec, name: bytes) -> None:
        """Take that back: the file itself says it again."""
        self._drop((bundle, name))

    def leave_backup(self, bundle: BundleSpec, swap: Swap | None) -> None:
        """Leave word of a D.bk, and of the swap that it is of."""
        note: dict[str, Any] = {"ends": swap.ends if swap else None}
        if swap:
            note["was"] = [(os.fsdecode(name), _text(was)) for name, was in swap.was.items()]
        self._write((bundle, None), note)

    def drop_backup(self, bundle: BundleSpec) -> None:
        """Take that back: it is gone."""
        self._drop((bundle, None))

    def _write(self, key: _Key, note: dict[str, Any]) -> None:
        if not self._is_open:
            return
        bundle, _ = key
        paths = {"from": _path(bundle.source), "bundle": _path(bundle.bundle)}
        before = self._files.get(key)
        self._count += 1
        name = f"{self._count}-{os.getpid()}"
        try:
            with open(f"{self._directory}/{name}", "xb", buffering=0, opener=private) as stream:
                stream.write(json.dumps({**paths, **note}).encode() + _END)
            self._files[key] = name
            self._fails = False
        except OSError as e:
            self._report(e)
            return
        if before:
            # Only now: whoever reads both takes the one that was written last.
            with suppress(OSError):
                os.unlink(f"{self._directory}/{before}")

    def _drop(self, key: _Key) -> None:
        name = self._files.pop(key, None) if self._is_open else None
        if name:
            with suppress(OSError):
                os.unlink(f"{self._directory}/{name}")

    def _report(self, error: OSError) -> None:
        if not self._fails:
            log.warning(
                "%s: %s: a source that is being overwritten when this server dies will be left out",
                self._directory,
                error.strerror,
            )
        self._fails = True


def read_estate(directory: str) -> Estate | None:
    """Return what a server left in ``directory``; None where there has been none."""
    try:
        names = os.listdir(directory)
    except OSError:
        return None
    estate = Estate()
    for name in sorted(names, key=_number):
        try:
            content = read_own(f"{directory}/{name}", _NOTE_BYTES)
            # Without its end it was being written at the death: what it was to be about has not happened.
            if content.endswith(_END):
                _take(estate, json.loads(content))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            log.warning("%s/%s: not a note of certfs: %s", directory, name, e)
    return estate


def _number(name: str) -> int:
    """Return the number that a note's file begins with: the later, the higher."""
    number, _, _ = name.partition("-")
    return int(number) if number.isdecimal() else 0


def _take(estate: Estate, note: dict[str, Any]) -> None:
    spec = BundleSpec(_components(note["from"]), _components(note["bundle"]))
    if "source" in note:
        content = parse_source(note["certificates"].encode())
        estate.kept.setdefault(spec, {})[os.fsencode(note["source"])] = content
    elif note["ends"] is None:
        estate.backups[spec] = None
    else:
        was = {os.fsencode(name): parse_source(text.encode()) for name, text in note["was"]}
        estate.backups[spec] = Swap(note["ends"], was)


def _text(content: SourceContent) -> str:
    return b"".join(certificate.pem for certificate in content.certificates).decode("ascii")


def _path(components: tuple[bytes, ...]) -> str:
    return os.fsdecode(b"/".join(components))


def _components(path: str) -> tuple[bytes, ...]:
    return tuple(os.fsencode(part) for part in path.split("/"))
