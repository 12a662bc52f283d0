"""The commands about a host's own certificates, under the names that admins know from xe.

Owns their options, their help and what they say; the work is done in ``certfs.identity``.
"""

import shlex
import subprocess
import time
from pathlib import Path

import click

from certfs.cli.answers import (
    InputFile,
    Seconds,
    certificate_form,
    certificate_lines,
    dry_run_option,
    json_option,
    read_document,
    say,
    store_option,
    warn,
)
from certfs.cli.json_forms import Refreshed, Replaced, ServerCertificate, answer, file_form
from certfs.core.pem import render
from certfs.errors import CertfsError, PrivilegeError
from certfs.identity import refresh, replace
from certfs.identity.describe import describe_loaded
from certfs.identity.errors import CertificateLibraryCorruptError
from certfs.identity.listing import Access, Kind, installed, need_host_uuid
from certfs.identity.paths import HostPaths, command
from certfs.identity.refresh import RefreshReport, Stage
from certfs.identity.replace import RELOAD_HINT, Replacement
from certfs.linux.waiting import waiting

_OVERLAP_SECONDS = 5.0
"""The platform's: a slow client may still be on its way with what it knew before."""


class ReloadError(CertfsError):
    """The command that was to make stunnel reload failed."""

    exit_code = 36


@click.command(
    "host-get-server-certificate",
    epilog="\b\nExample:\n  certfs host-get-server-certificate | openssl x509 -noout -text",
)
@click.option("--pool", is_flag=True, help="The certificate shown to the pool, not to everybody.")
@store_option
@json_option
def host_get_server_certificate(*, pool: bool, paths: HostPaths, as_json: bool) -> None:
    """Print the host's certificate in PEM form, and nothing private."""
    kind = Kind.HOST_INTERNAL if pool else Kind.HOST
    file = next(file for file in installed(paths) if file.kind is kind)
    if file.access is Access.DENIED:
        raise PrivilegeError(
            f"{file.path} {file.defect}", advice="run this as the owner of the file, usually root"
        )
    if not file.certificates:
        raise CertificateLibraryCorruptError(
            f"{file.path} {file.defect}", advice=f"{command(paths, 'repair')} mends what it can"
        )
    leaf = file.certificates[0]
    pem = render(leaf.der).decode("ascii")
    if as_json:
        answer(
            ServerCertificate(
                path=file_form(file.path), certificate=certificate_form(leaf), pem=pem
            )
        )
    else:
        click.echo(pem, nl=False)


