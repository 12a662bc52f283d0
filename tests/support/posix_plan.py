"""Random sequences of POSIX operations, a function of their seed alone.

Owns what is tried, how often, and with which names. The operations do not
depend on how earlier ones ended, so any part of a sequence can be replayed.
The names are few, so that they collide all the time. No link and no path ever
leads out of the directory: targets only descend, `..` only follows a name.
"""

from __future__ import annotations

import fcntl
import os
import random
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.peer import User
from tests.support.posix_calls import Op
from tests.support.syscalls import UTIME_NOW, UTIME_OMIT, Rename

SHARED_GROUP = 20_100
USERS = (
    User(uid=0, gid=0),
    User(uid=20_001, gid=20_001, groups=(SHARED_GROUP,)),
    User(uid=20_002, gid=20_002),
)
SLOTS = 3

_DIRECTORIES = (b"a", b"b", b"c")
_NAMES = (b"d", b"e", b"f")
_RARE_NAMES = (
    b"n" * 255,
    b"n" * 256,
    b"\xff\xfe\x80",
    b"new\nline",
    b" ",
    b"\xc3\xa4",
    b"x.pem",
)
_MODES = (0o644, 0o600, 0o666, 0o777, 0o755, 0o700, 0o000, 0o4755, 0o2755, 0o6777, 0o1777, 0o2770)
_OPEN_FLAGS = (os.O_CREAT, os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND)
_RARE_OPEN_FLAGS = (os.O_NOFOLLOW, os.O_DIRECTORY, os.O_DSYNC, os.O_NOATIME, os.O_PATH)
_TIMES = (0, 1, 1_000_000_000, 1_234_567_890, 2_147_483_647, 4_294_967_296, -1_000)
_NANOSECONDS = (0, 1, 123_456_789, 999_999_999, UTIME_NOW, UTIME_OMIT)
_ATTRIBUTES = (b"user.a", b"user.b", b"user." + b"x" * 200, b"user." + b"x" * 260, b"user.")
_RARE_ATTRIBUTES = (b"trusted.a", b"security.a", b"system.a", b"none", b"")


