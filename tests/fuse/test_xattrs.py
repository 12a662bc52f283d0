"""I19: extended attributes that the kernel leaves to the file system are not passed on with root's rights."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import cast

import pyfuse3
import pytest

from certfs.fuse import xattrs
from tests.fuse.filesystem import CTX, Filesystem, fails
from tests.support import mounts

ACL = b"system.posix_acl_access"


@dataclass(frozen=True, slots=True)
class Request:
    """What the kernel says of a caller whose process is gone."""

    uid: int
    gid: int
    pid: int = 0
    umask: int = 0


USER = cast("pyfuse3.RequestContext", Request(20_001, 20_001))


def access_acl(reader: int) -> bytes:
    """Give an access control list by which one more user may read, as the kernel takes it (linux/posix_acl_xattr.h)."""
    nobody = 0xFFFFFFFF
    entries = ((1, 6, nobody), (2, 4, reader), (4, 0, nobody), (16, 4, nobody), (32, 0, nobody))
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


@pytest.mark.parametrize(
    "name",
    [
        b"system.nfs4_acl",
        b"system.cifs_acl",
        b"system.cifs_ntsd",
        b"system.dos_attrib",
        b"system.anything",
        b"system.",
        b"system",
        b"smb3.acl",
        b"btrfs.compression",
        b"os2.x",
        b"user",
        b".x",
        b"x",
    ],
)
@pytest.mark.parametrize("ctx", [CTX, USER], ids=["root", "user"])
async def test_what_the_kernel_leaves_to_the_file_system_is_refused(
    fs: Filesystem, name: bytes, ctx: pyfuse3.RequestContext
) -> None:
    """For everybody: EOPNOTSUPP, as where the file system has no such attributes."""
    (fs.path / "other" / "x").touch()
    number = await fs.number("other/x")
    for answer in (
        fs.operations.getxattr(number, name, ctx),
        fs.operations.setxattr(number, name, b"1", ctx),
        fs.operations.removexattr(number, name, ctx),
    ):
        with fails(errno.EOPNOTSUPP):
            await answer


@pytest.mark.parametrize("name", [b"trusted.x", b"security.x", b"security.capability"])
async def test_only_root_changes_trusted_and_security_attributes(
    fs: Filesystem, name: bytes
) -> None:
    """The kernel checks that as well; nothing hangs on it."""
    (fs.path / "other" / "x").touch(mode=0o666)
    number = await fs.number("other/x")
    for answer in (
        fs.operations.setxattr(number, name, b"1", USER),
        fs.operations.removexattr(number, name, USER),
    ):
        with fails(errno.EPERM):
            await answer


async def test_trusted_attributes_are_root_s_to_see(fs: Filesystem) -> None:
    """A user is neither told the value nor that there is one."""
    mounts.need_root()
    path = fs.path / "other" / "x"
    path.touch()
    try:
        os.setxattr(path, "trusted.x", b"1")
    except OSError:
        pytest.skip("the file system of the test directory has no trusted attributes")
    number = await fs.number("other/x")
    assert await fs.operations.listxattr(number, CTX) == [b"trusted.x"]
    assert await fs.operations.getxattr(number, b"trusted.x", CTX) == b"1"
    assert await fs.operations.listxattr(number, USER) == []
    with fails(errno.ENODATA):
        await fs.operations.getxattr(number, b"trusted.x", USER)


@pytest.fixture
def owned(fs: Filesystem) -> str:
    """Give a file that belongs to the user, on a file system with access control lists."""
    mounts.need_root()
    path = fs.path / "other" / "x"
    path.touch(mode=0o600)
    os.chown(path, USER.uid, USER.gid)
    try:
        os.setxattr(path, ACL, access_acl(20_002))
    except OSError:
        pytest.skip("the file system of the test directory has no access control lists")
    os.removexattr(path, ACL)
    return "other/x"


async def test_an_access_control_list_is_for_the_owner_to_change(
    fs: Filesystem, owned: str
) -> None:
    """Its owner sets and removes it; another user, who may read it, does neither."""
    stranger = cast("pyfuse3.RequestContext", Request(20_003, 20_003))
    number = await fs.number(owned)
    with fails(errno.EPERM):
        await fs.operations.setxattr(number, ACL, access_acl(20_003), stranger)
    await fs.operations.setxattr(number, ACL, access_acl(20_002), USER)
    number = await fs.number(owned)
    with fails(errno.EPERM):
        await fs.operations.removexattr(number, ACL, stranger)
    assert await fs.operations.getxattr(number, ACL, stranger) == access_acl(20_002)
    await fs.operations.removexattr(number, ACL, USER)


def test_names_that_are_not_supported_are_not_listed() -> None:
    """A program that copies all attributes it is told of must not fail at one that it cannot read."""
    names = [b"user.x", b"system.nfs4_acl", ACL, b"security.selinux", b"trusted.x", b"com.apple.x"]
    assert [name for name in names if xattrs.is_listed(name, USER)] == [
        b"user.x",
        ACL,
        b"security.selinux",
    ]
