"""Mending what can be mended without a decision, and saying what is left.

Owns the loop of judging and mending: one remedy may bring out the next finding, such as the missing
certificate in a directory that was missing itself.
"""

from dataclasses import dataclass

from certfs.identity.finding import Finding
from certfs.identity.health import judge
from certfs.identity.paths import HostPaths, exclusive, file_errors

_ROUNDS = 5
"""More than any chain of remedies is long."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was mended (with a dry run: would be), and what is left to the admin."""

    mended: tuple[Finding, ...]
    left: tuple[Finding, ...]


def repair(paths: HostPaths, *, dry_run: bool = False) -> RepairReport:
    """Apply the remedies of all findings until there is none left that has one."""
    if dry_run:
        return _sorted_out(judge(paths))
    mended: list[Finding] = []
    with exclusive(paths.xensource):
        for _ in range(_ROUNDS):
            found = _sorted_out(judge(paths))
            if not found.mended:
                break
            for finding in found.mended:
                if finding.remedy is not None:
                    with file_errors(finding.file):
                        finding.remedy.apply()
                    mended.append(finding)
    return RepairReport(tuple(mended), judge(paths))


def _sorted_out(findings: tuple[Finding, ...]) -> RepairReport:
    return RepairReport(
        tuple(finding for finding in findings if finding.remedy is not None),
        tuple(finding for finding in findings if finding.remedy is None),
    )
