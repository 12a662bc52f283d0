"""Which mounts are to be seen, and what that takes: (memory, mount table) → steps. Pure, and level-triggered.

It is evaluated after every event of the supervisor and every change of the mount table, and says again and again what
is still missing; nothing has to be remembered of what was tried. Four rules:

- A mount of ours that belongs to no server any more is detached as soon as it is on top.
- Where the server that is to be seen is not on top, it is attached: in the place of ours, or where there is nothing of
  ours.
- Where something of others lies on top of ours: leave it, and look again when the table changes.
- Where others have bound what has no name any more (a bundle's former generation, as a file): leave it as long as the
  server that has it lives. No other server could show it.

The table says nothing of the past, so a little is remembered (`Memory`): at which places something of ours was seen.
A place that has lost it, without a step of ours, was unmounted by somebody: that is the wish to end the mount
(`unmounted`), or to have a bind mount no more. A mount that is there at another path has moved, because a directory
above it was renamed; whoever owns that may not be who made the mount, so this ends nothing, and the place moves along.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

from certfs.linux.mount_table import outermost
from certfs.procfs import Entry, is_ours, top_at

HIDDEN: Final = "/mount-"
"""In the runtime directory: where root's servers are mounted, and from where their trees are bound."""

_REMOVED: Final = "//deleted"
"""How the kernel ends the root of a bind mount of what has no name any more, such as a generation of a bundle."""

Table = Sequence[Entry]
Key = tuple[int, str, str]
"""Number, device and place of a mount."""


@dataclass(frozen=True, slots=True)
class View:
    """A directory of the FUSE mount and the place where it is seen."""

    root: str
    """From the root of the FUSE mount, such as ``/stunnel``."""
    point: str


@dataclass(frozen=True, slots=True)
class Attach:
    """Bring a view of the server that is to be seen into view, in the place of the device ``over``, if any."""

    view: View
    over: str | None


@dataclass(frozen=True, slots=True)
class Detach:
    """Detach the mount on top of a place, which is one of ``device``."""

    point: str
    device: str


Step = Attach | Detach


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What is known of an instance's mounts beside the table."""

    runtime: str
    targets: tuple[View, ...]
    can_attach: bool
    """Root: views are bound. An ordinary user's server is mounted on its target, and that is its only view."""
    devices: tuple[str, ...] = ()
    """``major:minor`` of every mount of this instance that may be in the table."""
    known: frozenset[Key] = frozenset()
    """The mounts of these devices at the last look, by which a number is told from the same one of somebody else's."""
    live: str | None = None
    """The device that was to be seen at the last look."""
    binds: tuple[View, ...] = ()
    """Bind mounts that others made of ours; they come back with ours."""
    draining: frozenset[str] = frozenset()
    """Devices of replaced servers that live."""
    kept: tuple[Key, ...] = ()
    """Bind mounts of these at the last look, which others made and which come back nowhere."""
    seen: tuple[tuple[int, str], ...] = ()
    """Our youngest mount at each target at the last look: its number, unique while it is mounted, and its device."""
    held: frozenset[str] = frozenset()
    """Places at which something of ours was at the last look, or was put by a step since."""

    @property
    def points(self) -> frozenset[str]:
        """The targets' places."""
        return frozenset(view.point for view in self.targets)


def refresh(memory: Memory, table: Table) -> Memory:
    """Return what is known without the devices that are no longer in the table. Places are those of now.

    The kernel gives the numbers of a mount that is gone to the next one, whoever's and at once: another certfs that is
    mounted at this moment is likely to have both. So a device is ours only while one of its mounts is where it was, or
    shows at another path what was seen at a target: of a dead server only one may be left, beneath another's mount, and
    a directory above both may have been renamed.
    """
    keys = {entry.key for entry in table if is_ours(entry)}
    devices = {device for _, device, _ in keys & memory.known}
    numbers = {key[:2] for key in memory.known}
    devices |= {key[1] for key in kept(memory, table) if key[:2] in numbers}  # one may have moved
    devices |= _devices_at_targets(memory, table)
    memory = replace(
        memory,
        devices=tuple(each for each in memory.devices if each in devices),
        known=frozenset(key for key in keys if key[1] in devices),
    )
    return _follow(memory, table)


def _devices_at_targets(memory: Memory, table: Table) -> set[str]:
    """Return the devices of what was at the targets at the last look, wherever it is now.

    An ordinary user's only view is the root of the file system, as another's is.
    """
    if not memory.can_attach:
        return set()
    last = {
        (number, device, target.root)
        for target, (number, device) in zip(memory.targets, memory.seen, strict=False)
    }
    here = {(entry.mount_id, entry.device, entry.root) for entry in table if is_ours(entry)}
    return {device for _, device, _ in last & here}


def mounted(memory: Memory, entry: Entry) -> Memory:
    """Return what is known with a new mount of ours."""
    devices = (*memory.devices, entry.device)
    return replace(memory, devices=devices, known=memory.known | {entry.key})


def adopted(memory: Memory, table: Table, devices: Collection[str]) -> Memory:
    """Return what is known with the mounts of another supervisor's ``devices``."""
    known = frozenset(entry.key for entry in table if entry.device in devices and is_ours(entry))
    return replace(memory, devices=tuple(devices), known=known)


def _follow(memory: Memory, table: Table) -> Memory:
    points = {(entry.mount_id, entry.device): entry.point for entry in table}
    moved = {
        target.point: points[mount]
        for target, mount in zip(memory.targets, memory.seen, strict=False)
        if mount[1] in memory.devices and points.get(mount, target.point) != target.point
    }
    return replace(
        memory,
        targets=tuple(
            View(each.root, moved.get(each.point, each.point)) for each in memory.targets
        ),
        held=frozenset(moved.get(point, point) for point in memory.held),
    )


