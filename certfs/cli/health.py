"""The command that mends a host's certificates; ``certfs check`` shows the same findings."""

import click

from certfs.cli.answers import dry_run_option, json_option, say, store_option
from certfs.cli.json_forms import SEVERITIES, Mended, Repaired, answer, file_form
from certfs.identity import repair as repairs
from certfs.identity.finding import Finding
from certfs.identity.paths import HostPaths


@click.command("repair", epilog="\b\nExample:\n  certfs repair --dry-run")
@store_option
@dry_run_option
@json_option
def repair(*, paths: HostPaths, dry_run: bool, as_json: bool) -> None:
    """Mend what can be mended without a decision, and say what is left to you.

    The exit code is 0 if nothing is left, 1 if only warnings are, 2 if something critical is.
    """
    report = repairs.repair(paths, dry_run=dry_run)
    if as_json:
        answer(
            Repaired(
                dry_run=dry_run,
                mended=tuple(map(_form, report.mended)),
                left=tuple(map(_form, report.left)),
            )
        )
    else:
        for finding in report.mended:
            said = "would" if dry_run else "did"
            say(f"{finding.file} {finding.what}\n  {said}: {finding.remedy}")
        for finding in report.left:
            say(f"{finding.file} {finding.what}\n  left to you: {finding.mend}")
        if not report.mended and not report.left:
            say("nothing to repair")
    raise SystemExit(max((finding.severity for finding in report.left), default=0))


def _form(finding: Finding) -> Mended:
    return Mended(
        severity=SEVERITIES[finding.severity],
        name=finding.name,
        file=file_form(finding.file),
        what=finding.what,
        mend=finding.mend,
        remedy=str(finding.remedy) if finding.remedy is not None else "",
    )
