"""Every limit of time that processes of certfs set each other, in seconds, and how one follows from another.

The janitor's script, the unit and docs/operations.md hold copies of some of them: tests/protocol/test_timeouts.py.
"""

from typing import Final

# --- the server and its supervisor

BEAT: Final = 2.5
"""Between two beats of a server."""
HANG: Final = 10.0
"""A server that answers nobody for so long hangs, and so does one with a request that waits for so long (I15)."""
SILENCE: Final = HANG + BEAT
"""Without a beat, after which a server hangs: the last one may have come right before it stopped to answer."""
START: Final = 120.0
"""Until a server must answer: the first scan of a very large store takes its time."""
FLUSH: Final = 5.0
"""For a server to bring the plain copies up to date, before they come into view."""
SUPERVISOR_SILENCE: Final = 3 * FLUSH + BEAT
"""Beats that a supervisor leaves unread for so long mean that it hangs: it may wait for a slow store in between."""
SUCCESSOR_RETRY: Final = 1.0
"""Between two tries of a server to start a supervisor."""
LINGER: Final = 3600.0
"""For a server that was replaced or unmounted to serve what is still open, and between two looks for binds of it."""
END: Final = 1.0
"""For a server to end after its mount is gone, unless files are still open."""
EXIT_STATUS: Final = 0.1
"""For the status of a process that died to be known: it is missing while a thread of it waits for a disk."""

# --- after a death

HEALTHY: Final = 60.0
"""A server that served for so long ends a row of deaths."""
LONGEST_DELAY: Final = 5.0
"""Before the next server: so old may what is plain become (I15)."""
LONGEST_DELAY_KILLED: Final = 0.25
"""The same after SIGKILL, which comes from outside and is no defect of the server."""

JANITOR: Final = 1.0
"""For a supervisor to deal with a server that died, before the janitor does."""

# --- mounts

ATTACH: Final = 5.0
"""For one directory to come into view, which resolves a path through the new server."""
UNMOUNT: Final = 5.0
"""For fusermount3 to mount or unmount."""
TABLE: Final = 0.05
"""From a change of the mount table to the look at it: where containers come and go it changes all the time."""
STORE: Final = 5.0
"""For the store to answer a process that must not wait for it."""

# --- commands

ANSWER: Final = 25.0
"""For a supervisor to answer a request; it may wait for `FLUSH` and for `ATTACH` before."""
RESTART: Final = START + 10.0
"""For a supervisor to have replaced its server, or started the first one."""
CONNECT: Final = 5.0
"""For a supervisor to be there that is being replaced."""
STOPPED: Final = SUPERVISOR_SILENCE + BEAT
"""For a stopped supervisor to be replaced by its server, unless that is stopped as well."""
ENDING: Final = 2 * FLUSH
"""For an instance to end whose mount is gone already: it may have to wait for a disk."""
LOCK: Final = 3.0
"""For the lock of an instance that is ending to be free."""
CLEANUP: Final = 5.0
"""For processes to end that were killed."""
PROBE: Final = 2.0
"""For a mount to answer whether it is alive."""
STATUS: Final = 3.0
"""For a mount to answer how it is."""
COMMAND: Final = 10.0
"""For one call of a command on a file system to come back; many calls may take as long as they take."""
COMMAND_THAT_STARTS: Final = RESTART + COMMAND
"""The same for a command that also waits for supervisor and server."""
