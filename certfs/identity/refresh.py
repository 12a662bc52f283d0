"""A new pool certificate for this host, with both trusted while clients and servers change over.

Owns the order of the steps, which is the platform's (``ocaml/xapi/cert_refresh.ml`` in
xapi-project/xen-api), and telling from the files alone which of them are done:

1. ``xapi-pool-tls.new``: the new key and certificate, beside those in use
2. ``certs-pool/UUID.new.pem``: its public part; from here on clients trust both
3. *here is the place for distributing UUID.new.pem to the other hosts of the pool*
4. ``xapi-pool-tls.pem`` becomes ``.bak``, ``.new`` becomes ``xapi-pool-tls.pem``
5. stunnel reloads: not done here
6. ``UUID.pem`` becomes ``.bak``, ``UUID.new.pem`` becomes ``UUID.pem``: the old one goes

Unlike the platform's, each switch is one rename over the old file, after a copy of that file to
``.bak``: there is no moment without it. :func:`begin` does 1 to 4 and :func:`finish` 6; each takes
up the work wherever it was interrupted.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from cryptography import x509

from certfs.core.bundle import is_source_name
from certfs.errors import StoreError
from certfs.identity.bundles import update_plain_bundle
from certfs.identity.generate import generate_pool_certificate
from certfs.identity.hostpem import HostPem, parse_certificates, parse_host_pem, public_pem
from certfs.identity.paths import (
    CERTS_POOL,
    POOL_PEM,
    POOL_PEM_BACKUP,
    POOL_PEM_NEW,
    PUBLIC_MODE,
    SOURCE_DIRECTORY_MODE,
    HostPaths,
    exclusive,
    file_errors,
    host_directory,
    read_file,
)
from certfs.identity.privatekey import is_pair
from certfs.identity.replace import write_host_pem
from certfs.store.atomic import write_atomic

_NEW_SUFFIX = ".new"


class Stage(StrEnum):
    """How far a refresh has come."""

    IDLE = "idle"
    """None is under way."""
    PREPARED = "prepared"
    """The new key is there and its certificate trusted, and the old one is in use."""
    SWITCHED = "switched"
    """The new key is in use, and the old certificate is still trusted."""


@dataclass(frozen=True, slots=True)
class RefreshReport:
    """Where a refresh stands after a command.

    ``certificate`` is the host's newest; ``others`` are the other hosts in ``certs-pool``, by name
    without ``.pem``; ``changed`` tells whether the command did anything.
    """

    stage: Stage
    certificate: x509.Certificate | None
    others: tuple[str, ...]
    changed: bool


@dataclass(frozen=True, slots=True)
class _Host:
    """A host's open directories, and its UUID, while a command is at them."""

    paths: HostPaths
    uuid: str
    xensource: int
    certs_pool: int

    @property
    def public(self) -> bytes:
        return f"{self.uuid}.pem".encode()

    @property
    def public_new(self) -> bytes:
        return f"{self.uuid}{_NEW_SUFFIX}.pem".encode()

    @property
    def public_backup(self) -> bytes:
        return f"{self.uuid}.bak".encode()


def report(paths: HostPaths, *, host_uuid: str, changed: bool = False) -> RefreshReport:
    """Tell how far a refresh has come; ``changed`` is passed on."""
    hosts: set[str] = set()
    with file_errors(paths.certs_pool), contextlib.suppress(FileNotFoundError):
        names = [name for name in os.listdir(paths.certs_pool) if is_source_name(os.fsencode(name))]
        hosts = {name.removesuffix(".pem").removesuffix(_NEW_SUFFIX) for name in names}
    found = read_stage(paths, host_uuid=host_uuid)
    newest = POOL_PEM_NEW if found is Stage.PREPARED else POOL_PEM
    certificate = _leaf(paths.xensource / os.fsdecode(newest))
    return RefreshReport(found, certificate, tuple(sorted(hosts - {host_uuid})), changed)


