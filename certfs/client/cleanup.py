"""What an instance without supervisor leaves: processes, mounts, files; and how all of it is ended."""

from certfs.linux import mount_table
from certfs.protocol import state_file, timeouts
from certfs.protocol.owned_mounts import devices_of
from certfs.supervisor.janitor import leave_behind
from certfs.supervisor.stand_in import remove


def end_leftovers(directory: str) -> tuple[OSError, ...]:
    """End what is left of the instance with this runtime directory; return what could not be detached.

    A supervisor that does not answer is killed as well. What is beneath somebody else's mount is left to a janitor. The
    state file goes only when nothing else is left.
    """
    state = state_file.read_state(directory)
    devices = devices_of(directory, state)
    processes = (state.supervisor, state.server) if state else ()
    if state and state.janitor:
        state.janitor.kill_session()  # before the others, whose end would set it to work beside this process
    for process in processes:
        if process:
            process.kill()
    detached = mount_table.detach(devices, mount_table.unmounter())
    # Not before: a supervisor that nobody could name takes the end of a server whose mount is there for a death.
    for device in devices:
        mount_table.try_abort(device)
    if detached.left:
        leave_behind(detached.left)
    errors = detached.errors
    for process in processes:
        if process:
            process.ends_within(timeouts.CLEANUP)
    if state and not errors:
        remove(state.stores, state.targets)
    if not errors:
        state_file.clear_instance(directory)
    return errors
