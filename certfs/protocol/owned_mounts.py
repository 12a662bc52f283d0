"""Which mounts of the table are an instance's.

Owns the judgement what of the mount table still belongs to an instance whose supervisor may be dead.
"""

from certfs import procfs
from certfs.protocol.state_file import State


def devices_of(directory: str, state: State | None) -> set[str]:
    """Return the devices that are still this instance's.

    What is mounted in its runtime directory is, whether anybody had the time to write it down or not. At a target only
    those of ``state``, and a number that is free is given to anybody.
    """
    known, targets = (state.devices, state.targets) if state else ((), ())
    return {
        entry.device
        for entry in procfs.mounts()
        if (procfs.is_ours(entry) and entry.point.startswith(f"{directory}/mount-"))
        or (entry.device in known and entry.point in targets)
    }
