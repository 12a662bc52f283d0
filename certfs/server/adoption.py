"""What a server does for its supervisor: show that it lives, wait for its turn to mount, replace one that died.

Called in W; the other side is `certfs.supervisor.supervisor`.
"""

import ctypes
import os
import socket
import threading
from dataclasses import replace

from certfs.linux.descriptors import close_all_but
from certfs.linux.processes import ProcessId, start
from certfs.protocol.launch_spec import Adoption, Order, command, inbox
from certfs.protocol.link import IN_CHARGE, LOADED, MESSAGE_BYTES, MOUNT, Job

_CLONE_FILES = 0x400
_ORPHAN = ("/bin/sh", "-c", '"$@" &', "sh")
"""The shell ends at once, and what it started is init's child: W has no zombie to collect later."""


def show_life(job: Job) -> Job:
    """Let the supervisor see at once when this process dies; return ``job`` without the write end of its life pipe.

    A process that is killed ends only when the last of its threads has, and one that waits for a disk (in fsync(2) for
    some caller) does so for seconds, in which nobody is answered. So a thread that does nothing holds the write end,
    alone: it has a table of descriptors of its own (unshare(2), CLONE_FILES), which is closed when it dies, in an
    instant. To be called before anything is opened that must be closed with the process.
    """
    read_end, write_end = job.life
    started = threading.Event()
    thread = threading.Thread(target=_live, args=(write_end, started), name="life", daemon=True)
    thread.start()
    started.wait()
    os.close(write_end)
    return replace(job, life=(read_end, -1))


def _live(write_end: int, started: threading.Event) -> None:
    if ctypes.CDLL(None).unshare(_CLONE_FILES) == 0:
        close_all_but((write_end,))
    else:
        # Forbidden here: the write end, under another number, is closed with the process.
        os.dup(write_end)
    started.set()
    threading.Event().wait()


def await_turn(job: Job) -> None:
    """Wait until the place of the mount is free, if another server is still mounted there.

    Called once everything is read, so that the place is free for as short a time as possible. SystemExit if the
    supervisor ends meanwhile.
    """
    if not job.waits:
        return
    with socket.socket(fileno=os.dup(job.link_fd)) as link:
        try:
            link.send(LOADED)
            while (message := link.recv(MESSAGE_BYTES)) != MOUNT:
                if not message.startswith(IN_CHARGE):
                    raise SystemExit(1)
        except OSError:
            raise SystemExit(1) from None


def start_successor(job: Job, janitor: ProcessId | None) -> Job:
    """Start a supervisor for this very process, and return ``job`` with the link to it.

    ``janitor`` is the one of the supervisor before, which the new one ends.

    Blocks for a few milliseconds. The old link of ``job`` is closed. Raises OSError when no process can be started;
    ``job`` is then as it was: try again in a second.
    """
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        adoption = Adoption(
            process=ProcessId.of(os.getpid()),
            link_fd=theirs.fileno(),
            life_fd=job.life[0],
            mountpoint=job.mountpoint,
            passive=job.passive,
            janitor=janitor,
        )
        order = Order(mount=job.mount, adopt=adoption)
        _start(order)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    os.close(job.link_fd)
    return replace(job, link_fd=ours.detach())


def _start(order: Order) -> None:
    box = inbox(order.to_json())
    try:
        # dup2 onto the same number clears close-on-exec in the child alone (posix_spawn(3)).
        same = [(os.POSIX_SPAWN_DUP2, fd, fd) for fd in (*order.inherited(), box)]
        silent = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
        arguments = (*_ORPHAN, *command(box))
        try:
            pid = os.posix_spawn(
                arguments[0], arguments, os.environ, file_actions=[silent, *same], setsid=True
            )
        except NotImplementedError:  # a Python that was built with glibc before 2.26
            pid = start(arguments, keep=(*order.inherited(), box))
    finally:
        os.close(box)
    os.waitpid(pid, 0)
