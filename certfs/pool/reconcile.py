"""What follows from three views of a directory: what was agreed last, what is here, what the pool has.

No files, no engine, no clock. Owns the table of conflicts:

======================  =======================  ==========================================
here, since agreed      in the pool, since       what follows
======================  =======================  ==========================================
changed or removed      as it was                published; kept and shown if it may not be
as it was               changed or removed       applied
removed                 changed                  the pool's comes
changed                 removed                  removed, the local one set aside
changed                 changed                  the pool's wins, the local one set aside
equal to the pool       equal                    agreed
======================  =======================  ==========================================

A name that is unsettled (it is being written) is left as it is, and not published either. Others that are to be
published wait for it a while, and so do others that the pool has changed with it: they may have changed together.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Final

from certfs.core.text import counted
from certfs.pool.keys import Digest

PATIENCE_SECONDS: Final = 10.0
"""How long a file that is being written holds up others that changed with it."""

Content = Mapping[bytes, Digest]
"""The names of a directory and what each holds."""

_FEW: Final = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, each by name; ``None`` stands for no such file.

    ``agreed`` is what both have already. ``apply`` comes from the pool, ``aside`` of it puts the local file away first.
    ``publish`` goes to the pool. ``drift`` differs and stays. ``held`` says why nothing is published, empty if it is.
    """

    agreed: dict[bytes, Digest | None] = field(default_factory=dict)
    apply: dict[bytes, Digest | None] = field(default_factory=dict)
    aside: frozenset[bytes] = frozenset()
    publish: dict[bytes, Digest | None] = field(default_factory=dict)
    drift: frozenset[bytes] = frozenset()
    held: str = ""


class Patience:
    """Waiting for files of a directory that are being written, so that what changed together goes together.

    One that is being written for longer does not hold up the others again until it has been closed.
    """

    def __init__(self) -> None:
        self._since: float | None = None
        self._in_vain: AbstractSet[bytes] = frozenset()

    def waits(self, missed: AbstractSet[bytes], unsettled: AbstractSet[bytes], now: float) -> bool:
        """Whether to wait for names that are ``missed`` in what is to happen; ``now`` in seconds, monotonic.

        They are some of those that are ``unsettled``.
        """
        self._in_vain &= unsettled
        if missed <= self._in_vain:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        if now - self._since < PATIENCE_SECONDS:
            return True
        self._in_vain = unsettled
        self._since = None
        return False


def reconcile(  # noqa: PLR0913 - three views, and what changes what follows from them
    base: Content,
    local: Content | None,
    remote: Content,
    *,
    may_publish: bool,
    kept_local: Content,
    unsettled: AbstractSet[bytes] = frozenset(),
    accept_deletions: bool = False,
    was_held: bool = False,
) -> Plan:
    """Return what follows; ``local`` is None where the directory is missing.

    ``kept_local`` are names that were here before this host joined: while they hold that, they are not published.
    ``was_held`` if the plan before was: then no deletion is published until all are accepted, or the files are back,
    although the pool may have removed so many of them meanwhile that only a few are left.
    """
    here: Content = local if local is not None else {}
    reason = "" if accept_deletions else _held(base, local, unsettled, was_held=was_held)
    plan = Plan(held=reason)
    drift: set[bytes] = set()
    aside: set[bytes] = set()
    for name in sorted(base.keys() | here.keys() | remote.keys()):
        if name in unsettled:
            continue
        was, mine, theirs = base.get(name), here.get(name), remote.get(name)
        if mine == theirs:
            if was != mine:
                plan.agreed[name] = mine
        elif theirs != was:
            plan.apply[name] = theirs
            if mine not in {None, was}:
                aside.add(name)
        elif reason or not may_publish or (mine is not None and kept_local.get(name) == mine):
            drift.add(name)
        else:
            plan.publish[name] = mine
    return Plan(
        plan.agreed, plan.apply, frozenset(aside), plan.publish, frozenset(drift), plan.held
    )


def restored(plan: Plan, remote: Content) -> dict[bytes, Digest | None]:
    """Return what a sync applies: what the plan does, and the pool's for every name that differs and the pool has."""
    missing = {name: remote[name] for name in plan.drift if name in remote}
    return {**missing, **plan.apply}


def _held(
    base: Content, local: Content | None, unsettled: AbstractSet[bytes], *, was_held: bool
) -> str:
    """Return why what is missing here is not believed, empty if it is."""
    if local is None:
        return "the directory is missing" if base else ""
    lost = [name for name in base if name not in local and name not in unsettled]
    if len(lost) > max(_FEW, len(base) // 2) or (was_held and lost):
        return f"{len(lost)} of {counted(len(base), 'name')} gone at once"
    return ""
