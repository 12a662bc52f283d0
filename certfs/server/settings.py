"""Which configuration a server serves with.

Owns the choice: the file is read when somebody asks for a server (a mount, a restart) and can be told what is wrong
with it. A server that follows a death serves with what the last one had, whatever became of the file (promise I14).
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import msgspec

from certfs.config import Config, parse_config, read_config
from certfs.errors import ConfigError
from certfs.protocol.codec import parsed
from certfs.protocol.notify_spec import HOST_CERTIFICATE, NotifySpec, Wishes
from certfs.protocol.specs import ServerSpec
from certfs.safe_open import read_own, replace_own
from certfs.store.bundle import LiveBundle

log = logging.getLogger("certfs")

_REMEMBERED_BYTES = 16 << 20
"""A configuration file is smaller, also as JSON."""


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration, the ``file`` that it is of (None without one), and what that file held."""

    config: Config
    file: str | None
    content: bytes

    @classmethod
    def of(cls, spec: ServerSpec, file: str | None, content: bytes) -> Self:
        """Check ``content``; ConfigError names file and key."""
        host = spec.mount.mode == "dom0"
        return cls(parse_config(file or "defaults", content, host=host), file, content)

    @classmethod
    def choose(cls, spec: ServerSpec) -> Self:
        """Return what the server with ``spec`` is to serve with; ConfigError names file and key."""
        last = None if spec.asked else cls._recall(spec)
        if last is not None:
            return last
        file = spec.mount.config_in_use
        return cls.of(spec, file, read_config(file))

    @classmethod
    def _recall(cls, spec: ServerSpec) -> Self | None:
        path = spec.mount.settings_file
        try:
            raw = parsed(read_own(path, _REMEMBERED_BYTES))
            return cls.of(spec, raw["file"], os.fsencode(raw["content"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as e:
            log.warning("%s: %s: the configuration is read anew", path, e)
            return None

    def leave_wishes(self, path: str, bundles: Iterable[LiveBundle], host_sha256: str) -> None:
        """Write down for the supervisor who is to be told of changes of what there is now (promise I21).

        That are the ``bundles``, and the host's certificate by the SHA-256 of its file, empty without one.
        """
        paths = tuple(os.fsdecode(b"/".join(spec.bundle)) for spec in self.config.bundles)
        told = [NotifySpec(**msgspec.structs.asdict(table)) for table in self.config.notify]
        copies = [
            NotifySpec(copy=copy, bundles=(bundle,), delay=0, max_delay=0, min_interval=0)
            for bundle, copy in self.config.copies
        ]
        try:
            baseline = {**_hashes(bundles), HOST_CERTIFICATE: host_sha256} if told else {}
            Wishes(bundles=paths, notify=(*told, *copies), baseline=baseline).write(path)
        except OSError as e:
            log.warning("%s: %s: no reader is told of changes", path, e.strerror)

    def remember(self, path: str) -> None:
        """Leave them to the next server."""
        raw = {"file": self.file, "content": os.fsdecode(self.content)}
        try:
            replace_own(path, json.dumps(raw).encode())
        except OSError as e:
            log.warning("%s: %s: a server after this one's death reads anew", path, e.strerror)


def _hashes(bundles: Iterable[LiveBundle]) -> dict[str, str]:
    hashes = {}
    for bundle in bundles:
        content = bundle.generation.view.read(0, bundle.generation.size)
        sha256 = hashlib.sha256(content).hexdigest() if content else ""
        hashes[os.fsdecode(b"/".join(bundle.spec.bundle))] = sha256
    return hashes