def read_stage(paths: HostPaths, *, host_uuid: str) -> Stage:
    """Tell from the files alone how far a refresh has come."""
    published = read_public(paths.certs_pool / f"{host_uuid}{_NEW_SUFFIX}.pem")
    if published is None:
        return Stage.IDLE
    # A .new that nobody was told of is what is left of a refresh that came to nothing, perhaps long
    # ago: it is not taken up but made anew.
    if _leaf(paths.xensource / os.fsdecode(POOL_PEM_NEW)) == published:
        return Stage.PREPARED
    in_use = _leaf(paths.xensource / os.fsdecode(POOL_PEM))
    return Stage.SWITCHED if in_use == published else Stage.IDLE


def begin(paths: HostPaths, *, host_uuid: str) -> RefreshReport:
    """Bring a new pool certificate into use, beside the old one that stays trusted.

    Takes up a refresh that was interrupted; does nothing if the new one is in use already.
    """
    with _opened(paths, host_uuid) as host:
        found = read_stage(paths, host_uuid=host_uuid)
        if found is Stage.SWITCHED:
            return report(paths, host_uuid=host_uuid)
        if found is Stage.IDLE:
            pem = generate_pool_certificate(host_uuid)
            with file_errors(paths.xensource / os.fsdecode(POOL_PEM_NEW)):
                write_host_pem(host.xensource, POOL_PEM_NEW, pem, like=POOL_PEM)
            with file_errors(paths.certs_pool / os.fsdecode(host.public_new)):
                public = public_pem(pem.leaf)
                write_atomic(host.certs_pool, host.public_new, public, mode=PUBLIC_MODE)
        update_plain_bundle(paths, CERTS_POOL)
        with file_errors(paths.xensource / os.fsdecode(POOL_PEM)):
            _switch(host.xensource, POOL_PEM_NEW, POOL_PEM, backup=POOL_PEM_BACKUP, bits=0o770)
        return report(paths, host_uuid=host_uuid, changed=True)


def finish(paths: HostPaths, *, host_uuid: str) -> RefreshReport:
    """Take the old certificate out of trust; does nothing if there is none to take out.

    Raises ``StoreError`` if the new one is not in use yet.
    """
    with _opened(paths, host_uuid) as host:
        found = read_stage(paths, host_uuid=host_uuid)
        if found is Stage.PREPARED:
            raise StoreError(
                f"{paths.xensource / os.fsdecode(POOL_PEM)} is still the old certificate",
                advice="run host-refresh-server-certificate without --finish first",
            )
        if found is Stage.SWITCHED:
            with file_errors(paths.certs_pool / os.fsdecode(host.public)):
                _switch(
                    host.certs_pool,
                    host.public_new,
                    host.public,
                    backup=host.public_backup,
                    bits=0o777,
                )
        update_plain_bundle(paths, CERTS_POOL)
        return report(paths, host_uuid=host_uuid, changed=found is Stage.SWITCHED)


@contextlib.contextmanager
def _opened(paths: HostPaths, host_uuid: str) -> Iterator[_Host]:
    with (
        exclusive(paths.xensource) as xensource,
        host_directory(paths.certs_pool, create_mode=SOURCE_DIRECTORY_MODE) as certs_pool,
    ):
        yield _Host(paths, host_uuid, xensource, certs_pool)


def read_pair(path: Path) -> HostPem | None:
    """Return a host PEM whose key and certificate belong together, None if the file is none."""
    try:
        pem = parse_host_pem(read_file(path))
    except OSError:
        return None
    return pem if isinstance(pem, HostPem) and is_pair(pem) else None


def read_public(path: Path) -> x509.Certificate | None:
    """Return the first certificate of a file, None if it is missing or holds none."""
    try:
        certificates = parse_certificates(read_file(path))
    except OSError:
        return None
    return certificates[0] if isinstance(certificates, tuple) and certificates else None


def _leaf(path: Path) -> x509.Certificate | None:
    pem = read_pair(path)
    return pem.leaf if pem is not None else None


def _switch(directory: int, new: bytes, target: bytes, *, backup: bytes, bits: int) -> None:
    """Put ``new`` in the place of ``target`` in one step; what was there stays as ``backup``.

    ``bits`` are the permission bits that the backup may have of those of ``target``.
    """
    with contextlib.suppress(FileNotFoundError):
        status = os.stat(target, dir_fd=directory)
        write_atomic(
            directory,
            backup,
            read_file(target, within=directory),
            mode=status.st_mode & bits,
            owner=(status.st_uid, status.st_gid),
        )
    os.rename(new, target, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)
