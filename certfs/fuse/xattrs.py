"""Which extended attributes a caller may see and change (xattr(7)).

Owns what the kernel does not decide. It checks ``user.*`` against the file's mode and ``trusted.*`` against
CAP_SYS_ADMIN; ``system.*`` and every namespace that it does not know it leaves to the file system, which would trust
root: NFSv4 and CIFS access control lists are such attributes. POSIX ACLs are passed on, for the owner to change.
"""

import enum
import errno
import os
import stat

import pyfuse3

from certfs.fuse.base import error
from certfs.fuse.caller import is_member, is_privileged, keeps_set_id, sees_trusted
from certfs.store.backing import fd_path

_ACCESS_ACL = b"system.posix_acl_access"
_DEFAULT_ACL = b"system.posix_acl_default"


class Namespace(enum.Enum):
    """What kind of attribute a name is."""

    ACL = enum.auto()
    USER = enum.auto()
    SECURITY = enum.auto()
    TRUSTED = enum.auto()
    UNSUPPORTED = enum.auto()


def namespace_of(name: bytes) -> Namespace:
    """Return the namespace of an attribute's name."""
    if name in {_ACCESS_ACL, _DEFAULT_ACL}:
        return Namespace.ACL
    prefix, dot, _ = name.partition(b".")
    return {
        b"user.": Namespace.USER,
        b"security.": Namespace.SECURITY,
        b"trusted.": Namespace.TRUSTED,
    }.get(prefix + dot, Namespace.UNSUPPORTED)


def check_read(name: bytes, ctx: pyfuse3.RequestContext) -> None:
    """Refuse to read an attribute that is not for this caller: OSError with the errno that a plain directory gives."""
    namespace = namespace_of(name)
    if namespace is Namespace.UNSUPPORTED:
        raise error(errno.EOPNOTSUPP)
    if namespace is Namespace.TRUSTED and ctx.uid != 0:
        raise error(errno.ENODATA)


def check_change(name: bytes, ctx: pyfuse3.RequestContext) -> None:
    """Refuse to set or remove an attribute by its name alone; ``set_value`` and ``remove`` check the file's owner."""
    namespace = namespace_of(name)
    if namespace is Namespace.UNSUPPORTED:
        raise error(errno.EOPNOTSUPP)
    if namespace in {Namespace.TRUSTED, Namespace.SECURITY} and ctx.uid != 0:
        raise error(errno.EPERM)


def is_listed(name: bytes, ctx: pyfuse3.RequestContext) -> bool:
    """Whether a caller is told that there is an attribute of this name."""
    namespace = namespace_of(name)
    return namespace is not Namespace.UNSUPPORTED and (
        namespace is not Namespace.TRUSTED or sees_trusted(ctx)
    )


def set_value(fd: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
    """Set an attribute of the inode of ``fd`` for the caller; blocks."""
    _check_owner(fd, name, ctx)
    os.setxattr(fd_path(fd), name, value)
    if name == _ACCESS_ACL:
        _drop_set_group_id(fd, ctx)


def remove(fd: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
    """Remove an attribute of the inode of ``fd`` for the caller; blocks."""
    _check_owner(fd, name, ctx)
    os.removexattr(fd_path(fd), name)


def _check_owner(fd: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
    """EPERM if a caller who neither owns the file nor has CAP_FOWNER changes its access control list (acl(5))."""
    if namespace_of(name) is not Namespace.ACL or ctx.uid == 0:
        return
    if os.stat(fd).st_uid != ctx.uid and not is_privileged(ctx):
        raise error(errno.EPERM)


def _drop_set_group_id(fd: int, ctx: pyfuse3.RequestContext) -> None:
    """Take set-group-id away when a caller outside the group sets an access ACL (posix_acl_update_mode())."""
    status = os.stat(fd)
    if status.st_mode & stat.S_ISGID and not (is_member(ctx, status.st_gid) or keeps_set_id(ctx)):
        os.chmod(fd_path(fd), stat.S_IMODE(status.st_mode) & ~stat.S_ISGID)
