"""The commands about CA certificates, and those that show what is installed."""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import ParamSpec

import click
from click.shell_completion import CompletionItem

from certfs.cli.answers import (
    InputFile,
    Seconds,
    certificate_form,
    certificate_lines,
    description_lines,
    dry_run_option,
    json_option,
    moment_text,
    names_beginning,
    read_document,
    say,
    store_option,
    warn,
)
from certfs.cli.json_forms import (
    AuthorityChanged,
    InstalledFile,
    InstalledFiles,
    Shown,
    TrustedThrough,
    answer,
    file_form,
)
from certfs.core.certificate import Severity, parse_source
from certfs.identity.authorities import (
    AuthorityChange,
    Purpose,
    install_authority,
    library,
    uninstall_authority,
)
from certfs.identity.describe import Description, describe, describe_loaded
from certfs.identity.errors import CertificateCorruptError
from certfs.identity.hostpem import HostPemDefect, parse_certificates
from certfs.identity.listing import Installed, installed, installed_by_purpose
from certfs.identity.paths import DOM0, HostPaths
from certfs.identity.trusted import Trusted
from certfs.identity.validate import Document, advice_for

P = ParamSpec("P")
_NOT_DISTRIBUTED = click.UsageError("--wait: what is for one purpose stays on this host")


