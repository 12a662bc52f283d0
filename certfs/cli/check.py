"""``certfs check``: whether what is trusted is as it should be, as an exit code for monitoring.

Owns the judgement of bundles; that of a host's own files is `certfs.identity.health`. Together they are one answer.
"""

import glob
import os
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click
import msgspec

from certfs.cli.json_forms import (
    EXIT_CODES,
    SEVERITIES,
    Checked,
    CheckStatus,
    Finding,
    answer,
    file_form,
)
from certfs.cli.json_forms import Severity as Grade
from certfs.cli.places import Place, find_place, host_config, items_of, opened, with_place
from certfs.client.instances import find
from certfs.client.query import readers_of
from certfs.config import DEFAULT_FILE, CheckTable
from certfs.core.certificate import Certificate, Severity
from certfs.core.details import describe
from certfs.core.readers import refusals
from certfs.core.text import printable
from certfs.errors import CertfsError, ConfigError, DeadlineError, NotMountedError, PrivilegeError
from certfs.identity.finding import Finding as HostFinding
from certfs.identity.health import judge
from certfs.identity.paths import DOM0
from certfs.identity.validate import iso
from certfs.moment import written
from certfs.pool import state_directory
from certfs.protocol import state_file
from certfs.protocol.notify_state import Entry
from certfs.protocol.summary import read_hosts
from certfs.store.bundle import LiveBundle
from certfs.store.inspection import Item
from certfs.store.plain import aside_name

_WRITING_SECONDS = 60
"""No file of certificates takes longer to be written."""
_INSTALLED = {(b"stunnel", b"certs"), (b"stunnel", b"certs-pool")}
_AUTHORITY_ALERT = "POOL_CA_CERTIFICATE_"
"""How the platform's alerts about certificates that are among others begin."""
_UNIT_LINKS = "/etc/systemd/system/*.*/certfs.service"
"""What `systemctl enable` makes (systemd.unit(5))."""
_POOL_SECONDS: Final = 3.0
_POOL_STATES: Final = {
    "held": ("POOL_HELD", "put the files back, or: certfs pool publish --accept-deletions"),
    "disconnected": ("POOL_DISCONNECTED", "see whether the engine runs and can be reached"),
    "ejected": ("POOL_EJECTED", "certfs pool leave, or have this host admitted again"),
    "failing": ("POOL_FAILING", "mend what it says; it is tried again every second"),
}
_STATUS: tuple[CheckStatus, ...] = ("ok", "warning", "critical")


@click.command("check", epilog="\b\nExamples:\n  certfs check\n  certfs check /mnt/certs --json")
@with_place
def check(
    *, mountpoint: str | None, store: str | None, config_file: str | None, as_json: bool
) -> None:
    """Judge bundles and host certificates; the exit code is for monitoring.

    0: fine. 1: something was left out, is expired or expires within 30 days, or wants mending. 2: the host's own
    certificate or every certificate of a bundle is expired, something is broken, a bundle is empty although it has
    sources, or certfs is set up for this host and does not serve. [check] in the configuration changes days and
    severity for certificates that are among others in a bundle.
    """
    findings: list[Finding] = []
    try:
        findings.extend(_judge(mountpoint, store, config_file))
    except ConfigError as error:
        if config_file is not None or not os.access(DEFAULT_FILE, os.R_OK):
            raise
        findings = [_broken_configuration(error, "critical")]
    except DeadlineError as error:
        where = mountpoint or store or os.fspath(DOM0.stunnel)
        what = f"is not served: {error.message}"
        findings = [Finding("critical", "NOT_SERVING", file_form(where), what, error.advice)]
    worst = max((SEVERITIES.index(finding.severity) for finding in findings), default=0)
    if as_json:
        answer(
            Checked(status=_STATUS[worst], exit_code=EXIT_CODES[worst], findings=tuple(findings))
        )
    else:
        for each in sorted(findings, key=lambda finding: -SEVERITIES.index(finding.severity)):
            click.echo(f"{each.severity.upper()}: {each.file} {each.what}")
            if each.mend:
                click.echo(f"  {each.mend}")
        if worst == 0:
            click.echo("OK")
    sys.exit(worst)