@dataclass(slots=True)
class Planner:
    """Makes operations from a seed, for the first `users` of USERS."""

    seed: int
    users: int = len(USERS)
    watch: float = 0.01
    """The share of operations that also observe which time stamps change."""
    default_acls: bool = False
    """Whether directories get default ACLs. The umask is 0 then: FUSE has no way to say that
    a default ACL replaces it, and the kernel applies it before a filesystem sees the mode."""
    random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311 - reproducible on purpose

    def plan(self, count: int) -> list[Op]:
        """Give the next `count` operations."""
        weights = list(_WEIGHTS.values())
        chosen = self.random.choices(list(_WEIGHTS), weights, k=count)
        begin = [Op(user, "umask", values=(self.umask(),)) for user in range(self.users)]
        return (begin + [self._operation(call) for call in chosen])[:count]

    def _operation(self, call: str) -> Op:
        user = self.random.randrange(self.users)
        paths, slots, values = _ARGUMENTS[call](self)
        watched = bool(paths) and self.random.random() < self.watch
        return Op(user, call, paths, slots, values, watched)

    # -- arguments ------------------------------------------------------------

    def name(self, *, last: bool) -> bytes:
        """Give one component of a path; what is not the last is mostly a directory."""
        chance = self.random.random()
        if chance < 0.03:
            return self.random.choice(_RARE_NAMES)
        directory = chance < (0.25 if last else 0.9)
        return self.random.choice(_DIRECTORIES if directory else _NAMES)

    def path(self) -> bytes:
        """Give a path of one to three names, with rare oddities."""
        names = self._descent(self.random.choice((1, 2, 2, 2, 3)))
        odd = self.random.random()
        if odd < 0.01:
            names.append(self.random.choice((b"", b".")))
        elif odd < 0.02:
            names.insert(self.random.randrange(1, len(names) + 1), b"..")
        elif odd < 0.023:
            names = [b"n" * 200] * 21
        elif odd < 0.03:
            names.insert(self.random.randrange(len(names)), b".")
        return b"/".join(names)

    def target(self) -> bytes:
        """Give the target of a symlink, which only ever descends."""
        if self.random.random() < 0.02:
            return self.random.choice((b"", b"t" * 4095, b"t" * 4096))
        return b"/".join(self._descent(self.random.choice((1, 1, 2))))

    def _descent(self, count: int) -> list[bytes]:
        return [self.name(last=number == count) for number in range(1, count + 1)]

    def slot(self) -> int:
        """Give the number of an open file."""
        return self.random.randrange(SLOTS)

    def mode(self) -> int:
        """Give permissions."""
        return self.random.choice(_MODES)

    def flag(self) -> int:
        """Give yes or no, mostly yes."""
        return int(self.random.random() < 0.7)

    def offset(self) -> int:
        """Give a place in a file, mostly small."""
        return self.random.choice((0, 0, 1, 100, 4095, 4096, 5000, 65_536, 131_073, 1_048_576))

    def size(self) -> int:
        """Give a size to truncate to, sometimes an impossible one."""
        return self.random.choice((0, 0, 1, 100, 4096, 10_000, 200_000, -1, 1 << 62))

    def content(self) -> bytes:
        """Give bytes to write."""
        length = self.random.choice((0, 1, 10, 100, 1000, 4096, 5000, 40_000))
        return self.random.randbytes(min(length, 64)) * (length // 64 + 1) if length else b""

    def owner(self) -> tuple[int, int]:
        """Give a uid and a gid, either of which may stay."""
        ids = [-1, *(user.uid for user in USERS)]
        groups = [-1, SHARED_GROUP, *(user.gid for user in USERS)]
        return self.random.choice(ids), self.random.choice(groups)

    def times(self) -> tuple[int, ...]:
        """Give two times as seconds and nanoseconds."""
        return tuple(
            self.random.choice(kind) for kind in (_TIMES, _NANOSECONDS, _TIMES, _NANOSECONDS)
        )

    def attribute(self) -> bytes:
        """Give the name of an extended attribute."""
        return self.random.choice(_ATTRIBUTES if self.random.random() < 0.9 else _RARE_ATTRIBUTES)

    def open_flags(self) -> int:
        """Give flags of open."""
        flags = self.random.choice((os.O_RDONLY, os.O_RDWR, os.O_RDWR, os.O_WRONLY))
        for flag in _OPEN_FLAGS:
            flags |= flag if self.random.random() < 0.3 else 0
        if self.random.random() < 0.1:
            flags |= self.random.choice(_RARE_OPEN_FLAGS)
        return flags

    def acl(self) -> bytes:
        """Give a POSIX ACL as the kernel takes it, sometimes an invalid one."""
        allowed = [self.random.randrange(8) for _ in range(5)]
        entries = [(1, allowed[0], -1), (2, allowed[1], USERS[1].uid), (4, allowed[2], -1)]
        entries += [(16, allowed[3], -1), (32, allowed[4], -1)]
        if self.random.random() < 0.1:
            entries.pop()
        return struct.pack("<I", 2) + b"".join(
            struct.pack("<HHI", tag, rights, who & 0xFFFFFFFF) for tag, rights, who in entries
        )

    def lock(self) -> tuple[int, ...]:
        """Give a byte range lock."""
        kind = self.random.choice((fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK))
        return (kind, self.random.choice((0, 5, 10)), self.random.choice((0, 1, 10)), self.flag())

    def special(self) -> tuple[int, int]:
        """Give the type and device of a special file; no device exists or does harm."""
        kind, device = self.random.choice(
            (
                (stat.S_IFIFO, 0),
                (stat.S_IFIFO, 0),
                (stat.S_IFSOCK, 0),
                (stat.S_IFREG, 0),
                (stat.S_IFCHR, os.makedev(1, 3)),
                (stat.S_IFBLK, os.makedev(240, 5)),
                (stat.S_IFDIR, 0),
            )
        )
        return kind | self.mode(), device

    def umask(self) -> int:
        """Give a mask for new files."""
        return 0 if self.default_acls else self.random.choice((0o022, 0o077, 0o000, 0o027))

    def acl_kind(self) -> bytes:
        """Give the attribute of an access control list."""
        kinds = [b"system.posix_acl_access"]
        if self.default_acls:
            kinds.append(b"system.posix_acl_default")
        return self.random.choice(kinds)

    def rename_flags(self) -> int:
        """Give flags of renameat2, mostly none."""
        rare = (Rename.NOREPLACE, Rename.EXCHANGE, Rename.EXCHANGE, Rename.WHITEOUT, 3, 8)
        return 0 if self.random.random() < 0.5 else int(self.random.choice(rare))


Arguments = tuple[tuple[bytes, ...], tuple[int, ...], tuple[int | bytes, ...]]

_ARGUMENTS: dict[str, Callable[[Planner], Arguments]] = {
    "mkdir": lambda p: ((p.path(),), (), (p.mode(),)),
    "rmdir": lambda p: ((p.path(),), (), ()),
    "unlink": lambda p: ((p.path(),), (), ()),
    "rename": lambda p: ((p.path(), p.path()), (), (p.rename_flags(),)),
    "link": lambda p: ((p.path(), p.path()), (), (1 - p.flag(),)),
    "symlink": lambda p: ((p.path(),), (), (p.target(),)),
    "readlink": lambda p: ((p.path(),), (), ()),
    "mknod": lambda p: ((p.path(),), (), p.special()),
    "chmod": lambda p: ((p.path(),), (), (p.mode(),)),
    "chown": lambda p: ((p.path(),), (), (*p.owner(), p.flag())),
    "utimens": lambda p: ((p.path(),), (), (*p.times(), p.flag())),
    "truncate": lambda p: ((p.path(),), (), (p.size(),)),
    "stat": lambda p: ((p.path(),), (), ()),
    "access": lambda p: ((p.path(),), (), (p.random.randrange(8), p.flag())),
    "readdir": lambda p: ((p.path(),), (), ()),
    "statvfs": lambda p: ((p.path(),), (), ()),
    "setxattr": lambda p: (
        (p.path(),),
        (),
        (p.attribute(), p.content(), p.random.choice((0, 0, 1, 2)), p.flag()),
    ),
    "getxattr": lambda p: ((p.path(),), (), (p.attribute(), p.flag())),
    "removexattr": lambda p: ((p.path(),), (), (p.attribute(), p.flag())),
    "listxattr": lambda p: ((p.path(),), (), (p.flag(),)),
    "umask": lambda p: ((), (), (p.umask(),)),
    "open": lambda p: ((p.path(),), (p.slot(),), (p.open_flags(), p.mode())),
    "close": lambda p: ((), (p.slot(),), ()),
    "dup": lambda p: ((), (p.slot(), p.slot()), ()),
    "pread": lambda p: ((), (p.slot(),), (p.random.choice((1, 100, 5000, 200_000)), p.offset())),
    "pwrite": lambda p: ((), (p.slot(),), (p.content(), p.offset())),
    "read": lambda p: ((), (p.slot(),), (p.random.choice((0, 1, 100, 5000)),)),
    "write": lambda p: ((), (p.slot(),), (p.content(),)),
    "seek": lambda p: ((), (p.slot(),), (p.offset(), p.random.randrange(3))),
    "ftruncate": lambda p: ((), (p.slot(),), (p.size(),)),
    "fsync": lambda p: ((), (p.slot(),), (p.flag(),)),
    "fstat": lambda p: ((), (p.slot(),), ()),
    "fchmod": lambda p: ((), (p.slot(),), (p.mode(),)),
    "fchown": lambda p: ((), (p.slot(),), p.owner()),
    "futimens": lambda p: ((), (p.slot(),), p.times()),
    "fxattr": lambda p: ((), (p.slot(),), (p.attribute(), p.content())),
    "fchdir_list": lambda p: ((), (p.slot(),), ()),
    "copy_range": lambda p: (
        (),
        (p.slot(), p.slot()),
        (p.random.choice((0, 10, 5000)), p.offset(), p.offset()),
    ),
    "map_write": lambda p: ((), (p.slot(),), (p.content(), p.offset())),
    "map_read": lambda p: ((), (p.slot(),), (1 - p.flag(),)),
    "flock": lambda p: (
        (),
        (p.slot(),),
        (p.random.choice((fcntl.LOCK_SH, fcntl.LOCK_EX, fcntl.LOCK_UN)),),
    ),
    "lock": lambda p: ((), (p.slot(),), p.lock()),
    "get_lock": lambda p: ((), (p.slot(),), p.lock()),
    "acl": lambda p: ((p.path(),), (), (p.acl_kind(), p.acl(), 0, 1)),
}

_WEIGHTS = dict.fromkeys(_ARGUMENTS, 4) | {
    "open": 40,
    "close": 2,
    "mkdir": 10,
    "rename": 12,
    "unlink": 5,
    "rmdir": 3,
    "link": 8,
    "symlink": 5,
    "pwrite": 8,
    "write": 8,
    "pread": 6,
    "read": 6,
    "fsync": 1,
    "mknod": 3,
    "statvfs": 1,
    "umask": 1,
    "acl": 2,
    "dup": 2,
    "chown": 6,
    "chmod": 6,
}
