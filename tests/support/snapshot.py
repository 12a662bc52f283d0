"""What is in a directory tree, as a value that can be compared.

Owns the comparison of final trees: names, types, modes, owners, contents, link
targets, hard links and extended attributes. Times and inode numbers only
where a test asks for them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One name in a tree and what it stands for."""

    kind: str
    mode: int
    uid: int
    gid: int
    links: int
    size: int
    content: str
    """SHA-256 of a file, target of a symlink, number of a device."""
    attributes: tuple[tuple[str, bytes], ...]
    same_as: bytes
    """The first name of the same inode: how hard links are compared."""
    modified: int | None
    inode: int | None


Snapshot = dict[bytes, Entry]


def take(
    root: bytes, *, times: bool = False, inodes: bool = False, attributes: bool = True
) -> Snapshot:
    """Describe everything below `root`, which is not described itself.

    `times` adds the modification times in nanoseconds, `inodes` the numbers.
    """
    found: Snapshot = {}
    first_names: dict[int, bytes] = {}
    pending = [b""]
    while pending:
        directory = pending.pop()
        for name in sorted(os.listdir(os.path.join(root, directory) if directory else root)):
            relative = os.path.join(directory, name) if directory else name
            path = os.path.join(root, relative)
            status = os.lstat(path)
            is_directory = stat.S_ISDIR(status.st_mode)
            if is_directory:
                pending.append(relative)
            found[relative] = Entry(
                kind=_KINDS[stat.S_IFMT(status.st_mode)],
                mode=stat.S_IMODE(status.st_mode),
                uid=status.st_uid,
                gid=status.st_gid,
                links=status.st_nlink,
                size=0 if is_directory else status.st_size,
                content=_content(path, status),
                attributes=_attributes(path) if attributes else (),
                same_as=first_names.setdefault(status.st_ino, relative),
                modified=status.st_mtime_ns if times else None,
                inode=status.st_ino if inodes else None,
            )
    return found


def differences(
    expected: Snapshot, seen: Snapshot, *, ignore: Callable[[bytes], bool] = lambda _: False
) -> list[str]:
    """Say in one line for each name what is different; empty when nothing is."""
    lines = []
    for name in sorted(expected.keys() | seen.keys()):
        if ignore(name):
            continue
        left, right = expected.get(name), seen.get(name)
        if left is None or right is None:
            lines.append(f"{name!r}: {'missing' if right is None else 'not expected'}")
        elif left != right:
            changed = [
                f"{field} {getattr(left, field)!r} is {getattr(right, field)!r}"
                for field in Entry.__slots__
                if getattr(left, field) != getattr(right, field)
            ]
            lines.append(f"{name!r}: {', '.join(changed)}")
    return lines


def _content(path: bytes, status: os.stat_result) -> str:
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if stat.S_ISLNK(status.st_mode):
        return os.fsdecode(os.readlink(path))
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return str(status.st_rdev)
    return ""


def _attributes(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = os.listxattr(path, follow_symlinks=False)
    return tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names))
