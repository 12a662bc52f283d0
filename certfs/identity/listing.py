"""What is installed on a host: its own certificates, its pool's, and the CAs.

Owns finding the files and telling what each is for, under the platform's names for the types of a
certificate. A file that cannot be read is listed with the reason. Must not judge what it finds.
"""

import contextlib
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from certfs.core.bundle import is_editors_lock, is_source_name
from certfs.core.certificate import Severity, parse_source
from certfs.core.text import printable
from certfs.errors import StoreError
from certfs.identity.describe import Description, describe, describe_loaded
from certfs.identity.ensure import HOST_UUID, STATE, common_name, parse_uuid
from certfs.identity.hostpem import HostPemDefect, parse_host_pem
from certfs.identity.paths import (
    SERVER_PEM,
    HostPaths,
    file_errors,
    names_if_any,
    names_of,
    read_file,
)
from certfs.identity.subject import read_inventory


class Kind(StrEnum):
    """What a certificate is installed for."""

    HOST = "host"
    """This host shows it to everybody: ``xapi-ssl.pem``."""
    HOST_INTERNAL = "host_internal"
    """This host shows it to its pool: ``xapi-pool-tls.pem``."""
    CA = "ca"
    """An admin installed it: ``certs``."""
    POOL = "pool"
    """A host of the pool shows it: ``certs-pool``."""
    PINNED = "pinned"
    """A server's, trusted as it is: ``trusted-certs/pinned-PURPOSE``."""


class Access(StrEnum):
    """Whether a file could be looked at."""

    READ = "read"
    MISSING = "missing"
    DENIED = "denied"
    """Not by this user: nothing can be said of it."""


@dataclass(frozen=True, slots=True)
class Installed:
    """A file with its certificates; ``defect`` says what is wrong with it, or is empty.

    ``purpose`` is what it is trusted for, empty for everything.
    """

    kind: Kind
    path: Path
    certificates: tuple[Description, ...]
    defect: str = ""
    access: Access = Access.READ
    purpose: str = ""


def installed_by_purpose(paths: HostPaths) -> Iterator[Installed]:
    """Yield every file of the newer layout, in which certificates are trusted for a purpose."""
    for name in names_if_any(paths.trusted_certs):
        kind, _, purpose = name.partition("-")
        if kind in {"ca", "pinned"} and purpose and not name.endswith(".bk"):
            for file in _sources(Kind(kind), paths.trusted_certs / name):
                yield replace(file, purpose=purpose)


def installed(paths: HostPaths) -> Iterator[Installed]:
    """Yield every file with certificates that the host has, and its own two in any case."""
    yield _host_file(Kind.HOST, paths.xensource / os.fsdecode(SERVER_PEM))
    yield _host_file(Kind.HOST_INTERNAL, paths.pool_pem)
    yield from _sources(Kind.CA, paths.certs)
    yield from _sources(Kind.POOL, paths.certs_pool)


def find_host_uuid(paths: HostPaths) -> str | None:
    """Return the UUID of the host that these directories belong to, None if nothing tells it.

    A store keeps it; a host of the platform has it in its inventory; else it is the CN of the pool
    certificate.
    """
    known = _kept_uuid(paths.root) if paths.root else parse_uuid(read_inventory().host_uuid)
    if known is None:
        with contextlib.suppress(OSError):
            pem = parse_host_pem(read_file(paths.pool_pem))
            known = None if isinstance(pem, HostPemDefect) else parse_uuid(common_name(pem))
    return known


def need_host_uuid(paths: HostPaths) -> str:
    """Return the host's UUID, or raise ``StoreError`` for people."""
    known = find_host_uuid(paths)
    if known is None:
        # A user who may not look cannot conclude that there is nothing.
        with file_errors(paths.pool_pem), contextlib.suppress(FileNotFoundError):
            read_file(paths.pool_pem)
        raise StoreError(
            f"{paths.xensource}: nothing here tells the UUID of this host",
            advice=how_to_tell(paths),
        )
    return known


def how_to_tell(paths: HostPaths) -> str:
    """Return what makes the UUID of a host known of which nothing tells it."""
    if paths.root is not None:
        store = shlex.quote(printable(str(paths.root)))
        return f"certfs mount --store {store} MOUNTPOINT gives it one"
    return "put INSTALLATION_UUID='UUID' into /etc/xensource-inventory (uuidgen makes one)"


def _kept_uuid(root: Path) -> str | None:
    with contextlib.suppress(OSError):
        kept = read_file(root / os.fsdecode(STATE) / os.fsdecode(HOST_UUID))
        return parse_uuid(kept.decode("utf-8", "replace").strip())
    return None


def _host_file(kind: Kind, path: Path) -> Installed:
    try:
        pem = parse_host_pem(read_file(path))
    except FileNotFoundError:
        return Installed(kind, path, (), "is missing", Access.MISSING)
    except OSError as error:
        return _unread(kind, path, error)
    if isinstance(pem, HostPemDefect):
        line = f" (line {pem.line})" if pem.line else ""
        return Installed(kind, path, (), f"{pem.reason}{line}")
    return Installed(kind, path, tuple(map(describe_loaded, pem.certificates)))


def _unread(kind: Kind, path: Path, error: OSError) -> Installed:
    access = Access.DENIED if isinstance(error, PermissionError) else Access.READ
    return Installed(kind, path, (), f"cannot be read: {error.strerror}", access)


def _sources(kind: Kind, directory: Path) -> Iterator[Installed]:
    try:
        names = [name for name in names_of(directory) if is_source_name(os.fsencode(name))]
    except (FileNotFoundError, NotADirectoryError):
        return  # has a finding of its own
    except OSError as error:
        yield _unread(kind, directory, error)
        return
    for name in names:
        path = directory / name
        if is_editors_lock(os.fsencode(name)) and path.is_symlink():
            continue
        try:
            data = read_file(path)
        except FileNotFoundError:
            continue
        except OSError as error:
            yield _unread(kind, path, error)
            continue
        content = parse_source(data)
        defects = [remark.reason for remark in content.remarks if remark.severity > Severity.NOTE]
        certificates = tuple(describe(certificate.der) for certificate in content.certificates)
        yield Installed(kind, path, certificates, defects[0] if defects else "")
