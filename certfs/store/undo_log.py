"""What a server records for the next one: what counts though the files of the store do not show it (I3, I10).

Two files for each bundle in one directory, each replaced atomically before that happens which it is about:

- ``*.sources``: what those sources were before that are being overwritten in place;
- ``*.swap``: that there is a D.bk, and where that is a swap, what the bundle was at its beginning and until when that
  counts. A D.bk that is made while no server runs is known by having no record.

They survive a SIGKILL. They are not synced: they do not outlive the machine, nor are they meant to.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from certfs.core.bundle import BundleSpec
from certfs.core.certificate import SourceContent, parse_source
from certfs.safe_open import private, read_own

log = logging.getLogger("certfs")

_Kind = Literal["sources", "swap"]
_DRAFT = ".new"
_LARGEST = 256 << 20
"""Bytes of a record: more than a swap of 100,000 certificates has."""


@dataclass(frozen=True, slots=True)
class RecordedSwap:
    """A swap: it ``ends`` at that time (time.monotonic, the same for all processes), and what the sources were."""

    ends: float
    was: Mapping[bytes, SourceContent]


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the last server recorded: ``sources`` by name, and each D.bk with its swap, None where it is of none."""

    sources: dict[BundleSpec, dict[bytes, SourceContent]] = field(default_factory=dict)
    swaps: dict[BundleSpec, RecordedSwap | None] = field(default_factory=dict)

    def specs(self) -> set[BundleSpec]:
        """Return the bundles that something was recorded for."""
        return {*self.sources, *self.swaps}


class UndoLog:
    """The records of one server, in ``directory``; None for one that records nothing, as all do until `rewritten`.

    A record that cannot be written is logged: only a death is worse for that.
    """

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._is_open = False
        self._files: set[str] = set()
        self._fails = False

    def recover(self) -> Recovered | None:
        """Return what the last server recorded; None where there has been none."""
        return recover(self._directory) if self._directory else None

    @contextmanager
    def rewritten(self) -> Iterator[None]:
        """Be the one server that records: what is recorded in the context is there, and nothing of what was."""
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
        self._files = set()
        yield
        for name in before - self._files:
            with suppress(OSError):
                os.unlink(f"{self._directory}/{name}")

    def close(self) -> None:
        """Leave it to another server to record."""
        self._is_open = False

    def record_sources(self, bundle: BundleSpec, sources: Mapping[bytes, SourceContent]) -> None:
        """Record what these sources of a bundle were, and no others; those that contribute nothing need no record."""
        contents = {
            os.fsdecode(name): _text(content)
            for name, content in sources.items()
            if content.certificates
        }
        if contents:
            self._write(bundle, "sources", {"sources": contents})
        else:
            self._remove(bundle, "sources")

    def record_swap(self, bundle: BundleSpec, swap: RecordedSwap | None) -> None:
        """Record that there is a D.bk, and the swap that it is of."""
        record: dict[str, Any] = {"ends": swap.ends if swap else None}
        if swap:
            record["was"] = {os.fsdecode(name): _text(was) for name, was in swap.was.items()}
        self._write(bundle, "swap", record)

    def forget_swap(self, bundle: BundleSpec) -> None:
        """Remove the record: the D.bk is gone."""
        self._remove(bundle, "swap")

    def _write(self, bundle: BundleSpec, kind: _Kind, record: dict[str, Any]) -> None:
        if not self._is_open:
            return
        name = _file_name(bundle, kind)
        paths = {"from": _path(bundle.source), "bundle": _path(bundle.bundle)}
        try:
            with open(
                f"{self._directory}/{name}{_DRAFT}", "wb", buffering=0, opener=private
            ) as stream:
                stream.write(json.dumps({**paths, **record}).encode())
            os.rename(f"{self._directory}/{name}{_DRAFT}", f"{self._directory}/{name}")
            self._files.add(name)
            self._fails = False
        except OSError as e:
            self._report(e)

    def _remove(self, bundle: BundleSpec, kind: _Kind) -> None:
        name = _file_name(bundle, kind)
        if self._is_open and name in self._files:
            self._files.discard(name)
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


def recover(directory: str) -> Recovered | None:
    """Return what a server recorded in ``directory``; None where there has been none."""
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return None
    recovered = Recovered()
    for name in names:
        # What is being replaced at a death was to be about something that has not happened.
        if name.endswith(_DRAFT):
            continue
        try:
            _take(recovered, json.loads(read_own(f"{directory}/{name}", _LARGEST)))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
            log.warning("%s/%s: not a record of certfs: %s", directory, name, e)
    return recovered


def _take(recovered: Recovered, record: dict[str, Any]) -> None:
    spec = BundleSpec(_components(record["from"]), _components(record["bundle"]))
    if "sources" in record:
        recovered.sources[spec] = _contents(record["sources"])
    elif record["ends"] is None:
        recovered.swaps[spec] = None
    else:
        recovered.swaps[spec] = RecordedSwap(record["ends"], _contents(record["was"]))


def _contents(texts: dict[str, str]) -> dict[bytes, SourceContent]:
    return {os.fsencode(name): parse_source(text.encode()) for name, text in texts.items()}


def _file_name(bundle: BundleSpec, kind: _Kind) -> str:
    """Return a name for the file of a bundle, whose own path may be of any bytes and any length."""
    key = b"/".join(bundle.source) + b"\0" + b"/".join(bundle.bundle)
    return f"{hashlib.sha256(key).hexdigest()[:32]}.{kind}"


def _text(content: SourceContent) -> str:
    return b"".join(certificate.pem for certificate in content.certificates).decode("ascii")


def _path(components: tuple[bytes, ...]) -> str:
    return os.fsdecode(b"/".join(components))


def _components(path: str) -> tuple[bytes, ...]:
    return tuple(os.fsencode(part) for part in path.split("/"))
