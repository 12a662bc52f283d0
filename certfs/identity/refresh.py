"""A new pool certificate for this host, with both trusted while clients and servers change over.

Owns the order of the steps, which is the platform's (``ocaml/xapi/cert_refresh.ml`` in
xapi-project/xen-api), and telling from the files alone which of them are done:

1. ``xapi-pool-tls.new``: the new key and certificate, beside those in use
2. ``certs-pool/UUID.new.pem``: its public part; from here on clients trust both
3. the other hosts of the pool get UUID.new.pem: not done here, and a pool with other hosts goes no
   further before the caller says that they have it
4. ``xapi-pool-tls.pem`` becomes ``.bak``, ``.new`` becomes ``xapi-pool-tls.pem``
5. stunnel reloads: not done here
6. ``UUID.pem`` becomes ``.bak``, ``UUID.new.pem`` becomes ``UUID.pem``: the old one goes, unless a
   running stunnel still presents it

Unlike the platform's, each switch is one rename over the old file, after a copy of that file to
``.bak``: there is no moment without it. :func:`begin` does 1 to 4 and :func:`finish` 6; each takes
up the work wherever it was interrupted.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certfs.core.bundle import is_source_name
from certfs.identity.bundles import update_bundles_of
from certfs.identity.errors import NotDistributedError, NotInUseError, StillPresentedError
from certfs.identity.generate import generate_pool_certificate
from certfs.identity.hostpem import HostPem, parse_certificates, parse_host_pem, public_pem
from certfs.identity.paths import (
    POOL_PEM,
    POOL_PEM_BACKUP,
    POOL_PEM_NEW,
    PUBLIC_MODE,
    SOURCE_DIRECTORY_MODE,
    HostPaths,
    command,
    exclusive,
    file_errors,
    host_directory,
    names_of,
    read_file,
    read_with_status,
)
from certfs.identity.presented import Presented, presented
from certfs.identity.privatekey import is_pair
from certfs.identity.replace import write_host_pem
from certfs.store.atomic import write_atomic

_NEW_SUFFIX = ".new"
_RELOAD_SECONDS = 5.0
"""How long a stunnel that was told to reload may go on presenting the old certificate."""
_POLL_SECONDS = 0.2
REFRESH = "host-refresh-server-certificate"


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
    without ``.pem``; ``changed`` tells whether the command did anything; ``warnings`` are sentences.
    """

    stage: Stage
    certificate: x509.Certificate | None
    others: tuple[str, ...]
    changed: bool
    warnings: tuple[str, ...] = ()


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
        names = [name for name in names_of(paths.certs_pool) if is_source_name(os.fsencode(name))]
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
    # A .new that was never published is left of a refresh that came to nothing, perhaps long
    # ago: it is not taken up but made anew.
    if _leaf(paths.xensource / os.fsdecode(POOL_PEM_NEW)) == published:
        return Stage.PREPARED
    in_use = _leaf(paths.pool_pem)
    return Stage.SWITCHED if in_use == published else Stage.IDLE


def begin(paths: HostPaths, *, host_uuid: str, distributed: bool = False) -> RefreshReport:
    """Bring a new pool certificate into use, beside the old one that stays trusted.

    Takes up a refresh that was interrupted; does nothing if the new one is in use already. In a
    pool with other hosts it raises ``NotDistributedError`` when the new one is trusted here, and
    goes on where it is called again with ``distributed``: the other hosts have it.
    """
    with _opened(paths, host_uuid) as host:
        found = read_stage(paths, host_uuid=host_uuid)
        if found is Stage.SWITCHED:
            return report(paths, host_uuid=host_uuid)
        if found is Stage.IDLE:
            # Whatever the caller says that the others have, it is not the one that is made now.
            distributed = False
            pem = generate_pool_certificate(host_uuid)
            with file_errors(paths.xensource / os.fsdecode(POOL_PEM_NEW)):
                write_host_pem(host.xensource, POOL_PEM_NEW, pem, like=POOL_PEM)
            with file_errors(paths.certs_pool / os.fsdecode(host.public_new)):
                public = public_pem(pem.leaf)
                write_atomic(host.certs_pool, host.public_new, public, mode=PUBLIC_MODE)
        update_bundles_of(paths, paths.certs_pool)
        if not distributed:
            refuse_undistributed(paths, report(paths, host_uuid=host_uuid), host_uuid=host_uuid)
        with file_errors(paths.pool_pem):
            _switch(host.xensource, POOL_PEM_NEW, POOL_PEM, backup=POOL_PEM_BACKUP, bits=0o770)
        return report(paths, host_uuid=host_uuid, changed=True)


