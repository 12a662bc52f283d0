"""What interrupted operations leave behind: ``D.bk``, ``UUID.new.pem``, unfinished temporary files.

Owns telling a leftover from something that is still going on, and whether it can go without a loss.
"""

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from certfs.identity.finding import Finding, Severity
from certfs.identity.paths import (
    CERTS,
    CERTS_POOL,
    HostPaths,
    command,
    names_if_any,
    open_directory,
    read_file,
)
from certfs.identity.remedies import RemoveLeftover, Rename
from certfs.store.atomic import is_temporary
from certfs.store.backing import status_at
from certfs.store.cached import names_in

_SWAPPED = (CERTS, CERTS_POOL, b"crls")
"""The directories that the platform replaces through ``D.bk``."""
_SETTLED_SECONDS = 60.0
"""An operation of the platform takes seconds; what is older is not going on any more."""
_NEW = ".new.pem"


def find_leftovers(paths: HostPaths, *, host_uuid: str | None) -> Iterator[Finding]:
    """Yield a finding for each thing that an interrupted operation left, own refreshes aside."""
    for swapped in _SWAPPED:
        yield from _leftover_backup(paths, paths.stunnel / os.fsdecode(swapped))
    for name in names_if_any(paths.certs_pool):
        if name.endswith(_NEW) and name.removesuffix(_NEW) != host_uuid:
            yield Finding(
                Severity.WARNING,
                "OTHER_HOST_REFRESH_UNFINISHED",
                paths.certs_pool / name,
                "is the second certificate of another host, whose refresh is not finished",
                "on that host: certfs host-refresh-server-certificate --finish",
            )
    for directory in (paths.xensource, paths.stunnel, paths.certs, paths.certs_pool):
        for name in names_if_any(directory):
            path = directory / name
            if is_temporary(os.fsencode(name)) and _is_settled(path):
                yield Finding(
                    Severity.WARNING,
                    "LEFTOVER_TEMPORARY_FILE",
                    path,
                    "was being written by a command that did not end",
                    command(paths, "repair"),
                    RemoveLeftover(path),
                )


def _leftover_backup(paths: HostPaths, directory: Path) -> Iterator[Finding]:
    backup = directory.with_name(f"{directory.name}.bk")
    if not backup.is_dir() or not _is_settled(backup):
        return
    if not directory.exists():
        yield Finding(
            Severity.CRITICAL,
            "LEFTOVER_BACKUP_DIRECTORY",
            backup,
            f"is what {directory.name} was when its replacement was interrupted",
            command(paths, "repair"),
            Rename(backup, directory),
        )
    elif _holds_nothing_else(backup, directory):
        yield Finding(
            Severity.WARNING,
            "LEFTOVER_BACKUP_DIRECTORY",
            backup,
            f"is left of an interrupted replacement; all of it is in {directory.name} too",
            command(paths, "repair"),
            RemoveLeftover(backup),
        )
    else:
        yield Finding(
            Severity.WARNING,
            "LEFTOVER_BACKUP_DIRECTORY",
            backup,
            f"is left of an interrupted replacement and has files that {directory.name} has not",
            f"copy what shall be trusted from it to {directory}, then remove it",
        )


def _holds_nothing_else(backup: Path, directory: Path) -> bool:
    """Tell whether every file in ``backup`` is the same in ``directory``.

    The platform's Merge copies the directory *into* the backup, as ``D.bk/D``.
    """
    with (
        contextlib.suppress(OSError),
        open_directory(backup) as before,
        open_directory(directory) as now,
    ):
        names = names_in(before)
        copied = os.fsencode(directory.name)
        status = status_at(before, copied)
        if status is not None and stat.S_ISDIR(status.st_mode):
            names.remove(copied)
            with open_directory(copied, within=before) as inside:
                if not _are_in(inside, names_in(inside), now):
                    return False
        return _are_in(before, names, now)
    return False


def _are_in(directory: int, names: list[bytes], other: int) -> bool:
    """Whether the other directory has each of these files with the same content; none is larger than is read."""
    contents = ((_content(directory, name), _content(other, name)) for name in names)
    return all(one is not None and one == another for one, another in contents)


def _content(directory: int, name: bytes) -> tuple[str, bytes] | None:
    """Return where a link leads, or what a file holds; None for anything else, also for what cannot be read."""
    with contextlib.suppress(OSError):
        return "link", os.readlink(name, dir_fd=directory)
    with contextlib.suppress(OSError):
        return "file", read_file(name, within=directory)
    return None


def _is_settled(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return time.time() - path.lstat().st_ctime > _SETTLED_SECONDS
    return False
