"""What an instance without supervisor leaves: processes, mounts, files; and how all of it is ended."""

from certfs.linux import mount_table
from certfs.linux.processes import ProcessId
from certfs.protocol import state_file, timeouts
from certfs.protocol.owned_mounts import entries_of
from certfs.supervisor.janitor import leave_behind
from certfs.supervisor.stand_in import remove


def end_leftovers(directory: str) -> tuple[OSError, ...]:
    """End what is left of the instance with this runtime directory; return what could not be detached.

    A supervisor that does not answer is killed as well. What is beneath somebody else's mount is left to a janitor. The
    state file goes only when nothing else is left.
    """
    state = state_file.read_state(directory)
    entries = entries_of(directory, state)
    devices = {entry.device for entry in entries}
    processes = state.processes if state else ()
    if state and state.janitor:
        state.janitor.kill_session()  # before the others, whose end would set it to work beside this process
    # All are stopped before the first one dies: a server whose supervisor is dead would start another one.
    for end in (ProcessId.stop, ProcessId.kill):
        for process in processes:
            end(process)
    with mount_table.held(entries) as there:
        detached = mount_table.detach(devices, mount_table.unmounter())
        # Not before: a supervisor that nobody could name takes the end of a server whose mount is there for a death.
        for device in there:
            mount_table.abort(device)
    if detached.left:
        leave_behind(detached.left)
    errors = detached.errors
    for process in processes:
        process.ends_within(timeouts.CLEANUP)
    if state and not errors:
        remove(state.stores, state.targets)
    if not errors:
        state_file.clear_instance(directory)
    return errors