def remember_binds(memory: Memory, table: Table) -> Memory:
    """Return what is known with the bind mounts that others have made of what is in view, before a step of ours."""
    if memory.live is None:
        return memory
    bound = [entry for entry in table if entry.device == memory.live and _by_others(memory, entry)]
    seen = {View(entry.root, entry.point): None for entry in bound if not _has_no_name(entry)}
    others = {entry.point for entry in bound if _has_no_name(entry)}
    seen |= {
        view: None
        for view in memory.binds
        if view.point not in others and _ours_at(memory, table, view.point)
    }
    return replace(memory, binds=tuple(seen))


def settle(memory: Memory, table: Table, live: str | None) -> Memory:
    """Return what is known after the steps of ours, with ``live`` in view."""
    here = {
        entry.point: (entry.mount_id, entry.device) for entry in table if _is_ours(memory, entry)
    }
    seen = tuple(here.get(view.point, (0, "")) for view in memory.targets)
    return replace(memory, held=frozenset(here), live=live, seen=seen, kept=kept(memory, table))


def taken(memory: Memory, table: Table, step: Step, *, failed: bool = False) -> Memory:
    """Return what is known after a step that was taken when the mount table was ``table``.

    Whatever it brought into view is known at once: others may unmount it before the table is read again.
    """
    if isinstance(step, Attach):
        point = step.view.point
        # One that failed may have detached what was there, and then nobody else did.
        return replace(memory, held=memory.held - {point} if failed else memory.held | {point})
    remains = sum(entry.point == step.point and _is_ours(memory, entry) for entry in table) > 1
    if failed or remains:
        return memory
    known = frozenset(key for key in memory.known if key[1:] != (step.device, step.point))
    return replace(memory, held=memory.held - {step.point}, known=known)


def unmounted(memory: Memory, table: Table) -> bool:
    """Whether somebody has taken ours away from a target."""
    lost = memory.points & memory.held
    return any(not _ours_at(memory, table, point) for point in lost)


def covered(memory: Memory, table: Table) -> tuple[str, ...]:
    """Return the places where ours is beneath somebody else's."""
    points = dict.fromkeys(entry.point for entry in table if _is_ours(memory, entry))
    tops = {point: top_at(table, point) for point in points}
    return tuple(point for point, top in tops.items() if not _is_ours(memory, top))


def out_of_reach(memory: Memory, table: Table) -> tuple[str, ...]:
    """Return the targets where ours still is after all that can be reached was detached: one above is covered."""
    here = {entry.point for entry in table if _is_ours(memory, entry)}
    return tuple(view.point for view in memory.targets if view.point in here)


def shows(memory: Memory, table: Table, live: str) -> bool:
    """Whether every target has the device ``live`` in view, or ours beneath somebody else's."""
    over_ours = covered(memory, table)
    tops = {point: top_at(table, point) for point in memory.points}
    return all(
        point in over_ours or (top is not None and top.device == live)
        for point, top in tops.items()
    )


def kept(memory: Memory, table: Table) -> tuple[Key, ...]:
    """Return the bind mounts that stay because a replaced server alone has what they show."""
    return tuple(entry.key for entry in table if _is_kept(memory, entry))


def steps(
    memory: Memory,
    table: Table,
    *,
    live: str | None,
    alive: Collection[str],
    failed: Collection[Step] = (),
) -> tuple[Step, ...]:
    """Return what is to be done next for ``live`` to be seen, or plain files; empty if nothing is left to do.

    ``alive`` are the devices that belong to a server, ``failed`` the steps that cannot be taken now. Look again after
    these: a mount may propagate to other places.
    """
    if live in memory.devices:
        for view in (*memory.targets, *memory.binds):
            step = _towards(memory, table, view, live)
            if step and step not in failed:
                return (step,)
    dead = set(memory.devices) - set(alive)
    # The youngest first: binds, which people see, before the hidden mount that they are made of.
    tops = [entry for entry in reversed([*outermost(table, dead)]) if not _is_kept(memory, entry)]
    detaching = (Detach(entry.point, entry.device) for entry in tops)
    return tuple(step for step in detaching if step not in failed)


def _towards(memory: Memory, table: Table, view: View, live: str) -> Step | None:
    top = top_at(table, view.point)
    if top is not None and top.device == live:
        return None
    here = _ours_at(memory, table, view.point)
    if top is not None and top.device in here:
        if live in here:
            return Detach(view.point, top.device)
        return Attach(view, top.device) if memory.can_attach else None
    if here or view.point in memory.held or not memory.can_attach:
        return None
    return Attach(view, None)


def _ours_at(memory: Memory, table: Table, point: str) -> set[str]:
    return {entry.device for entry in table if entry.point == point and _is_ours(memory, entry)}


def _is_kept(memory: Memory, entry: Entry) -> bool:
    drains = entry.device in memory.draining and is_ours(entry)
    return drains and _has_no_name(entry) and _by_others(memory, entry)


def _has_no_name(entry: Entry) -> bool:
    return entry.root.endswith(_REMOVED)


def _by_others(memory: Memory, entry: Entry) -> bool:
    hidden = entry.point.startswith(memory.runtime + HIDDEN)
    return entry.point not in memory.points and not hidden


def _is_ours(memory: Memory, entry: Entry | None) -> bool:
    return entry is not None and is_ours(entry) and entry.device in memory.devices