@click.command(
    "host-server-certificate-install",
    epilog="\b\nExample:\n"
    "  certfs host-server-certificate-install --certificate host.pem --private-key host.key \\\n"
    "      --certificate-chain intermediate.pem",
)
@click.option("--certificate", required=True, type=InputFile(), help="The host's certificate.")
@click.option("--private-key", required=True, type=InputFile(), help="Its key, not encrypted.")
@click.option("--certificate-chain", type=InputFile(), help="The certificates that lead to a CA.")
@store_option
@dry_run_option
@json_option
def host_server_certificate_install(  # noqa: PLR0913 - one for each option
    *,
    certificate: Path,
    private_key: Path,
    certificate_chain: Path | None,
    paths: HostPaths,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Check a key and certificate as the platform does, and make them the host's own.

    xapi-ssl.pem is replaced in one step; owner, group and mode stay.
    """
    done = replace.install_server_certificate(
        paths,
        certificate=read_document(certificate),
        private_key=read_document(private_key),
        chain=read_document(certificate_chain) if certificate_chain is not None else None,
        dry_run=dry_run,
    )
    _tell_replacement(done, dry_run=dry_run, as_json=as_json)


@click.command("reset-server-certificate", epilog="\b\nExample:\n  certfs reset-server-certificate")
@store_option
@dry_run_option
@json_option
def reset_server_certificate(*, paths: HostPaths, dry_run: bool, as_json: bool) -> None:
    """Make a new self-signed certificate for the host."""
    done = replace.reset_server_certificate(paths, dry_run=dry_run)
    _tell_replacement(done, dry_run=dry_run, as_json=as_json)


@click.command(
    "host-refresh-server-certificate",
    epilog="\b\nExamples:\n"
    "  certfs host-refresh-server-certificate                 with other hosts: makes the new one, and stops\n"
    "  certfs host-refresh-server-certificate --distributed   the others have UUID.new.pem: puts it in use\n"
    "  certfs host-refresh-server-certificate --finish        stunnel has reloaded: retires the old one\n"
    '  certfs host-refresh-server-certificate --reload "systemctl reload-or-restart stunnel@xapi"',
)
@click.option(
    "--distributed",
    is_flag=True,
    help="The other hosts of the pool have UUID.new.pem in their certs-pool: put it in use.",
)
@click.option("--finish", is_flag=True, help="stunnel has reloaded: take the old one out of trust.")
@click.option(
    "--reload",
    "reload_command",
    metavar="COMMAND",
    help="Do it all: after the switch run COMMAND, which makes stunnel reload, wait, and finish.",
)
@click.option(
    "--overlap",
    metavar="SECONDS",
    type=Seconds(min=0, max=3600),
    default=_OVERLAP_SECONDS,
    show_default=True,
    help="With --reload: how long both stay trusted after it.",
)
@store_option
@dry_run_option
@json_option
def host_refresh_server_certificate(  # noqa: PLR0913 - one for each option
    *,
    distributed: bool,
    finish: bool,
    reload_command: str | None,
    overlap: float,
    paths: HostPaths,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Replace the certificate that this host shows to its pool, without a moment of distrust.

    The new certificate is trusted beside the old one, then its key is put in use. When stunnel has
    reloaded, --finish ends the trust in the old one. Whatever interrupts it, run it again.

    If certs-pool has other hosts, it stops before the switch with exit code 37, because they would
    refuse this host: copy UUID.new.pem to their certs-pool, then run it again with --distributed.
    --finish and --reload ask the stunnels that run here what they present, and leave the old
    certificate trusted while one presents it (exit code 38).
    """
    if finish and reload_command is not None:
        raise click.UsageError("--finish and --reload exclude each other: --reload finishes too")
    uuid = need_host_uuid(paths)
    if dry_run:
        report = refresh.report(paths, host_uuid=uuid)
    elif finish:
        report = refresh.finish(paths, host_uuid=uuid)
    else:
        report = refresh.begin(paths, host_uuid=uuid, distributed=distributed)
        if reload_command is not None:
            if not distributed:
                refresh.refuse_undistributed(paths, report, host_uuid=uuid)
            with waiting():
                _reload(reload_command, paths)
                time.sleep(overlap)
            report = refresh.finish(paths, host_uuid=uuid)
    _tell_refresh(paths, report, finish=finish, dry_run=dry_run, as_json=as_json)


def _reload(words: str, paths: HostPaths) -> None:
    """Run the admin's command; what it says is on standard error, beside the answer."""
    try:
        done = subprocess.run(shlex.split(words), check=False, stdin=subprocess.DEVNULL, stdout=2)
    except (OSError, ValueError) as error:
        raise ReloadError(f"{words!r} cannot be run: {error}", advice=_mend(paths)) from error
    if done.returncode != 0:
        raise ReloadError(f"{words!r} ended with status {done.returncode}", advice=_mend(paths))


def _mend(paths: HostPaths) -> str:
    """Return how a refresh goes on by hand."""
    finish = command(paths, "host-refresh-server-certificate --finish")
    return f"old and new certificate are both trusted; make stunnel reload, then run {finish}"


def _tell_replacement(done: Replacement, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        answer(
            Replaced(
                path=file_form(done.path),
                changed=not dry_run,
                certificate=certificate_form(describe_loaded(done.certificate)),
                warnings=done.warnings,
                next="" if dry_run else RELOAD_HINT,
            )
        )
        return
    said = "would be replaced by" if dry_run else "replaced by"
    say(f"{done.path}: {said}\n{certificate_lines(describe_loaded(done.certificate))}")
    warn(*(f"warning: {warning}" for warning in done.warnings))
    if not dry_run:
        warn(RELOAD_HINT)


def _tell_refresh(
    paths: HostPaths, report: RefreshReport, *, finish: bool, dry_run: bool, as_json: bool
) -> None:
    said, following = _refresh_sentences(paths, report, finish=finish, dry_run=dry_run)
    warnings = report.warnings
    newest = describe_loaded(report.certificate) if report.certificate is not None else None
    if as_json:
        answer(
            Refreshed(
                stage=report.stage.value,
                changed=report.changed,
                certificate=certificate_form(newest) if newest is not None else None,
                warnings=warnings,
                next=following,
            )
        )
        return
    say(said)
    if newest is not None:
        say(certificate_lines(newest))
    warn(*(f"warning: {warning}" for warning in warnings))
    if following:
        warn(following)


def _refresh_sentences(
    paths: HostPaths, report: RefreshReport, *, finish: bool, dry_run: bool
) -> tuple[str, str]:
    """Return what has happened, and what is to be done next."""
    if dry_run:
        return _would(paths, report, finish=finish)
    if report.stage is Stage.SWITCHED:
        said = "is in use" if report.changed else "is in use already"
        following = (
            f"{RELOAD_HINT}; then run {command(paths, 'host-refresh-server-certificate --finish')}"
        )
        return f"the new certificate {said}; the old one is trusted until --finish:", following
    if report.changed:
        return "the old certificate is not trusted any more; the pool certificate is:", ""
    return "no refresh is under way; the pool certificate is:", ""


def _would(paths: HostPaths, report: RefreshReport, *, finish: bool) -> tuple[str, str]:
    following = ""
    match report.stage, finish:
        case Stage.IDLE, False:
            said = "a new key and certificate would be made, trusted beside this one:"
        case Stage.PREPARED, False:
            said = "an interrupted refresh would be taken up, with this certificate:"
        case Stage.SWITCHED, True:
            said = "the certificate before this one would not be trusted any more:"
        case Stage.SWITCHED, False:
            said, following = _WOULD_NOT, _mend(paths)
        case _:
            said = _WOULD_NOT
    if report.others and not finish and report.stage is not Stage.SWITCHED:
        count = len(report.others)
        hosts = "another host is" if count == 1 else f"{count} other hosts are"
        following = (
            f"{hosts} in certs-pool: the new key is put in use when --distributed says that the new "
            "certificate is there too"
        )
    return said, following


_WOULD_NOT = "nothing would change; the pool certificate is:"