def _judge(mountpoint: str | None, store: str | None, config_file: str | None) -> Iterator[Finding]:
    place = find_place(mountpoint, store, config_file)
    now = datetime.now(UTC)
    with opened(place) as trust:
        for bundle in trust.bundles:
            # The validity of what a host has installed is judged with the host's own files, as the platform alerts it.
            is_installed = place.paths is not None and bundle.spec.source in _INSTALLED
            yield from _judge_bundle(place, items_of(place, bundle), now, is_installed=is_installed)
            yield from _judge_kept_aside(place, bundle, trust.kept_aside(bundle))
            problem = trust.problem_of_place(bundle)
            if problem:
                yield Finding(
                    "critical",
                    "BUNDLE_NOT_PRESENTED",
                    file_form(place.path(bundle.spec.bundle)),
                    f"is not presented: {printable(problem)}",
                    "make it a directory; its source directory may be a link",
                )
    yield from _judge_serving(place)
    yield from judge_incomplete(place, now)
    yield from judge_readers(place, () if store else _readers(mountpoint))
    yield from () if store else _judge_pool(mountpoint)
    for directory in place.silent:
        yield Finding(
            "warning",
            "NOT_ANSWERING",
            printable(directory),
            "does not answer in time: what was last read of the sources there counts",
            "look at what is mounted there",
        )
    for tree in place.not_presented:
        yield Finding(
            "warning",
            "TREE_NOT_PRESENTED",
            tree,
            "is not presented: it came a moment ago, or dom0.trees has changed",
            "if it stays so: certfs unmount, then certfs mount; until then certfs repair writes its bundles",
        )
    host = place.host
    for found in judge(host, now=now) if host is not None else ():
        yield Finding(
            _severity_of(found, place.config.check),
            found.name,
            file_form(found.file),
            found.what,
            found.mend,
        )


def _severity_of(found: HostFinding, check: CheckTable) -> Grade:
    """Return how bad a finding of the host is: an authority among others is no reason to wake somebody."""
    if not found.name.startswith(_AUTHORITY_ALERT):
        return SEVERITIES[found.severity]
    if found.name.endswith("_EXPIRED"):
        return check.expired
    return check.expiring if "_EXPIRING_" in found.name else SEVERITIES[found.severity]


def _judge_serving(place: Place) -> Iterator[Finding]:
    """Yield that certfs was set up for this host and does not serve it, or will not when it is started next."""
    if place.paths is not DOM0:
        return
    if place.is_live:
        if os.access(DEFAULT_FILE, os.R_OK):
            try:
                host_config(None)
            except ConfigError as error:
                yield _broken_configuration(error, "warning")
        return
    is_enabled = any(glob.iglob(_UNIT_LINKS))
    directory = f"{state_file.runtime_directory()}/{state_file.HOST_INSTANCE}"
    is_known = state_file.read_state(directory) is not None or read_hosts() is not None
    if is_enabled or is_known:
        what = "is not served by certfs, which is set up for this host: its bundles do not follow"
        mend = "systemctl start certfs, or certfs mount; certfs status says more"
        yield Finding("critical", "NOT_SERVING", file_form(place.paths.stunnel), what, mend)


def _broken_configuration(error: ConfigError, severity: Grade) -> Finding:
    what = f"keeps certfs from starting: {error.message}"
    mend = f"mend it ({error.advice}), then certfs restart or systemctl start certfs"
    return Finding(severity, "CONFIGURATION_BROKEN", DEFAULT_FILE, what, mend)


def _judge_bundle(
    place: Place, items: list[Item], now: datetime, *, is_installed: bool
) -> Iterator[Finding]:
    """Yield what is wrong with one bundle.

    The validity of what ``is_installed`` on a host is judged with the host's own files, unless it cannot be read.
    """
    for item in items:
        source = _absolute(place, item.source)
        if item.certificate is None and item.severity > Severity.NOTE:
            where = f" at line {item.line}" if item.line else ""
            yield Finding(
                "warning",
                "LEFT_OUT",
                source,
                f"is not wholly in the bundle{where}: {printable(item.reason)}",
                "mend or remove the file",
            )
        elif item.certificate is not None and item.included:
            yield from _judge_readers(item.certificate, item, source)
            if not is_installed or _has_unknown_validity(item):
                yield from _judge_validity(item, source, now, place.config.check)
    yield from _judge_all_expired(place, items, now)
    sources = [item for item in items if item.is_source]
    if sources and not any(item.included for item in sources):
        yield Finding(
            "critical",
            "BUNDLE_EMPTY",
            _absolute(place, items[0].bundle),
            "is empty although it has sources",
            f"{place.command('list')} shows why each of them was left out",
        )


