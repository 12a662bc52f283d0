"""Which configuration a server serves with.

Owns the choice: the file is read when somebody asks for a server (a mount, a restart) and can be told what is wrong
with it. A server that follows a death serves with what the last one had, whatever became of the file (promise I14).
"""

import json
import logging
import os
from dataclasses import dataclass
from typing import Self

from certfs.config import Config, parse_config, read_config
from certfs.errors import ConfigError
from certfs.protocol.link import Job

log = logging.getLogger("certfs")


@dataclass(frozen=True, slots=True)
class Settings:
    """A configuration, the ``file`` that it is of (None without one), and what that file held."""

    config: Config
    file: str | None
    content: bytes

    @classmethod
    def of(cls, job: Job, file: str | None, content: bytes) -> Self:
        """Check ``content``; ConfigError names file and key."""
        host = job.mount.mode == "dom0"
        return cls(parse_config(file or "defaults", content, host=host), file, content)

    @classmethod
    def choose(cls, job: Job) -> Self:
        """Return what the server of ``job`` is to serve with; ConfigError names file and key."""
        last = None if job.asked else cls._recall(job)
        if last is not None:
            return last
        file = job.mount.config_in_use
        return cls.of(job, file, read_config(file))

    @classmethod
    def _recall(cls, job: Job) -> Self | None:
        path = job.mount.settings_file
        try:
            with open(path, "rb") as stream:
                raw = json.load(stream)
            return cls.of(job, raw["file"], os.fsencode(raw["content"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ConfigError) as e:
            log.warning("%s: %s: the configuration is read anew", path, e)
            return None

    def remember(self, path: str) -> None:
        """Leave them to the next server."""
        raw = {"file": self.file, "content": os.fsdecode(self.content)}
        try:
            with open(f"{path}.new", "w", encoding="ascii") as stream:
                json.dump(raw, stream)
            os.rename(f"{path}.new", path)
        except OSError as e:
            log.warning("%s: %s: a server after this one's death reads anew", path, e.strerror)
