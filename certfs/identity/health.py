"""What is wrong with a host's certificates and directories, in the ways that the field has seen.

Owns the judgement: each finding names a file, says what is wrong with it and what mends it. It
reads and never changes; what can be mended without a decision carries its remedy. Must not know how
a finding is shown, and leaves the content of source files to the bundle's own remarks.
"""

import contextlib
import os
import shlex
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from certfs.core.text import printable
from certfs.identity.backup import find_backup
from certfs.identity.bundles import bundle_places, is_stale
from certfs.identity.crls import judge_crls
from certfs.identity.expiry import Alert, alert
from certfs.identity.finding import Finding, Severity
from certfs.identity.leftovers import find_leftovers
from certfs.identity.listing import Access, Installed, Kind, find_host_uuid, how_to_tell, installed
from certfs.identity.paths import (
    POOL_PEM,
    POOL_PEM_BACKUP,
    POOL_PEM_NEW,
    SERVER_PEM,
    SOURCE_DIRECTORY_MODE,
    BundlePlace,
    HostPaths,
    command,
)
from certfs.identity.refresh import Stage, read_pair, read_public, read_stage
from certfs.identity.remedies import (
    Generate,
    MakeDirectory,
    PublishCertificate,
    Remedy,
    Rename,
    RestrictMode,
    UpdateBundle,
)

_KEY_FILES = (SERVER_PEM, POOL_PEM, POOL_PEM_NEW, POOL_PEM_BACKUP)
_OTHERS = stat.S_IRWXO | stat.S_IWGRP
_INSTALL = "host-server-certificate-install --certificate FILE --private-key FILE"


@dataclass(frozen=True, slots=True)
class _Host:
    """A host as the check found it; ``uuid`` is empty if nothing tells it."""

    paths: HostPaths
    uuid: str
    now: datetime
    files: tuple[Installed, ...]

    @property
    def pool_pem(self) -> Path:
        return self.paths.pool_pem

    @property
    def public(self) -> Path:
        return self.paths.certs_pool / f"{self.uuid}.pem"

    @property
    def public_new(self) -> Path:
        return self.paths.certs_pool / f"{self.uuid}.new.pem"

    @property
    def is_alone(self) -> bool:
        """Whether no other host's certificate is in the pool's."""
        own = {self.public.name, self.public_new.name}
        return all(file.path.name in own for file in self.files if file.kind is Kind.POOL)


def judge(paths: HostPaths, *, now: datetime | None = None) -> tuple[Finding, ...]:
    """Return what is wrong with the host, the worst first.

    ``now`` is the time that validity is judged by, the host's clock by default. Never raises for
    what it finds.
    """
    files = tuple(installed(paths))
    host = _Host(paths, find_host_uuid(paths) or "", now or datetime.now(UTC), files)
    findings = [
        *_directories(host),
        *_server_key(host),
        *_pool_key(host),
        *_own_certificate(host),
        *_other_certificates(host),
        *_bundles(host),
        *_not_looked_at(host),
        *_open_keys(host),
        *_validity(host),
        *judge_crls(paths, now=host.now),
        *find_leftovers(paths, host_uuid=host.uuid or None),
        *find_backup(paths),
    ]
    return tuple(sorted(findings, key=lambda finding: -finding.severity))


def _directories(host: _Host) -> Iterator[Finding]:
    for path in (host.paths.certs, host.paths.certs_pool):
        # With a D.bk beside it a replacement is going on, or was interrupted, which is found
        # elsewhere.
        if path.is_dir() or path.with_name(f"{path.name}.bk").is_dir():
            continue
        there = os.path.lexists(path)
        repair = command(host.paths, "repair")
        yield Finding(
            Severity.CRITICAL,
            "SOURCE_DIRECTORY_MISSING",
            path,
            "is not a directory" if there else "is missing",
            f"move it away, then {repair}" if there else repair,
            None if there else MakeDirectory(path, SOURCE_DIRECTORY_MODE),
        )