def refuse_undistributed(paths: HostPaths, found: RefreshReport, *, host_uuid: str) -> None:
    """Raise ``NotDistributedError`` if there are hosts that would refuse the new certificate."""
    if not found.others:
        return
    new = paths.certs_pool / f"{host_uuid}{_NEW_SUFFIX}.pem"
    raise NotDistributedError(
        f"{new} may not be on {_hosts(found.others)}, which would refuse this host",
        advice="copy it under the same name to certs-pool there, "
        f"then run {command(paths, f'{REFRESH} --distributed')}",
    )


def _hosts(names: tuple[str, ...]) -> str:
    return f"the host {names[0]}" if len(names) == 1 else f"{len(names)} other hosts in certs-pool"


def finish(paths: HostPaths, *, host_uuid: str) -> RefreshReport:
    """Take the old certificate out of trust; does nothing if there is none to take out.

    Raises ``NotInUseError`` if the new one is not in use yet (``NotDistributedError`` if others lack it),
    ``StillPresentedError`` if a running
    stunnel presents the old one even after it had time to reload.
    """
    warnings: tuple[str, ...] = ()
    with _opened(paths, host_uuid) as host:
        found = read_stage(paths, host_uuid=host_uuid)
        if found is Stage.PREPARED:
            refuse_undistributed(paths, report(paths, host_uuid=host_uuid), host_uuid=host_uuid)
            raise NotInUseError(
                f"{paths.pool_pem} is still the old certificate",
                advice=f"run {command(paths, REFRESH)} without --finish first",
            )
        if found is Stage.SWITCHED:
            warnings = _check_presented(host)
            with file_errors(paths.certs_pool / os.fsdecode(host.public)):
                _switch(
                    host.certs_pool,
                    host.public_new,
                    host.public,
                    backup=host.public_backup,
                    bits=0o777,
                )
        update_bundles_of(paths, paths.certs_pool)
        done = report(paths, host_uuid=host_uuid, changed=found is Stage.SWITCHED)
        return replace(done, warnings=warnings)


def _check_presented(host: _Host) -> tuple[str, ...]:
    """Return warnings about what cannot be known; ``StillPresentedError`` while the old one is presented."""
    new = read_public(host.paths.certs_pool / os.fsdecode(host.public_new))
    old = read_public(host.paths.certs_pool / os.fsdecode(host.public))
    deadline = time.monotonic() + _RELOAD_SECONDS
    while True:
        servers = presented()
        behind = [one for one in servers if old is not None and _is(one, old)]
        if not behind or old == new:
            return _uncertain(servers, new)
        if time.monotonic() > deadline:
            raise StillPresentedError(
                f"the stunnel of process {behind[0].process} still presents the old certificate at {behind[0].address}",
                advice="make it reload (systemctl reload-or-restart stunnel@xapi, or kill -HUP "
                f"{behind[0].process}), then run {command(host.paths, f'{REFRESH} --finish')}",
            )
        time.sleep(_POLL_SECONDS)


def _uncertain(servers: tuple[Presented, ...], new: x509.Certificate | None) -> tuple[str, ...]:
    unknown = sorted({one.process for one in servers if not one.address})
    hidden = [
        f"what the stunnel of process {process} presents could not be looked at: run this as root"
        for process in unknown
    ]
    if new is None or any(_is(one, new) for one in servers):
        return tuple(hidden)
    return (*hidden, "no stunnel that runs here presents the new certificate")


def _is(server: Presented, certificate: x509.Certificate) -> bool:
    return server.certificate == certificate.public_bytes(Encoding.DER)


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
        data, status = read_with_status(target, within=directory)
        write_atomic(
            directory,
            backup,
            data,
            mode=status.st_mode & bits,
            owner=(status.st_uid, status.st_gid),
        )
    os.rename(new, target, src_dir_fd=directory, dst_dir_fd=directory)
    os.fsync(directory)
