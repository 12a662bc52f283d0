"""The options of mount(8) and fstab(5), as far as they mean something to a certfs mount.

Owns what each word means; values in, values out. Options that are for mount(8) or systemd alone never reach the kernel.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_SYNCHRONOUS: Final = 16
MS_DIRSYNC: Final = 128
MS_NOATIME: Final = 1024
MS_NODIRATIME: Final = 2048
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25

_FLAGS: Final = {
    "ro": (MS_RDONLY, 0),
    "rw": (0, MS_RDONLY),
    "nosuid": (MS_NOSUID, 0),
    "suid": (0, MS_NOSUID),
    "nodev": (MS_NODEV, 0),
    "dev": (0, MS_NODEV),
    "noexec": (MS_NOEXEC, 0),
    "exec": (0, MS_NOEXEC),
    "sync": (MS_SYNCHRONOUS, 0),
    "async": (0, MS_SYNCHRONOUS),
    "dirsync": (MS_DIRSYNC, 0),
    "lazytime": (MS_LAZYTIME, 0),
    "nolazytime": (0, MS_LAZYTIME),
    "noatime": (MS_NOATIME, MS_STRICTATIME),
    "atime": (0, MS_NOATIME),
    "strictatime": (MS_STRICTATIME, MS_NOATIME),
    "nostrictatime": (0, MS_STRICTATIME),
    "relatime": (0, MS_NOATIME | MS_STRICTATIME),
    "nodiratime": (MS_NODIRATIME, 0),
    "diratime": (0, MS_NODIRATIME),
}
"""What each sets and what it clears; the last word counts (mount(8)). `relatime` is what a kernel does unasked."""
_USERS: Final = MS_NOSUID | MS_NODEV | MS_NOEXEC
"""What ``user`` and its like imply, unless a later word says otherwise."""
_IGNORED: Final = frozenset(
    (
        "_netdev", "auto", "bg", "default_permissions", "defaults", "fail", "fg", "nofail", "noauto",
        "nomand", "norelatime", "nouser", "silent", "loud", "nonempty",
    )
)  # fmt: skip
"""For mount(8), init or libfuse, or what a certfs mount does anyway."""
_IGNORED_PREFIXES: Final = (
    *("x-", "X-", "comment=", "fsname=", "subtype="),
    *("blksize=", "fd=", "group_id=", "max_read=", "rootmode=", "user_id="),
)
"""The second kind is what the mount table says, which mount(8) repeats for a remount."""
_VALUES: Final = ("config", "log")


class MountOptionError(ValueError):
    """An option that is not known or has no value; the message says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """What the words of ``-o`` ask for."""

    set_flags: int = 0
    """The flags of mount(2) that are to be there, whatever the store's file system has."""
    clear_flags: int = 0
    """Those that are explicitly not to be there; for ``remount``."""
    allow_other: bool | None = None
    """None: not said."""
    config: str | None = None
    log: str | None = None
    remount: bool = False


def parse(text: str, *, sloppy: bool = False) -> MountOptions:
    r"""Return what ``text`` asks for, options separated by commas; a comma in a value is written ``\,``.

    ``sloppy`` ignores what is not known (mount(8), -s). MountOptionError otherwise.
    """
    given = cleared = 0
    allow_other = None
    values: dict[str, str] = {}
    remount = False
    for word in _words(text):
        name, separator, value = word.partition("=")
        if word in _FLAGS:
            on, off = _FLAGS[word]
            given, cleared = given & ~off | on, cleared & ~on | off
        elif word in {"user", "users", "owner", "group"} or name == "user":
            given, cleared = given | _USERS, cleared & ~_USERS
        elif word in {"allow_other", "noallow_other"}:
            allow_other = word == "allow_other"
        elif word == "remount":
            remount = True
        elif name in _VALUES:
            if not separator or not value:
                raise MountOptionError(f"the option {name} needs a value: {name}=FILE")
            values[name] = value
        elif word in _IGNORED or word.startswith(_IGNORED_PREFIXES) or sloppy:
            continue
        else:
            raise MountOptionError(f"there is no mount option {word}")
    return MountOptions(
        set_flags=given,
        clear_flags=cleared,
        allow_other=allow_other,
        config=values.get("config"),
        log=values.get("log"),
        remount=remount,
    )


def _words(text: str) -> Iterator[str]:
    word = ""
    escaped = False
    for character in text:
        if escaped:
            word += character if character in ",\\" else f"\\{character}"
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == ",":
            if word:
                yield word
            word = ""
        else:
            word += character
    if escaped:
        word += "\\"
    if word:
        yield word
