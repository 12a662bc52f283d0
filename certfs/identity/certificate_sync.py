"""``pool.certificate_sync`` of the platform, called safely: what it would lose is looked for first.

A sync copies the coordinator's certificates over those of every host. Owns what has to be true before it (a pure
judgement of facts), what it covers in which release, and following its task to the end.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from certfs.errors import CertfsError, DeadlineError
from certfs.identity.listing import Installed, Kind
from certfs.identity.xapi import XapiError, failure

ERASES_ALL_SINCE: Final = (26, 13)
"""The release of XAPI from which a sync replaces every directory of every host by the coordinator's."""
_POLL_SECONDS: Final = 0.5
_NEW: Final = ".new.pem"
_VERSION: Final = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})(?:\.|$)")


class Calls(Protocol):
    """What asks XAPI: a `certfs.identity.xapi.Session`."""

    def call(self, method: str, *arguments: object) -> Any:  # noqa: ANN401 - whatever the method answers
        """Call a method and return its value."""


class SyncRefusedError(CertfsError):
    """A pool-wide sync now would lose trust, or could not reach every host."""

    exit_code = 41


@dataclass(frozen=True, slots=True)
class PoolHost:
    """A host as XAPI's database has it; ``sha256`` is its pool certificate's, None where that is not recorded."""

    uuid: str
    name: str
    live: bool
    sha256: str | None


@dataclass(frozen=True, slots=True)
class Pool:
    """A pool as XAPI's database has it; ``release`` is the coordinator's XAPI, None where it does not say."""

    coordinator: str
    release: tuple[int, int] | None
    hosts: tuple[PoolHost, ...]


@dataclass(frozen=True, slots=True)
class Here:
    """This host's own files: ``own`` is the SHA-256 of its pool certificate, ``certs_pool`` has those there by name."""

    uuid: str
    own: str | None
    certs_pool: Mapping[str, frozenset[str]]


@dataclass(frozen=True, slots=True)
class Objection:
    """Why not to sync now: a ``code`` for programs and a sentence. One that does not ``refuse`` is only said."""

    code: str
    sentence: str
    refuses: bool = True


def read_pool(session: Calls) -> Pool:
    """Return what XAPI's database says of the pool."""
    coordinator = session.call("pool.get_master", session.call("pool.get_all")[0])
    hosts = session.call("host.get_all_records")
    metrics = session.call("host_metrics.get_all_records")
    prints = {
        record["host"]: _sha256(record)
        for record in session.call("Certificate.get_all_records").values()
        if record.get("type") == "host_internal"
    }
    return Pool(
        coordinator=hosts[coordinator]["uuid"],
        release=_release(hosts[coordinator].get("software_version", {})),
        hosts=tuple(
            PoolHost(
                uuid=record["uuid"],
                name=record.get("name_label", ""),
                live=bool(metrics.get(record.get("metrics"), {}).get("live")),
                sha256=prints.get(reference),
            )
            for reference, record in sorted(hosts.items(), key=lambda item: item[1]["uuid"])
        ),
    )


def _sha256(record: Mapping[str, str]) -> str | None:
    # Releases before 24.20 have one field, fingerprint.
    text = (record.get("fingerprint_sha256") or record.get("fingerprint") or "").lower()
    digits = text.replace(":", "")
    return digits if re.fullmatch(r"[0-9a-f]{64}", digits) else None


def _release(software_version: Mapping[str, str]) -> tuple[int, int] | None:
    match = _VERSION.match(software_version.get("xapi_build", ""))
    return (int(match[1]), int(match[2])) if match else None


def facts(uuid: str, files: Iterator[Installed]) -> Here:
    """Return the facts of this host from its ``files`` (`certfs.identity.listing.installed`)."""
    own = None
    certs_pool = {}
    for file in files:
        prints = [certificate.sha256 for certificate in file.certificates]
        if file.kind is Kind.HOST_INTERNAL and prints:
            own = prints[0]
        elif file.kind is Kind.POOL:
            certs_pool[file.path.name] = frozenset(prints)
    return Here(uuid, own, certs_pool)


def objections(pool: Pool, here: Here) -> Iterator[Objection]:
    """Yield what speaks against a sync now, and what could not be checked."""
    for host in pool.hosts:
        if not host.live:
            yield Objection(
                "HOST_OFFLINE",
                f"host {_title(host)} is offline: it would keep what it has, also what was removed meanwhile",
            )
    for name in sorted(here.certs_pool):
        if name.endswith(_NEW):
            yield Objection(
                "REFRESH_IN_FLIGHT",
                f"certs-pool/{name}: a host is renewing its certificate, and a sync would erase the new one",
            )
    if here.uuid != pool.coordinator:
        yield Objection(
            "NOT_CHECKED",
            f"not checked, because this host is not the coordinator ({pool.coordinator}): whether the "
            "coordinator's certs-pool has every host's certificate",
            refuses=False,
        )
        return
    yield from _missing(pool, here)


def _missing(pool: Pool, here: Here) -> Iterator[Objection]:
    present = frozenset().union(*here.certs_pool.values()) if here.certs_pool else frozenset()
    for host in pool.hosts:
        of_host = here.certs_pool.get(f"{host.uuid}.pem")
        current = here.own if host.uuid == here.uuid else host.sha256
        if not of_host:
            yield Objection(
                "CERTIFICATE_MISSING",
                f"certs-pool/{host.uuid}.pem, the certificate of host {_title(host)}, is missing on the coordinator",
            )
        elif current is not None and current not in present:
            yield Objection(
                "CERTIFICATE_STALE",
                f"certs-pool/{host.uuid}.pem is not the certificate that host {_title(host)} has now ({current})",
            )


def _title(host: PoolHost) -> str:
    return f"{host.uuid} ({host.name})" if host.name else host.uuid


def covered(release: tuple[int, int] | None) -> str:
    """Return in one sentence what a sync of this release of XAPI does."""
    if release is None:
        return "XAPI does not tell its release, so what its sync covers is not known."
    number = f"{release[0]}.{release[1]}"
    if release >= ERASES_ALL_SINCE:
        return (
            f"XAPI {number} replaces the certificates of every purpose, the CRLs and certs-pool of every "
            "host by the coordinator's: what only another host has is erased."
        )
    return (
        f"XAPI {number} distributes the coordinator's CA certificates and CRLs, and removes others, by name: "
        "a file with the same name and another content stays, and certs-pool is not distributed."
    )


def run(
    session: Calls,
    *,
    seconds: float,
    progress: Callable[[float], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Have the pool synchronised and wait for it; ``progress`` is told the share that is done, from 0 to 1.

    Raises ``XapiError`` where the task fails, ``DeadlineError`` after ``seconds``: the task then goes on.
    """
    deadline = clock() + seconds
    task = session.call("Async.pool.certificate_sync")
    while True:
        status = session.call("task.get_status", task)
        if status not in {"pending", "cancelling"}:
            break
        progress(float(session.call("task.get_progress", task)))
        if clock() >= deadline:
            uuid = session.call("task.get_uuid", task)
            raise DeadlineError(
                f"the sync was not done after {seconds:g} s and goes on in XAPI as task {uuid}",
                advice=f"wait for it: xe task-list uuid={uuid}",
            )
        sleep(_POLL_SECONDS)
    error = session.call("task.get_error_info", task) if status == "failure" else []
    with suppress(CertfsError):
        session.call("task.destroy", task)
    if status == "success":
        progress(1.0)
    elif error:
        raise failure("pool.certificate_sync", str(error[0]), error[1:])
    else:
        raise XapiError(f"the sync ended as {status}", advice="run it again", code="TASK_CANCELLED")
