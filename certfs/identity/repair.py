"""Mending what can be mended without a decision, and saying what is left.

Owns the plan: the remedies of all findings, and what follows from them, such as the missing certificate in a directory
that is missing itself. A dry run shows the plan and a repair carries it out, so both name the same.
"""

from dataclasses import dataclass

from certfs.identity.bundles import bundle_places, is_made_by_a_mount
from certfs.identity.finding import Finding
from certfs.identity.health import bundle_finding, judge, own_certificate_finding
from certfs.identity.listing import find_host_uuid
from certfs.identity.paths import HostPaths, exclusive, file_errors
from certfs.identity.refresh import Stage, read_pair, read_public, read_stage
from certfs.identity.remedies import (
    Generate,
    MakeDirectory,
    PublishCertificate,
    Remedy,
    Rename,
    UpdateBundle,
)

_ROUNDS = 5
"""More than any chain of remedies that the plan did not foresee is long."""


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What was mended (with a dry run: would be), and what is left to the admin."""

    mended: tuple[Finding, ...]
    left: tuple[Finding, ...]


def repair(paths: HostPaths, *, dry_run: bool = False) -> RepairReport:
    """Carry out the remedies of all findings until there is none left that has one."""
    if dry_run:
        findings = judge(paths)
        left = tuple(finding for finding in findings if finding.remedy is None)
        return RepairReport(_plan(paths, findings), left)
    mended: list[Finding] = []
    with exclusive(paths.xensource):
        for _ in range(_ROUNDS):
            plan = _plan(paths, judge(paths))
            if not plan:
                break
            for finding in plan:
                if finding.remedy is not None:
                    with file_errors(finding.file):
                        finding.remedy.apply()
                    mended.append(finding)
    return RepairReport(tuple(mended), judge(paths))


def _plan(paths: HostPaths, findings: tuple[Finding, ...]) -> tuple[Finding, ...]:
    """Return what is to be mended, in an order in which each remedy finds what it needs."""
    plan = [finding for finding in findings if finding.remedy is not None]
    plan += _publication(paths, plan)
    plan += _bundles(paths, plan)
    return tuple(sorted(plan, key=lambda finding: _order(finding.remedy)))


def _order(remedy: Remedy | None) -> int:
    match remedy:
        case MakeDirectory() | Rename():
            return 0
        case PublishCertificate():
            return 2
        case UpdateBundle():
            return 3
        case _:
            return 1


def _publication(paths: HostPaths, plan: list[Finding]) -> list[Finding]:
    """Return the publication of the pool certificate that follows from a new key, or a new directory for it."""
    uuid = find_host_uuid(paths)
    remedies = [finding.remedy for finding in plan]
    if uuid is None or any(isinstance(remedy, PublishCertificate) for remedy in remedies):
        return []
    public = paths.certs_pool / f"{uuid}.pem"
    pool_pem = paths.pool_pem
    directory = pair = None
    for remedy in remedies:
        match remedy:
            case MakeDirectory(path=path) if path == paths.certs_pool:
                directory = path
            case Rename(path=path, target=target) if target == paths.certs_pool:
                directory = path
            case Rename(path=path, target=target) if target == pool_pem:
                pair = path
            case Generate(path=path) if path == pool_pem:
                return [own_certificate_finding(pool_pem, public)]
    if directory is None or read_stage(paths, host_uuid=uuid) is not Stage.IDLE:
        return []
    pem = read_pair(pair or pool_pem)
    if pem is None or read_public(directory / public.name) == pem.leaf:
        return []
    return [own_certificate_finding(pool_pem, public)]


def _bundles(paths: HostPaths, plan: list[Finding]) -> list[Finding]:
    """Return the bundles that are to be written because of what the plan changes in their directories."""
    written = {f.remedy.place for f in plan if isinstance(f.remedy, UpdateBundle)}
    touched = set()
    for finding in plan:
        match finding.remedy:
            case PublishCertificate(path=path):
                touched.add(path.parent)
            case Rename(target=target):
                touched.add(target)
    return [
        bundle_finding(paths, place)
        for place in bundle_places(paths)
        if place.source in touched and place not in written and not is_made_by_a_mount(place)
    ]