def _server_key(host: _Host) -> Iterator[Finding]:
    file = _find(host, Kind.HOST)
    if file.access is Access.MISSING:
        yield Finding(
            Severity.CRITICAL,
            "SERVER_KEY_MISSING",
            file.path,
            file.defect,
            command(host.paths, "repair"),
            Generate(file.path, None),
        )
    else:
        advice = (
            f"{command(host.paths, _INSTALL)}, or {command(host.paths, 'reset-server-certificate')}"
        )
        yield from _broken_pair(file, "SERVER", advice)


def _pool_key(host: _Host) -> Iterator[Finding]:
    file = _find(host, Kind.HOST_INTERNAL)
    if file.access is not Access.MISSING:
        advice = command(host.paths, "host-refresh-server-certificate")
        yield from _broken_pair(file, "POOL", advice)
        return
    remedy = _pool_key_remedy(host)
    yield Finding(
        Severity.CRITICAL,
        "POOL_KEY_MISSING",
        file.path,
        file.defect,
        _pool_key_mend(host, file, remedy),
        remedy,
    )


def _pool_key_mend(host: _Host, file: Installed, remedy: Remedy | None) -> str:
    repair = command(host.paths, "repair")
    if remedy is not None:
        return repair
    if not host.uuid:
        return f"{how_to_tell(host.paths)}, then {repair}"
    generate = f"certfs gencert {shlex.quote(printable(str(file.path)))} xapi:pool"
    return f"{generate}, then {repair}, then copy {host.public} to certs-pool of every host of the pool"


def _pool_key_remedy(host: _Host) -> Remedy | None:
    trusted = [read_public(path) for path in (host.public_new, host.public)]
    for name in (POOL_PEM_NEW, POOL_PEM_BACKUP):
        copy = host.paths.xensource / os.fsdecode(name)
        pem = read_pair(copy)
        if pem is not None and pem.leaf in trusted:
            return Rename(copy, host.pool_pem)
    # A new one would not be trusted by the other hosts until they have it.
    return Generate(host.pool_pem, host.uuid) if host.uuid and host.is_alone else None


def _broken_pair(file: Installed, which: str, advice: str) -> Iterator[Finding]:
    if file.access is Access.DENIED:
        return
    if file.defect:
        yield Finding(Severity.CRITICAL, f"{which}_KEY_FILE_BROKEN", file.path, file.defect, advice)
    elif read_pair(file.path) is None:
        yield Finding(
            Severity.CRITICAL,
            f"{which}_KEY_MISMATCH",
            file.path,
            "has a private key that cannot be read or does not belong to its first certificate",
            advice,
        )


def _own_certificate(host: _Host) -> Iterator[Finding]:
    pem = read_pair(host.pool_pem)
    if not host.uuid or not host.paths.certs_pool.is_dir():
        return  # what is missing has a finding of its own
    refresh = command(host.paths, "host-refresh-server-certificate")
    match read_stage(host.paths, host_uuid=host.uuid):
        case Stage.PREPARED:
            yield Finding(
                Severity.WARNING,
                "REFRESH_INTERRUPTED",
                host.public_new,
                "is trusted already, but its key is not in use: a refresh was interrupted",
                refresh
                if host.is_alone
                else "copy it to certs-pool on the other hosts, then "
                + command(host.paths, "host-refresh-server-certificate --distributed"),
            )
            return
        case Stage.SWITCHED:
            yield Finding(
                Severity.WARNING,
                "REFRESH_UNFINISHED",
                host.public_new,
                "is in use, and the certificate before it is still trusted",
                "make stunnel reload, then "
                + command(host.paths, "host-refresh-server-certificate --finish"),
            )
            return
        case Stage.IDLE:
            pass
    if os.path.lexists(host.public_new):
        yield Finding(
            Severity.WARNING,
            "STALE_NEW_CERTIFICATE",
            host.public_new,
            "is trusted, but no key on this host belongs to it",
            f"{refresh} replaces it; or remove it",
        )
    if pem is None:
        return
    if read_public(host.public) != pem.leaf:
        yield own_certificate_finding(
            host.pool_pem, host.public, mend=command(host.paths, "repair")
        )


