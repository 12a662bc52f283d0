"""Which mounts of the table are an instance's.

Owns the judgement what of the mount table still belongs to an instance whose supervisor may be dead.
"""

from certfs import procfs
from certfs.procfs import Entry
from certfs.protocol.state_file import State


def devices_of(directory: str, state: State | None) -> set[str]:
    """Return the devices that are still this instance's."""
    return {entry.device for entry in entries_of(directory, state)}


def entries_of(directory: str, state: State | None) -> list[Entry]:
    """Return the mounts that are still this instance's, at places of its own.

    What is mounted in its runtime directory is, whether anybody had the time to write it down or not. At a target only
    those of ``state``, elsewhere only what it names; a number that is free is given to anybody.
    """
    known, targets = (state.devices, state.targets) if state else ((), ())
    kept = {(each.mount_id, each.device, each.point) for each in state.kept} if state else ()
    return [
        entry
        for entry in procfs.mounts()
        if (procfs.is_ours(entry) and entry.point.startswith(f"{directory}/mount-"))
        or (entry.device in known and entry.point in targets)
        or entry.key in kept
    ]
