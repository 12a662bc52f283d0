"""The parts of the supervisor that need no mount: values, policy, the mount table as text, the loop."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfs.daemon import console, control, mounts, processes, runtime
from certfs.daemon.backoff import HEALTHY_SECONDS, LONGEST_SECONDS, LONGEST_WHEN_KILLED, Strikes
from certfs.daemon.clients import MOST_CLIENTS, Client, Clients
from certfs.daemon.control import Reply
from certfs.daemon.job import Failure, Job, Mount, Tree, failure_from, failure_message
from certfs.daemon.order import Adoption, Order, inbox
from certfs.daemon.outcome import Outcome, outcome_from_json
from certfs.daemon.processes import ProcessId
from certfs.daemon.reactor import Reactor
from certfs.daemon.runtime import Event, State
from certfs.errors import PrivilegeError

NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name).map(os.fsdecode)


def strikes(count: int, *, served: float = 1.0) -> Strikes:
    """Return what ``count`` deaths in a row come to."""
    result = Strikes()
    for _ in range(count):
        result = result.after(served)
    return result


def test_the_first_deaths_are_answered_at_once() -> None:
    """Five deaths in a row cost no delay; then it doubles up to a minute (I14)."""
    delays = [strikes(count).delay(killed=False) for count in range(1, 20)]
    assert delays[:8] == [0, 0, 0, 0, 0, 1, 2, 4]
    assert delays[-1] == LONGEST_SECONDS


def test_a_kill_from_outside_is_no_defect() -> None:
    """However often the server is killed with SIGKILL, it is back within 2 s (I14)."""
    assert strikes(100).delay(killed=True) == LONGEST_WHEN_KILLED < 1


def test_a_healthy_server_ends_a_row_of_deaths() -> None:
    """A server that served for a minute starts the count anew."""
    assert strikes(10).after(HEALTHY_SECONDS).delay(killed=False) == 0


def mount_of(target: str, fd: int = 3) -> Mount:
    """Return a standalone mount at ``target``."""
    tree = Tree(name="", store="/store", target=target, fd=fd, beneath_fd=None)
    return Mount(
        mode="standalone",
        trees=(tree,),
        runtime="/run/certfs/x",
        config_file=None,
        allow_other=False,
        journal=False,
    )


@given(target=NAMES)
def test_a_job_survives_its_journey(target: str) -> None:
    """What the supervisor writes into the pipe is what the server reads, whatever bytes the paths hold."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(4)]
    job = Job(
        mount=mount_of(target, fds[0]),
        mountpoint=target,
        passive=True,
        waits=False,
        link_fd=fds[1],
        life=(fds[2], fds[3]),
    )
    try:
        assert Job.receive(inbox(job.to_json())) == job
    finally:
        for fd in fds:
            os.close(fd)


@given(target=NAMES, janitor=st.sampled_from([None, ProcessId(3, 4)]))
def test_an_order_survives_its_journey(target: str, janitor: ProcessId | None) -> None:
    """What starts a supervisor is what it reads."""
    fds = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    adoption = Adoption(
        process=ProcessId(1, 2),
        link_fd=fds[1],
        life_fd=fds[2],
        mountpoint=target,
        passive=False,
        janitor=janitor,
    )
    order = Order(mount=mount_of(target, fds[0]), adopt=adoption)
    try:
        assert Order.receive(inbox(order.to_json())) == order
    finally:
        for fd in fds:
            os.close(fd)


@given(message=st.text(), advice=st.text())
def test_a_failure_survives_its_journey(message: str, advice: str) -> None:
    """A failure arrives as it was sent, on the link and on the control socket; a huge one is cut, not lost."""
    failure = Failure(5, message[:1000], advice[:1000])
    assert failure_from(failure_message(failure)) == failure
    assert Reply.from_json(Reply(failure).to_json()) == Reply(failure)
    assert len(failure_message(Failure(5, message * 10_000, advice))) < 65_536


def test_the_first_outcome_is_told_once() -> None:
    """A command that waits gets one report, and later outcomes are nobody's business."""
    receiving, sending = os.pipe()
    outcome = Outcome(Order(mount=mount_of("/m"), report_fd=sending))
    outcome.tell(Failure(6, "no", "yes"))
    outcome.tell(None)
    with os.fdopen(receiving, "rb") as stream:
        assert outcome_from_json(stream.read()) == Failure(6, "no", "yes")


TABLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /run/certfs/dom0/mount-1 rw - fuse.certfs certfs rw
31 27 0:40 /stunnel /etc/stunnel rw shared:2 - fuse.certfs certfs rw
32 31 0:41 /stunnel /etc/stunnel rw - fuse.certfs certfs rw
33 27 0:40 /stunnel/certs /srv/a\040b\134\011\012\043 rw - fuse.certfs certfs rw
"""


def test_the_mount_table_is_read() -> None:
    """Device, root, place (with its escapes) and type come out of /proc/self/mountinfo (proc(5))."""
    entries = tuple(mounts._parse(TABLE))
    assert [entry.device for entry in entries] == ["0:21", "254:0", "0:40", "0:40", "0:41", "0:40"]
    assert entries[-1].point == "/srv/a b\\\t\n#"
    assert entries[-1].root == "/stunnel/certs"
    assert entries[2].kind == "fuse.certfs"


def test_the_mount_in_view_is_the_one_on_top() -> None:
    """Of several mounts at a place, the one that no other covers is in view."""
    entries = tuple(mounts._parse(TABLE))
    top = mounts.top_at(entries, "/etc/stunnel")
    assert top is not None
    assert top.device == "0:41"
    assert mounts.top_at(entries, "/etc") is None


def test_what_is_beneath_another_mount_is_not_detached() -> None:
    """Detaching a device leaves alone what lies beneath another file system: umount would take that one."""
    entries = tuple(mounts._parse(TABLE))
    assert {entry.point for entry in mounts._outermost(entries, {"0:40"})} == {
        "/run/certfs/dom0/mount-1",
        "/srv/a b\\\t\n#",
    }


@given(path=NAMES, other=NAMES)
def test_instance_names(path: str, other: str) -> None:
    """A mountpoint gives one valid file name, and two mountpoints give two."""
    name = runtime.instance_name("standalone", f"/{path}")
    assert "/" not in name
    assert len(name) <= 255
    if f"/{path}".strip("/") != f"/{other}".strip("/"):
        assert name != runtime.instance_name("standalone", f"/{other}")


def state_of(**changes: object) -> State:
    """Return a state."""
    values: dict[str, object] = {
        "mode": "dom0",
        "phase": "serving",
        "targets": ("/etc/stunnel",),
        "stores": ("/etc/stunnel",),
        "config_file": None,
        "since": 1.5,
        "supervisor": ProcessId(1, 2),
        "server": ProcessId(3, 4),
        "events": (Event(at=1.0, kind="killed", detail="x", plain_seconds=0.1),),
    }
    return State(**{**values, **changes})  # type: ignore[arg-type]


def test_the_state_file(tmp_path: Path) -> None:
    """What a supervisor wrote is read again; of another boot, or damaged, it is as good as absent."""
    runtime.write_state(str(tmp_path), state_of())
    assert runtime.read_state(str(tmp_path)) == state_of()
    runtime.write_state(str(tmp_path), state_of(boot="another"))
    assert runtime.read_state(str(tmp_path)) is None
    (tmp_path / "state.json").write_text('{"version": 1}')
    assert runtime.read_state(str(tmp_path)) is None


def test_the_lock_is_exclusive(tmp_path: Path) -> None:
    """While one process holds the lock of an instance, nobody else gets it."""
    held = runtime.take_lock(str(tmp_path))
    assert held is not None
    assert runtime.await_lock(str(tmp_path), 0.1) is None
    os.close(held)
    again = runtime.take_lock(str(tmp_path))
    assert again is not None
    os.close(again)


def test_a_runtime_directory_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A runtime directory that others can write to is refused: its state could be forged."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run").chmod(0o777)
    monkeypatch.setenv(runtime.OVERRIDE, str(tmp_path / "run"))
    with pytest.raises(PrivilegeError, match="only you can write"):
        runtime.make_instance("dom0", "/etc")


def test_a_process_is_not_mistaken_for_another() -> None:
    """A process that has ended is not alive, also when its number is taken again."""
    myself = ProcessId.of(os.getpid())
    assert myself.alive()
    assert not ProcessId(myself.pid, myself.started + 1).alive()
    identity = ProcessId.of(processes.start(("/bin/sh", "-c", "exit 3"), keep=()))
    assert identity.ends_within(5)
    assert identity.exit_code(5) == 3
    with pytest.raises(ProcessLookupError):
        ProcessId.of(identity.pid)
    assert processes.reap(identity.pid)
    assert identity.exit_code(0) is None


def test_a_helper_that_does_not_come_back() -> None:
    """What waits for ever in a child process is ended after its time, and errors come back with errno and name."""

    def fail() -> None:
        raise FileNotFoundError(2, "x", "/some/where")

    timeout = processes.in_child(lambda: time.sleep(60), 0.2)
    assert isinstance(timeout, TimeoutError)
    error = processes.in_child(fail, 5)
    assert error is not None
    assert (error.errno, error.filename) == (2, "/some/where")
    assert processes.in_child(lambda: None, 5) is None


LIVING = """
import sys, time
from certfs.daemon.adoption import show_life
from certfs.daemon.job import Job, Mount

