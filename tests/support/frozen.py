"""A file system of its own: a disk that takes its time, or that is full."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.support import mounts


@contextlib.contextmanager
def loop_filesystem(place: Path, *, reserved: int = 5) -> Iterator[Path]:
    """Mount a small ext4 in a file, which can be frozen; so many percent of its blocks are reserved for root."""
    mounts.need_root()
    mounts.need_program("mkfs.ext4", "fsfreeze")
    image, directory = place / "image", place / "filesystem"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-m", str(reserved), image], check=True, timeout=60)
    directory.mkdir()
    command = ["mount", "-o", "loop", image, directory]
    if subprocess.run([*map(str, command)], check=False, timeout=60).returncode:
        mounts.missing("a loop device")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", directory], check=True, timeout=60)


@contextlib.contextmanager
def frozen(directory: Path) -> Iterator[None]:
    """Let every write to a filesystem wait."""
    subprocess.run(["fsfreeze", "-f", directory], check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "-u", directory], check=True, timeout=60)
