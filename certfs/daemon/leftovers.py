"""What an instance without supervisor leaves: processes, mounts, files; and how all of it is ended.

Owns the judgement what of the mount table still belongs to such an instance.
"""

import os
from contextlib import suppress
from typing import Final

from certfs.daemon import mounts, runtime
from certfs.daemon.janitor import leave_behind
from certfs.daemon.job import FILESYSTEM_TYPE
from certfs.daemon.runtime import State
from certfs.daemon.shadow import remove_links

END_SECONDS: Final = 5.0


def end_leftovers(directory: str) -> tuple[OSError, ...]:
    """End what is left of the instance with this runtime directory; return what could not be detached.

    A supervisor that does not answer is killed as well. What is beneath somebody else's mount is left to a janitor. The
    state file goes only when nothing else is left.
    """
    state = runtime.read_state(directory)
    devices = devices_of(directory, state)
    for device in devices:
        mounts.try_abort(device)
    processes = (state.supervisor, state.server) if state else ()
    if state and state.janitor:
        state.janitor.kill_session()  # before the others, whose end would set it to work beside this process
    for process in processes:
        if process:
            process.kill()
    detached = mounts.detach(devices, mounts.unmounter())
    if detached.left:
        leave_behind(detached.left)
    errors = detached.errors
    for process in processes:
        if process:
            process.ends_within(END_SECONDS)
    if state and not errors:
        _lift_shadows(state)
    if not errors:
        runtime.clear_instance(directory)
    return errors


def _lift_shadows(state: State) -> None:
    for target, store in zip(state.targets, state.stores, strict=True):
        if target != store:
            with suppress(OSError):
                fd = os.open(target, os.O_PATH | os.O_DIRECTORY)
                remove_links(store, fd)
                os.close(fd)


def devices_of(directory: str, state: State | None) -> set[str]:
    """Return the devices that are still this instance's.

    What is mounted in its runtime directory is, whether anybody had the time to write it down or not. At a target only
    those of ``state``, and a number that is free is given to anybody.
    """
    known, targets = (state.devices, state.targets) if state else ((), ())
    return {
        entry.device
        for entry in mounts.table()
        if (entry.kind == FILESYSTEM_TYPE and entry.point.startswith(f"{directory}/mount-"))
        or (entry.device in known and entry.point in targets)
    }