mount = Mount(mode="standalone", trees=(), runtime="", config_file=None, allow_other=False, journal=False)
life = (int(sys.argv[1]), int(sys.argv[2]))
show_life(Job(mount=mount, mountpoint="", passive=False, waits=False, life=life))
print("ready", flush=True)
memory = bytearray(200 << 20)  # takes its time to be given back
time.sleep(60)
"""


def test_a_death_is_seen_before_the_process_has_ended() -> None:
    """The life pipe ends when a process is killed, before the process has; nobody else holds it (I14)."""
    life = os.pipe()
    talk, ear = os.pipe()
    command = (sys.executable, "-c", LIVING, *map(str, life))
    process = ProcessId.of(processes.start(command, keep=life, output=ear))
    os.close(life[1])
    os.close(ear)
    assert os.read(talk, 100).startswith(b"ready")
    ends = [
        os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")
    ]
    assert ends.count(os.readlink(f"/proc/self/fd/{life[0]}")) == 1  # the read end
    process.kill()
    assert os.read(life[0], 1) == b""
    assert process.exit_code(5) == -signal.SIGKILL
    assert processes.wait(process.pid, 5) == -signal.SIGKILL
    for fd in (life[0], talk):
        os.close(fd)


def test_how_a_process_ended_is_said() -> None:
    """The log says by which signal or with which status a server ended."""
    assert processes.manner(-signal.SIGSEGV) == "was killed by SIGSEGV"
    assert processes.manner(3) == "ended unasked with status 3"
    assert processes.manner(None) == "died"


def test_the_loop_knows_when_it_was_held_up() -> None:
    """A deadline that passed while the process itself did not run is announced before it is acted upon (I15)."""
    reactor, happened = Reactor(), list[str]()
    reactor.at("beat", time.monotonic() - 5, lambda: happened.append("expired"))

    def held_up() -> None:
        happened.append("held up")
        reactor.at("beat", time.monotonic() + 60, lambda: None)

    reactor.at("other", time.monotonic() - 5, lambda: happened.append("other"))
    reactor.step(held_up)
    assert happened == ["held up", "other"]


def test_the_log_file_is_bounded(tmp_path: Path) -> None:
    """A log file that has grown too large is emptied in place; its content is kept once (I18)."""
    path = tmp_path / "log"
    path.write_bytes(b"x" * (console.LOG_BYTES + 1))
    script = f"from certfs.daemon import console; console.bound({str(path)!r})"
    child = processes.start(
        (processes.python("x")[0], "-c", script),
        keep=(),
        output=os.open(path, os.O_WRONLY | os.O_APPEND),
    )
    assert processes.wait(child, 10) == 0
    assert path.stat().st_size == 0
    assert (tmp_path / "log.1").stat().st_size == console.LOG_BYTES + 1


def test_a_control_socket_with_a_long_path(tmp_path: Path) -> None:
    """A runtime directory with a path longer than a socket address still has a control socket."""
    directory = tmp_path / ("long" * 40)
    directory.mkdir()
    with control.listen(str(directory)):
        connection = control.connect(str(directory))
        assert connection is not None
        connection.close()
    assert control.connect(str(directory)) is None


def test_more_commands_than_are_heard_at_once_wait(tmp_path: Path) -> None:
    """A command too many is neither refused nor forgotten: it is heard when another has gone (I18)."""
    reactor = Reactor()
    heard: list[Client] = []
    gone: list[Client] = []

    def steps_until(clients: list[Client], count: int) -> None:
        reactor.after("too late", 10, lambda: pytest.fail(f"{len(clients)} of {count}"))
        while len(clients) < count:
            reactor.step(lambda: None)
        reactor.cancel("too late")

    clients = Clients(
        str(tmp_path), reactor, asked=lambda client, _: heard.append(client), left=gone.append
    )
    with contextlib.ExitStack() as commands:
        for number in range(MOST_CLIENTS + 2):
            connection = control.connect(str(tmp_path))
            assert connection is not None
            if number == 0:
                first = connection
            commands.enter_context(connection).send(b"detach")
            steps_until(heard, min(number + 1, MOST_CLIENTS))
        # The two that wait keep nobody busy: the next thing to happen is the deadline.
        reactor.after("nothing", 0.05, lambda: None)
        reactor.step(lambda: None)
        assert len(heard) == MOST_CLIENTS
        first.close()
        steps_until(heard, MOST_CLIENTS + 1)
    steps_until(gone, MOST_CLIENTS + 2)
    clients._listener.close()