def _complete_name(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    paths: HostPaths = context.params.get("paths") or DOM0
    directory = library(paths, _purpose(context.params.get("purpose"), pinned=False)).directory
    return names_beginning(directory, incomplete)


def purpose_options(function: Callable[P, None]) -> Callable[P, None]:
    """Add ``--purpose`` and ``--pinned``."""
    function = click.option(
        "--pinned",
        is_flag=True,
        help="With --purpose: certificates of servers, trusted as they are (pinned-PURPOSE).",
    )(function)
    return click.option(
        "--purpose",
        metavar="PURPOSE",
        help="Only for this purpose, such as general: in ca-PURPOSE of trusted-certs, as newer releases have it.",
    )(function)


def wait_option(function: Callable[P, None]) -> Callable[P, None]:
    """Add ``--wait``; the command's argument ``wait`` is what waits for a file, or None."""
    return click.option(
        "--wait",
        type=Seconds(min=1),
        metavar="SECONDS",
        callback=_waiter,
        help="Without XAPI: wait, so long at most, until every live host of the pool (certfs pool) follows.",
    )(function)


def _waiter(
    context: click.Context, _option: click.Parameter, seconds: float | None
) -> Callable[[Path], None] | None:
    if seconds is None or context.resilient_parsing:
        return None
    # Only now: it needs httpx, which not every host has.
    waiter: Callable[[float], Callable[[Path], None]] = import_module("certfs.cli.pool").waiter
    return waiter(seconds)


def _wait(change: AuthorityChange, wait: Callable[[Path], None] | None, *, dry_run: bool) -> None:
    if wait is not None and not dry_run:
        wait(change.path)


def _purpose(name: str | None, *, pinned: bool) -> Purpose | None:
    if name is None:
        if pinned:
            raise click.UsageError("--pinned goes with --purpose")
        return None
    return Purpose(name, pinned)


@click.command(
    "pool-install-ca-certificate",
    epilog="\b\nExamples:\n"
    "  certfs pool-install-ca-certificate company-root.pem\n"
    "  certfs pool-install-ca-certificate licensing.pem --purpose licensing",
)
@click.argument("file", type=InputFile())
@click.option("--name", help="Its name there, by default the file's own.")
@purpose_options
@wait_option
@store_option
@dry_run_option
@json_option
def pool_install_ca_certificate(  # noqa: PLR0913 - one for each option
    *,
    file: Path,
    name: str | None,
    purpose: str | None,
    pinned: bool,
    wait: Callable[[Path], None] | None,
    paths: HostPaths,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Check the certificates in FILE and trust them from now on.

    One that has expired, or is no CA, is installed with a warning, as the platform does it without.
    """
    if wait and purpose:
        raise _NOT_DISTRIBUTED
    document = read_document(file)
    change = install_authority(
        paths,
        document,
        name=name if name is not None else file.name,
        purpose=_purpose(purpose, pinned=pinned),
        dry_run=dry_run,
    )
    untrusted = () if dry_run else _not_trusted(change)
    _tell(change, "installed", dry_run=dry_run, as_json=as_json, still=untrusted)
    _wait(change, wait, dry_run=dry_run)


@click.command(
    "pool-uninstall-ca-certificate",
    epilog="\b\nExample:\n  certfs pool-uninstall-ca-certificate company-root.pem",
)
@click.argument("name", shell_complete=_complete_name)
@click.option("--force", is_flag=True, help="It is no error if there is none of that name.")
@purpose_options
@wait_option
@store_option
@dry_run_option
@json_option
def pool_uninstall_ca_certificate(  # noqa: PLR0913 - one for each option
    *,
    name: str,
    force: bool,
    purpose: str | None,
    pinned: bool,
    wait: Callable[[Path], None] | None,
    paths: HostPaths,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Remove the file NAME, and say whether its certificates are trusted through another one."""
    if wait and purpose:
        raise _NOT_DISTRIBUTED
    change = uninstall_authority(
        paths, name, purpose=_purpose(purpose, pinned=pinned), force=force, dry_run=dry_run
    )
    _tell(change, "removed", dry_run=dry_run, as_json=as_json, still=_still_trusted(change))
    _wait(change, wait, dry_run=dry_run)


@click.command("pool-certificate-list", epilog="\b\nExample:\n  certfs pool-certificate-list")
@store_option
@json_option
def pool_certificate_list(*, paths: HostPaths, as_json: bool) -> None:
    """List the certificates of this host, its pool and the CAs.

    The types are the platform's: host (shown to everybody), host_internal (shown to the pool), ca
    (trusted by an admin's wish), pool (trusted as a host of the pool), pinned (a server's, trusted
    as it is). Those of one purpose have its name.
    """
    files = [*installed(paths), *installed_by_purpose(paths)]
    if as_json:
        answer(InstalledFiles(certificates=tuple(map(_installed_form, files))))
        return
    for file in files:
        purpose = f", for {file.purpose}" if file.purpose else ""
        say(f"{file.path}  ({file.kind}{purpose})")
        for certificate in file.certificates:
            say(f"  {certificate.title}, until {moment_text(certificate.not_after)}")
            say(f"  {certificate.sha256}")
        if file.defect:
            say(f"  {file.defect}")


@click.command(
    "certificate-show", epilog="\b\nExample:\n  certfs certificate-show /etc/xensource/xapi-ssl.pem"
)
@click.argument("file", type=InputFile())
@json_option
def certificate_show(*, file: Path, as_json: bool) -> None:
    """Show every certificate in FILE in full, and no key that is in it."""
    document = read_document(file)
    certificates = _all_in(document)
    if as_json:
        path = "-" if str(file) == "-" else file_form(os.path.abspath(file))
        answer(Shown(path=path, certificates=tuple(map(certificate_form, certificates))))
        return
    say("\n\n".join(map(description_lines, certificates)))


def _all_in(document: Document) -> tuple[Description, ...]:
    """Return what can be said of the certificates of a file, also of those that only OpenSSL loads."""
    strict = parse_certificates(document.data)
    if strict and not isinstance(strict, HostPemDefect):
        return tuple(map(describe_loaded, strict))
    content = parse_source(document.data)
    if content.certificates and all(one.severity < Severity.DEFECT for one in content.remarks):
        return tuple(describe(certificate.der) for certificate in content.certificates)
    reason = strict.reason if isinstance(strict, HostPemDefect) else "holds no certificate"
    advice = advice_for(
        document,
        key="no key is shown: give a file of certificates",
        crl="a revocation list is shown by: openssl crl -noout -text -in {file}",
    )
    raise CertificateCorruptError(f"{document.path} cannot be shown: {reason}", advice=advice)


def _not_trusted(change: AuthorityChange) -> tuple[str, ...]:
    """Return a warning if no bundle has what was just installed."""
    trusted = {found.sha256 for found in change.trusted if found.is_same}
    missing = [one for one in change.certificates if one.sha256 not in trusted]
    return tuple(
        f"{one.title} is in no bundle: {change.path.parent} is not the source of one that is made here"
        for one in missing
    )


def _still_trusted(change: AuthorityChange) -> tuple[str, ...]:
    """Return a sentence for each bundle through which what was just removed is trusted."""
    names = {one.sha256: one.title for one in change.certificates}
    return tuple(
        f"{names.get(found.sha256, found.sha256)} is still trusted: {found.bundle} has "
        f"{'it' if found.is_same else 'another certificate with its name and key'}{_through(found)}"
        for found in change.trusted
    )


def _through(found: Trusted) -> str:
    if found.files:
        return f" through {' and '.join(map(str, found.files))}"
    return f", which {found.source} has not: it is being replaced, or the bundle does not follow it"


def _tell(
    change: AuthorityChange, said: str, *, dry_run: bool, as_json: bool, still: tuple[str, ...]
) -> None:
    warnings = (*change.warnings, *still)
    if as_json:
        changed = change.changed and not dry_run
        answer(_changed_form(change, changed=changed, warnings=warnings))
        return
    if not change.changed:
        say(f"{change.path} does not exist: nothing to do")
        return
    say(
        f"{change.path}: {'would be ' if dry_run else ''}{said}{_conclusion(change, said, dry_run=dry_run)}"
    )
    for certificate in change.certificates:
        say(certificate_lines(certificate))
    warn(*(f"warning: {warning}" for warning in warnings))


def _conclusion(change: AuthorityChange, said: str, *, dry_run: bool) -> str:
    """Say what has become of the trust in all certificates of the file, where it is the same for all of them."""
    if dry_run or not change.certificates:
        return ""
    held = {found.sha256 for found in change.trusted}
    fingerprints = {one.sha256 for one in change.certificates}
    if said == "removed":
        return "" if held else "; not trusted any more"
    return "; trusted" if fingerprints <= held else ""


def _changed_form(
    change: AuthorityChange, *, changed: bool, warnings: tuple[str, ...]
) -> AuthorityChanged:
    return AuthorityChanged(
        path=file_form(change.path),
        changed=changed,
        certificates=tuple(map(certificate_form, change.certificates)),
        trusted=tuple(
            TrustedThrough(
                sha256=found.sha256,
                bundle=file_form(found.bundle),
                source=file_form(found.source),
                files=tuple(map(file_form, found.files)),
                is_same=found.is_same,
            )
            for found in change.trusted
        ),
        warnings=warnings,
    )


def _installed_form(file: Installed) -> InstalledFile:
    return InstalledFile(
        type=file.kind.value,
        purpose=file.purpose or None,
        name=file_form(file.path.name),
        path=file_form(file.path),
        defect=file.defect,
        certificates=tuple(map(certificate_form, file.certificates)),
    )
