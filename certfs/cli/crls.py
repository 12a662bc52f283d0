"""The commands about revocation lists: installing, removing and listing them.

Owns their options and what they say; the work is done in ``certfs.identity.crls``.
"""

from pathlib import Path

import click
from click.shell_completion import CompletionItem

from certfs.cli.answers import (
    InputFile,
    dry_run_option,
    json_option,
    names_beginning,
    read_document,
    say,
    store_option,
    warn,
)
from certfs.cli.json_forms import Crl as CrlForm
from certfs.cli.json_forms import CrlChanged, CrlFiles, answer, file_form
from certfs.cli.json_forms import CrlFile as CrlFileForm
from certfs.identity.crls import Crl, CrlChange, install_crl, installed_crls, uninstall_crl
from certfs.identity.paths import DOM0, HostPaths
from certfs.identity.validate import iso


def _complete_name(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    paths: HostPaths = context.params.get("paths") or DOM0
    return names_beginning(paths.crls, incomplete)


@click.command(
    "pool-install-crl", epilog="\b\nExample:\n  certfs pool-install-crl company-root-crl.pem"
)
@click.argument("file", type=InputFile())
@click.option("--name", help="Its name in crls, by default the file's own.")
@store_option
@dry_run_option
@json_option
def pool_install_crl(
    *, file: Path, name: str | None, paths: HostPaths, dry_run: bool, as_json: bool
) -> None:
    """Check the revocation list in FILE and have stunnel's clients heed it from now on.

    A list that has expired makes them refuse every certificate of its issuer; it is installed with a warning.
    """
    change = install_crl(
        paths, read_document(file), name=name if name is not None else file.name, dry_run=dry_run
    )
    _tell(change, "installed", dry_run=dry_run, as_json=as_json)


@click.command(
    "pool-uninstall-crl", epilog="\b\nExample:\n  certfs pool-uninstall-crl company-root-crl.pem"
)
@click.argument("name", shell_complete=_complete_name)
@click.option("--force", is_flag=True, help="It is no error if there is none of that name.")
@store_option
@dry_run_option
@json_option
def pool_uninstall_crl(
    *, name: str, force: bool, paths: HostPaths, dry_run: bool, as_json: bool
) -> None:
    """Remove the revocation list NAME: what it revokes is accepted again."""
    change = uninstall_crl(paths, name, force=force, dry_run=dry_run)
    _tell(change, "removed", dry_run=dry_run, as_json=as_json)


@click.command("pool-crl-list", epilog="\b\nExample:\n  certfs pool-crl-list")
@store_option
@json_option
def pool_crl_list(*, paths: HostPaths, as_json: bool) -> None:
    """List the installed revocation lists: issuer, validity, how many certificates each revokes."""
    files = tuple(installed_crls(paths))
    if as_json:
        rows = (
            CrlFileForm(path=file_form(file.path), defect=file.defect, crl=_form(file.crl))
            for file in files
        )
        answer(CrlFiles(crls=tuple(rows)))
        return
    for file in files:
        say(f"{file.path}\n{_lines(file.crl) if file.crl else f'  {file.defect}'}")


def _tell(change: CrlChange, said: str, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        answer(
            CrlChanged(
                path=file_form(change.path),
                changed=change.changed and not dry_run,
                crl=_form(change.crl),
                warnings=change.warnings,
            )
        )
        return
    if not change.changed:
        say(f"{change.path} does not exist: nothing to do")
        return
    say(f"{change.path}: {'would be ' if dry_run else ''}{said}")
    if change.crl is not None:
        say(_lines(change.crl))
    warn(*(f"warning: {warning}" for warning in change.warnings))


def _form(crl: Crl | None) -> CrlForm | None:
    if crl is None:
        return None
    return CrlForm(
        issuer=crl.issuer,
        last_update=iso(crl.last_update),
        next_update=iso(crl.next_update) if crl.next_update is not None else None,
        revoked=crl.revoked,
    )


def _lines(crl: Crl) -> str:
    until = f" to {iso(crl.next_update)}" if crl.next_update is not None else ", without end"
    return (
        f"  issuer    {crl.issuer}\n"
        f"  valid     {iso(crl.last_update)}{until}\n"
        f"  revokes   {crl.revoked}"
    )