def own_certificate_finding(pool_pem: Path, public: Path, *, mend: str = "") -> Finding:
    """Return what is wrong with the certificate by which the pool knows this host, when it is not that of its key."""
    if not os.path.lexists(public):
        name, what = "POOL_CERTIFICATE_MISSING", "is missing"
    elif read_public(public) is None:
        name, what = "POOL_CERTIFICATE_EMPTY", "holds no certificate"
    else:
        name, what = "POOL_CERTIFICATE_DIFFERS", f"is not the certificate in {pool_pem}"
    return Finding(
        Severity.CRITICAL,
        name,
        public,
        f"{what}: the pool does not trust this host",
        mend,
        PublishCertificate(pool_pem, public),
    )


def _other_certificates(host: _Host) -> Iterator[Finding]:
    for file in host.files:
        own = file.path in {host.public, host.public_new}
        if file.access is Access.DENIED or own:
            continue
        if file.kind is Kind.POOL and not file.certificates:
            yield Finding(
                Severity.CRITICAL,
                "POOL_CERTIFICATE_EMPTY",
                file.path,
                f"holds no certificate ({file.defect or 'nothing in it'}): "
                "this host does not trust the one it is named after",
                "copy the file of that name from another host of the pool, or remove it",
            )


def _bundles(host: _Host) -> Iterator[Finding]:
    for place in bundle_places(host.paths):
        with contextlib.suppress(OSError):
            if is_stale(place):
                yield bundle_finding(host.paths, place)


def bundle_finding(paths: HostPaths, place: BundlePlace) -> Finding:
    """Return that a bundle, which no mount makes, does not follow its directory."""
    return Finding(
        Severity.WARNING,
        "BUNDLE_STALE",
        place.bundle,
        f"holds other certificates than {place.source}, and no certfs makes it",
        command(paths, "repair"),
        UpdateBundle(place),
    )


def _not_looked_at(host: _Host) -> Iterator[Finding]:
    for file in host.files:
        if file.access is Access.DENIED:
            yield Finding(
                Severity.NOTE,
                "NOT_CHECKED",
                file.path,
                f"is not checked: it {file.defect}",
                "run this as the owner of the file, usually root",
            )


def _open_keys(host: _Host) -> Iterator[Finding]:
    for name in _KEY_FILES:
        path = host.paths.xensource / os.fsdecode(name)
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError:
            continue
        if mode & _OTHERS:
            yield Finding(
                Severity.CRITICAL,
                "PRIVATE_KEY_EXPOSED",
                path,
                f"holds a private key and has mode {mode:04o}: others can get at it",
                f"{command(host.paths, 'repair')}; if others were on this host, make a new key",
                RestrictMode(path, mode & ~_OTHERS),
            )


def _validity(host: _Host) -> Iterator[Finding]:
    in_use = {
        one for file in host.files if file.kind is Kind.HOST_INTERNAL for one in file.certificates
    }
    for file in host.files:
        for certificate in file.certificates:
            if file.kind is Kind.POOL and certificate in in_use:
                continue  # said of the file with its key
            due = alert(certificate, file.kind, now=host.now)
            if due is not None:
                severity = Severity.CRITICAL if due.is_critical else Severity.WARNING
                what = f"{due.what} ({certificate.title})"
                yield Finding(severity, due.name, file.path, what, _renewal(host, file, due))


def _renewal(host: _Host, file: Installed, due: Alert) -> str:
    prefix = "set the clock (timedatectl); if it is right: " if due.is_early else ""
    match file.kind:
        case Kind.HOST:
            renewal = (
                f"with a renewed one: {command(host.paths, _INSTALL)}; or "
                f"{command(host.paths, 'reset-server-certificate')}"
            )
        case Kind.HOST_INTERNAL:
            renewal = command(host.paths, "host-refresh-server-certificate")
        case Kind.POOL:
            renewal = "on the host it belongs to: certfs host-refresh-server-certificate"
        case Kind.CA | Kind.PINNED:
            uninstall = command(
                host.paths,
                f"pool-uninstall-ca-certificate {shlex.quote(printable(file.path.name))}",
            )
            renewal = f"install the CA's renewed certificate, then {uninstall}"
            if due.is_early:
                renewal = f"wait until then, or {uninstall}"
    return prefix + renewal


def _find(host: _Host, kind: Kind) -> Installed:
    return next(file for file in host.files if file.kind is kind)