def _has_unknown_validity(item: Item) -> bool:
    details = item.details
    return details is not None and None in {details.not_before, details.not_after}


def _judge_readers(certificate: Certificate, item: Item, source: str) -> Iterator[Finding]:
    for refusal in refusals(certificate.der):
        subject = (
            item.details.subject if item.details else ""
        ) or "a certificate without a subject"
        yield Finding(
            "warning",
            "READER_REFUSES",
            source,
            f"holds {subject}, for which {refusal.reader.label} refuses the whole bundle: {refusal.reason}",
            f"replace it, or leave it out with {refusal.reader} in bundle.readers of the configuration",
        )


def _absolute(place: Place, path: bytes) -> str:
    return file_form(place.path(tuple(path.split(b"/"))))


def _judge_kept_aside(
    place: Place, bundle: LiveBundle, certificates: Iterable[Certificate]
) -> Iterator[Finding]:
    """Yield what was trusted before the first mount and is in no source: nobody has decided about it."""
    for certificate in certificates:
        details = describe(certificate)
        yield Finding(
            "warning",
            "BEFORE_CERTFS",
            place.path((*bundle.spec.bundle[:-1], aside_name(bundle.spec.bundle[-1]))),
            f"holds {printable(details.subject)}, which was trusted before certfs and is not any more",
            f"copy it to {place.path(bundle.spec.source)} to trust it; remove the file when it is settled",
        )


def judge_incomplete(place: Place, now: datetime) -> Iterator[Finding]:
    """Yield the sources whose last complete content counts for so long that nobody can mean it."""
    for one in place.incomplete:
        if now.timestamp() - one.since < _WRITING_SECONDS:
            continue
        by = f" by {one.writers}" if one.writers else ""
        yield Finding(
            "warning",
            "BEING_WRITTEN",
            _absolute(place, one.source),
            f"is being written since {written(one.since)}{by}: what it held before counts",
            "have the process close it or end it, or put a new file in its place with rename(2)",
        )


def _readers(mountpoint: str | None) -> tuple[Entry, ...]:
    """Return the readers that this user's certfs tells of changes; none where it is another's or does not serve."""
    with suppress(NotMountedError, PrivilegeError):
        return readers_of(find(mountpoint))
    return ()


def judge_readers(place: Place, readers: Iterable[Entry]) -> Iterator[Finding]:
    """Yield the readers that cannot be told of a change, and so go on with what they have (I21)."""
    for reader in readers:
        if reader.is_failing:
            # One that has the same order for whatever changes is about all that is mounted.
            concerned = os.fsencode(reader.bundle)
            yield Finding(
                "warning",
                "NOTIFY_FAILING",
                _absolute(place, concerned)
                if concerned
                else file_form(next(iter(place.roots.values()))),
                f"{printable(reader.target)} could not be told of a change, {reader.failures} times in a row: "
                f"{printable(reader.last_error)}",
                "mend what it says; it is tried again for ever, every minute at the latest",
            )


def _judge_pool(mountpoint: str | None) -> Iterator[Finding]:
    """Yield what is wrong with this host as a member of a pool, if its pool process works on this mount."""
    state = state_directory()
    if not os.access(f"{state}/membership.json", os.R_OK):
        return
    # Only now: hosts without a pool do not wait for what it takes.
    import trio  # noqa: PLC0415 - only where there is a pool: it takes a tenth of a second

    from certfs.pool.local import Answer, ControlSocket, Request  # noqa: PLC0415 - as trio

    try:
        raw = trio.run(ControlSocket(state).ask, Request(), _POOL_SECONDS)
        report = msgspec.json.decode(raw, type=Answer).report
    except (CertfsError, msgspec.DecodeError) as error:
        said = (
            error.message if isinstance(error, CertfsError) else "it answers what certfs does not"
        )
        mend = "systemctl start certfs-pool; certfs pool leave, if this host is to be in no pool"
        yield Finding("warning", "POOL_NOT_RUNNING", state, f"is not kept: {said}", mend)
        return
    if report.get("mountpoint") == os.path.realpath(mountpoint or "/etc"):
        yield from judge_pool_report(report, state)


