"""What the words after -o mean, for mount(8), fstab(5) and `certfs mount`."""

from __future__ import annotations

import pytest

from certfs.cli.mount_options import (
    MS_DIRSYNC,
    MS_LAZYTIME,
    MS_NOATIME,
    MS_NODEV,
    MS_NODIRATIME,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_STRICTATIME,
    MS_SYNCHRONOUS,
    MountOptionError,
    MountOptions,
    parse,
)

USERS = MS_NOSUID | MS_NODEV | MS_NOEXEC


@pytest.mark.parametrize(
    "text,given,cleared",
    [
        ("", 0, 0),
        ("rw", 0, MS_RDONLY),
        ("ro", MS_RDONLY, 0),
        ("ro,rw", 0, MS_RDONLY),
        ("rw,ro", MS_RDONLY, 0),
        (
            "noatime,nosuid,nodev,noexec,nodiratime",
            MS_NOATIME | USERS | MS_NODIRATIME,
            MS_STRICTATIME,
        ),
        ("sync,dirsync,lazytime", MS_SYNCHRONOUS | MS_DIRSYNC | MS_LAZYTIME, 0),
        ("sync,async,lazytime,nolazytime", 0, MS_SYNCHRONOUS | MS_LAZYTIME),
        ("noatime,strictatime", MS_STRICTATIME, MS_NOATIME),
        ("strictatime,noatime", MS_NOATIME, MS_STRICTATIME),
        ("strictatime,nodiratime,relatime", MS_NODIRATIME, MS_STRICTATIME | MS_NOATIME),
        ("noatime,atime,strictatime,nostrictatime", 0, MS_STRICTATIME | MS_NOATIME),
        ("user", USERS, 0),
        ("users,exec", MS_NOSUID | MS_NODEV, MS_NOEXEC),
        ("exec,user=ada", USERS, 0),
    ],
)
def test_flags_of_the_mount(text: str, given: int, cleared: int) -> None:
    """The last word counts, and `user` implies three of them, as in mount(8)."""
    assert parse(text) == MountOptions(set_flags=given, clear_flags=cleared)


@pytest.mark.parametrize(
    "text",
    [
        "defaults,_netdev,nofail,auto,noauto",
        "x-systemd.automount,x-systemd.requires=/srv,X-mount.mkdir=0755,x-gvfs-hide",
        "comment=of mine,norelatime,nomand,fsname=a,subtype=b,default_permissions,nonempty",
        "user_id=0,group_id=0,default_permissions",
        ",,",
    ],
)
def test_what_is_for_others_is_ignored(text: str) -> None:
    """Options of mount(8), systemd and libfuse ask nothing of certfs."""
    assert parse(text) == MountOptions()


def test_options_of_certfs() -> None:
    """They are those of the command line; a comma and a backslash in a value are escaped."""
    assert parse(r"config=/a\,b\\c,allow_other,log=/l=1,remount") == MountOptions(
        config="/a,b\\c", log="/l=1", allow_other=True, remount=True
    )
    assert parse("allow_other,noallow_other").allow_other is False


@pytest.mark.parametrize(
    "text", ["config", "config=", "log=", "ROO", "ro=1", "allow_root", "size=1"]
)
def test_what_is_not_known_is_refused(text: str) -> None:
    """A word that is misspelt must not be a mount without it; unless mount(8) says -s."""
    with pytest.raises(MountOptionError, match=text.partition("=")[0]):
        parse(text)


def test_sloppy_ignores_what_is_not_known() -> None:
    """With -s of mount(8) only what is understood counts."""
    assert parse("ro,size=1,allow_root", sloppy=True) == MountOptions(set_flags=MS_RDONLY)