def judge_pool_report(report: Mapping[str, Any], state: str) -> Iterator[Finding]:
    """Yield what a pool process says of itself that is not as it should be (I22)."""
    where = f"{report['mountpoint']}/stunnel"
    name, mend = _POOL_STATES.get(report["state"], ("", ""))
    if name:
        since = report["disconnected_since"]
        how = f"{report['state']} since {written(since)}" if since else report["state"]
        what = f"does not follow its pool: {how}: {printable(report['reason'])}"
        yield Finding("warning", name, where, what, mend)
    for directory, names in report["drift"].items():
        only_here = report.get("only_here", {}).get(directory, {})
        for each in names:
            what, mend = _drift(directory, each, only_here)
            yield Finding("warning", "POOL_DRIFT", f"{where}/{directory}/{each}", what, mend)
    for directory, refused in report["refused"].items():
        for each, why in refused.items():
            what = f"is not believed as the pool has it: {why}"
            mend = "find out who wrote it: certfs pool audit"
            if directory == "certs":
                approve = f"certfs pool approve {shlex.quote(each)} --key FILE"
                mend = f"if it is meant and waits for approval: {approve}; else {mend}"
            yield Finding("warning", "POOL_REFUSED", f"{where}/{directory}/{each}", what, mend)
    # Here as above.
    from certfs.pool.local import set_aside  # noqa: PLC0415 - as trio

    for path in set_aside(state):
        what = "was overruled by the pool and set aside"
        mend = "copy it back in if it is meant, and remove it here"
        yield Finding("warning", "POOL_SET_ASIDE", file_form(path), what, mend)


def _drift(directory: str, name: str, only_here: Mapping[str, str]) -> tuple[str, str]:
    """Return how a file differs from the pool, and what mends that."""
    publish = f"certfs pool publish {shlex.quote(name)}"
    if name not in only_here:
        mend = "to have what the pool has: certfs pool sync"
        if directory == "certs":
            mend += f"; to have the pool take this, on a publisher: {publish}"
        return "differs from the pool, and stays so on this host", mend
    if only_here[name]:
        what = f"is on this host only, and cannot be in a pool: {only_here[name]}"
        return what, "put a file in its place that can, or remove it"
    if directory == "certs":
        mend = f"{publish}, or copy it in on a publisher; if it is not meant, remove it"
        return "is on this host only", mend
    mend = (
        "remove it, unless this host is to trust it: a host's own certificate comes with the host"
    )
    return "is on this host only, and of no member of the pool", mend


def _judge_all_expired(place: Place, items: list[Item], now: datetime) -> Iterator[Finding]:
    ends = [item.details.not_after for item in items if item.included and item.details is not None]
    known = [end for end in ends if end is not None]
    if known and len(known) == len(ends) and max(known) < now:
        yield Finding(
            "critical",
            "ALL_EXPIRED",
            _absolute(place, items[0].bundle),
            "holds no certificate that is still valid",
            "renew its certificates; if they are valid, check this host's clock",
        )


def _judge_validity(item: Item, source: str, now: datetime, check: CheckTable) -> Iterator[Finding]:
    details = item.details
    if details is None:
        return
    subject, begin, end = details.subject, details.not_before, details.not_after
    if end is None:
        what = f"holds {subject}, whose end of validity cannot be read"
        yield Finding("warning", "VALIDITY_UNKNOWN", source, what, "replace it")
    elif end < now:
        what = f"holds {subject}, which expired at {iso(end)}"
        yield Finding(check.expired, "EXPIRED", source, what, "renew or remove it")
    elif end - now < timedelta(days=check.expiring_days):
        what = f"holds {subject}, which expires in {(end - now).days} days"
        yield Finding(check.expiring, "EXPIRING", source, what, "renew it")
    if begin is not None and begin > now:
        what = f"holds {subject}, which is not valid before {iso(begin)}"
        yield Finding("warning", "NOT_VALID_YET", source, what, "check this host's clock")
