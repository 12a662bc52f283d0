"""The notifier as a process: real files, real commands and signals, real kills (I21)."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from certfs.protocol.notify_spec import NotifierSpec, NotifySpec
from certfs.protocol.specs import Tree, pass_on
from tests.support import pki
from tests.support.mounts import wait_until

CERTIFICATES = [pki.issue(f"notified {number}").pem for number in range(4)]
QUICK = NotifySpec(delay=0.05, max_delay=0.3, min_interval=0.1, timeout=5, grace=0.3)


class Scene:
    """A store with one plain bundle, a command that notes how it was called, and notifiers."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.store = root / "store"
        self.store.mkdir()
        self.bundle = self.store / "ca.pem"
        self.calls = root / "calls"
        self.state = root / "notify.json"
        self.log = root / "log"
        self.fd = os.open(self.store, os.O_PATH)
        self.bundles: tuple[str, ...] = ("ca.pem",)
        self.baseline: dict[str, str] = {}
        self.running: list[subprocess.Popen[bytes]] = []

    def publish(self, *numbers: int) -> None:
        """Replace the plain copy atomically, as the server does."""
        draft = self.store / ".draft"
        draft.write_bytes(b"".join(CERTIFICATES[number] for number in numbers))
        draft.rename(self.bundle)

    def script(self, text: str) -> tuple[str, ...]:
        """Make a program of a shell script."""
        path = self.root / "hook"
        path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
        return (str(path),)

    def noting(self, then: str = "") -> tuple[str, ...]:
        """Make a program that notes what it was told."""
        words = "$CERTFS_SHA256 $CERTFS_CERTIFICATES +$CERTFS_ADDED -$CERTFS_REMOVED $CERTFS_PATH"
        return self.script(f'echo "{words}" >>{self.calls}\n{then}')

    def start(self, *notify: NotifySpec) -> subprocess.Popen[bytes]:
        """Start a notifier."""
        spec = NotifierSpec(
            trees=(Tree(name="", store="", target=str(self.root / "mount"), fd=self.fd),),
            bundles=self.bundles,
            notify=notify,
            baseline=self.baseline,
            state=str(self.state),
        )
        box = pass_on(spec)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-I", "-m", "certfs.notifier.main", str(box)],
                stdin=subprocess.PIPE, stderr=log, pass_fds=(box, self.fd),
            )  # fmt: skip
        os.close(box)
        self.running.append(process)
        wait_until(lambda: bool(self.orders() or process.poll()), seconds=60, what="the state file")
        return process

    def orders(self) -> list[dict[str, Any]]:
        """Return what the state file says of each order."""
        with suppress(FileNotFoundError, ValueError, KeyError):
            return list(json.loads(self.state.read_bytes())["orders"].values())
        return []

    def told(self) -> list[str]:
        """Return the calls so far."""
        with suppress(FileNotFoundError):
            return self.calls.read_text(encoding="utf-8").splitlines()
        return []

    def settled(self) -> dict[str, Any]:
        """Wait until the only order was told of what there is, and return it."""

        def is_settled() -> bool:
            (order,) = self.orders()
            there = ""
            if self.bundle.is_file():
                there = f"{hashlib.sha256(self.bundle.read_bytes()).hexdigest()} {self.bundle.name}"
            told = hashlib.sha256(there.encode()).hexdigest()
            return bool(order["told"] == told and not order["dirty"])

        wait_until(is_settled, seconds=60, what="a settled order")
        (order,) = self.orders()
        return order

    def close(self) -> None:
        """End every notifier, with what it runs."""
        for process in self.running:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(timeout=60)
        os.close(self.fd)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """Give a scene whose bundle has one certificate."""
    made = Scene(tmp_path)
    made.publish(0)
    try:
        yield made
    finally:
        made.close()


def test_a_command_is_told_what_has_changed(scene: Scene) -> None:
    """It gets the path that readers use, the content's hash, and how many certificates came and went."""
    scene.start(replace(QUICK, command=scene.noting()))
    scene.publish(1, 2)
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")
    (call,) = scene.told()
    _sha256, *rest = call.split(" ")
    assert rest == ["2", "+2", "-1", str(scene.root / "mount" / "ca.pem")]
    assert scene.settled()["last_error"] == ""


def test_a_bundle_that_is_gone_is_a_change(scene: Scene) -> None:
    """The last certificate's removal is what a reader must not miss (I7)."""
    scene.start(replace(QUICK, command=scene.noting()))
    scene.bundle.unlink()
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")
    assert scene.told()[0].startswith(" 0 +0 -1 ")


def test_what_is_there_at_the_first_start_is_told_to_nobody(scene: Scene) -> None:
    """A reader that starts in the same boot has read it."""
    scene.start(replace(QUICK, command=scene.noting()))
    scene.publish(1)
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")
    assert len(scene.told()) == 1


def test_a_change_while_no_notifier_runs_is_told_by_the_next(scene: Scene) -> None:
    """What was told is kept across the process."""
    spec = replace(QUICK, command=scene.noting())
    scene.start(spec).kill()
    scene.publish(1)
    scene.start(spec)
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")


def test_a_change_that_is_undone_runs_nothing(scene: Scene) -> None:
    """Only the change that stayed is told, once."""
    scene.start(replace(QUICK, command=scene.noting(), delay=0.4, max_delay=5))
    scene.publish(1)
    scene.publish(0)
    wait_until(lambda: not scene.orders()[0]["waiting"], seconds=60, what="nothing to do")
    scene.publish(2)
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")
    scene.settled()
    assert len(scene.told()) == 1


def test_a_run_that_fails_is_repeated_and_seen(scene: Scene) -> None:
    """The reason is in the state file, the output is in the log with nothing that a terminal acts on."""
    flag = scene.root / "fail"
    flag.touch()
    scene.start(
        replace(
            QUICK, command=scene.noting(f"[ ! -e {flag} ] || {{ printf 'b\\033[31mad'; exit 3; }}")
        )
    )
    scene.publish(1)
    wait_until(lambda: scene.orders()[0]["failures"], seconds=60, what="a failure")
    assert scene.orders()[0]["last_error"] == "exit status 3"
    flag.unlink()
    assert scene.settled()["failures"] == 0
    assert len(scene.told()) >= 2
    assert r"b\x1b[31mad" in scene.log.read_text(encoding="utf-8")


def test_a_run_that_is_ended_by_any_signal_is_repeated(scene: Scene) -> None:
    """Also by one without a name, of which the notifier must not die."""
    flag = scene.root / "fail"
    flag.touch()
    scene.start(replace(QUICK, command=scene.noting(f"[ ! -e {flag} ] || kill -40 $$")))
    scene.publish(1)
    wait_until(lambda: scene.orders()[0]["failures"], seconds=60, what="a failure")
    assert scene.orders()[0]["last_error"] == "was killed by signal 40"
    flag.unlink()
    scene.settled()


def test_a_command_that_hangs_is_ended_with_all_that_it_started(scene: Scene) -> None:
    """TERM, a while, then KILL for the whole group."""
    pids = scene.root / "pids"
    command = scene.script(f"trap '' TERM\nsleep 300 &\necho $$ $! >{pids}\nwait\nwait\nsleep 300")
    scene.start(replace(QUICK, command=command, timeout=0.3))
    scene.publish(1)
    wait_until(lambda: scene.orders()[0]["failures"], seconds=60, what="a failure")
    assert "was not done after 0.3 s" in scene.orders()[0]["last_error"]
    for pid in pids.read_text(encoding="ascii").split():
        wait_until(partial(_has_ended, int(pid)), seconds=30, what="the end of what hung")


def _has_ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == b"Z"


def test_a_change_during_a_run_that_hangs_does_not_let_it_go_on(scene: Scene) -> None:
    """The timeout of a run does not depend on what happens meanwhile."""
    command = scene.noting("sleep 300")
    scene.start(replace(QUICK, command=command, timeout=1))
    scene.publish(1)
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")
    scene.publish(2)
    wait_until(lambda: len(scene.told()) > 1, seconds=60, what="the next call")


def test_a_process_that_starts_late_is_told(scene: Scene, listener: tuple[Path, Path]) -> None:
    """It is looked for once more, and at once when there is news."""
    pid_file, heard = listener
    later = scene.root / "later"
    scene.start(replace(QUICK, pid_file=str(later), process=_comm(pid_file), grace=300))
    scene.publish(1)
    wait_until(lambda: scene.orders()[0]["dirty"], seconds=60, what="the first search")
    later.write_bytes(pid_file.read_bytes())
    scene.publish(2)
    wait_until(heard.exists, seconds=60, what="the signal")


def test_a_flood_of_output_is_bounded(scene: Scene) -> None:
    """The log gets its end, the notifier's memory nothing of it (I18)."""
    process = scene.start(
        replace(
            QUICK, command=scene.script("head -c 50000000 /dev/zero | tr '\\0' x; echo end; exit 1")
        )
    )
    scene.publish(1)
    wait_until(lambda: scene.orders()[0]["failures"], seconds=60, what="a failure")
    assert scene.log.stat().st_size < 10000
    assert "end" in scene.log.read_text(encoding="utf-8")
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    assert int(peak.split()[1]) < 60_000


def test_a_flood_without_an_end_is_ended(scene: Scene) -> None:
    """What a run writes keeps the notifier neither from its timeout nor from telling others."""
    flood = replace(QUICK, command=scene.script("exec yes"), timeout=0.5, min_interval=0)
    hook = scene.root / "other"
    hook.write_text(f"#!/bin/sh\necho told >>{scene.calls}\n", encoding="utf-8")
    hook.chmod(0o755)
    scene.start(flood, replace(QUICK, command=(str(hook),)))
    scene.publish(1)
    wait_until(lambda: scene.orders()[0]["failures"], seconds=60, what="the end of the flood")
    assert "was not done after 0.5 s" in scene.orders()[0]["last_error"]
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")


@pytest.mark.parametrize("mode,words", [(0o777, "others may write"), (0o644, "is not a program")])
def test_a_program_that_others_could_exchange_is_not_run(
    scene: Scene, mode: int, words: str
) -> None:
    """It is refused with the reason, and the change is told once it is mended."""
    command = scene.noting()
    os.chmod(command[0], mode)
    scene.start(replace(QUICK, command=command))
    scene.publish(1)
    wait_until(lambda: scene.orders()[0]["failures"], seconds=60, what="a refusal")
    assert words in scene.orders()[0]["last_error"]
    assert scene.told() == []
    Path(command[0]).chmod(0o755)
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Give the pid file of a process, and the file to which it adds a line for each SIGHUP."""
    pid_file, heard = tmp_path / "pid", tmp_path / "heard"
    program = (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGHUP, lambda *_: os.write(os.open(sys.argv[1], 0o2101), b'hup\\n'))\n"
        "print(flush=True)\n"
        "while True: signal.pause()"
    )
    process = subprocess.Popen([sys.executable, "-c", program, heard], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    pid_file.write_text(f"{process.pid}\n", encoding="ascii")
    yield pid_file, heard
    process.kill()
    process.wait()
    process.stdout.close()


def _comm(pid_file: Path) -> str:
    pid = int(pid_file.read_text(encoding="ascii"))
    return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").rstrip("\n")


def test_a_process_gets_its_signal(scene: Scene, listener: tuple[Path, Path]) -> None:
    """Once for each change that stays."""
    pid_file, heard = listener
    scene.start(replace(QUICK, pid_file=str(pid_file), process=_comm(pid_file)))
    scene.publish(1)
    wait_until(heard.exists, seconds=60, what="the signal")
    scene.settled()
    assert heard.read_text(encoding="ascii") == "hup\n"


def test_a_process_of_another_name_gets_none(scene: Scene, listener: tuple[Path, Path]) -> None:
    """A number that was given to another process must not be trusted; nobody to tell is no error."""
    pid_file, heard = listener
    scene.start(replace(QUICK, pid_file=str(pid_file), process="another"))
    scene.publish(1)
    wait_until(lambda: scene.orders()[0]["runs"], seconds=60, what="the end of the search")
    assert scene.settled()["last_error"] == ""
    assert not heard.exists()
    assert "not running" in scene.log.read_text(encoding="utf-8")


def test_kills_at_any_point_lose_no_last_change(scene: Scene) -> None:
    """Whatever is killed between publication and the end of a run, the reader is told of the last content."""
    spec = replace(QUICK, command=scene.noting("sleep 0.03"), delay=0.02, min_interval=0.02)
    for round_number in range(12):
        process = scene.start(spec)
        scene.publish(round_number % 4, (round_number + 1) % 4)
        time.sleep(0.012 * round_number)  # a kill at another point each time
        process.send_signal(signal.SIGKILL)
        process.wait()
    scene.start(spec)
    scene.settled()
    now = hashlib.sha256(scene.bundle.read_bytes()).hexdigest()
    assert scene.told()[-1].split(" ")[0] == now


def test_it_ends_with_the_supervisor(scene: Scene) -> None:
    """The end of standard input is the supervisor's end."""
    process = scene.start(replace(QUICK, command=scene.noting()))
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def test_a_notifier_that_is_to_end_begins_nothing_more(scene: Scene) -> None:
    """A run that falls due at the same moment is for the next one: it would be killed at once."""
    spec = replace(QUICK, command=scene.noting(), delay=0.5, max_delay=0.5)
    process = scene.start(spec)
    scene.publish(1)
    wait_until(lambda: scene.orders()[0]["waiting"], seconds=60, what="an order")
    process.send_signal(signal.SIGSTOP)
    assert process.stdin is not None
    process.stdin.close()
    time.sleep(0.6)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=60) == 0
    assert scene.told() == []
    scene.start(spec)
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")


def test_a_copy_follows_the_bundle_and_is_made_at_the_start(scene: Scene) -> None:
    """Whatever it holds at the start, it becomes the bundle, and goes with it (I12)."""
    copy = scene.root / "copy.pem"
    copy.write_bytes(b"of yesterday")
    scene.start(
        NotifySpec(copy=str(copy), bundles=("ca.pem",), delay=0, max_delay=0, min_interval=0)
    )
    wait_until(lambda: copy.read_bytes() == CERTIFICATES[0], seconds=60, what="the copy")
    scene.publish(1, 2)
    wait_until(lambda: copy.read_bytes() == scene.bundle.read_bytes(), seconds=60, what="the copy")
    scene.bundle.unlink()
    wait_until(lambda: not copy.exists(), seconds=60, what="no copy")


def test_a_change_before_the_first_look_is_told(scene: Scene) -> None:
    """The baseline is what the server began with, and not what a notifier finds that started a moment later."""
    scene.baseline = {"ca.pem": hashlib.sha256(CERTIFICATES[3]).hexdigest()}
    scene.start(replace(QUICK, command=scene.noting()))
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")


def test_a_pid_file_with_an_impossible_number_ends_nothing(scene: Scene) -> None:
    """The reader is seen to fail, and the notifier goes on."""
    pid_file = scene.root / "pid"
    pid_file.write_text("9999999999\n", encoding="ascii")
    process = scene.start(replace(QUICK, pid_file=str(pid_file), process="stunnel"))
    scene.publish(1)
    wait_until(
        lambda: scene.orders()[0]["failures"] or process.poll() is not None,
        seconds=60,
        what="a failure",
    )
    assert process.poll() is None
    assert "does not hold the number" in scene.orders()[0]["last_error"]


def test_what_is_no_file_is_refused_by_name_and_keeps_no_descriptor(scene: Scene) -> None:
    """A directory in the place of a pid file or of a plain copy is not opened again and again (I18)."""
    pid_file = scene.root / "pid"
    pid_file.mkdir()
    process = scene.start(replace(QUICK, pid_file=str(pid_file), process="stunnel", grace=0.05))
    before = len(os.listdir(f"/proc/{process.pid}/fd"))
    scene.bundle.unlink()
    scene.bundle.mkdir()
    wait_until(lambda: scene.orders()[0]["failures"] > 1, seconds=60, what="two failures")
    assert scene.orders()[0]["last_error"] == f"{pid_file} is not a regular file"
    assert len(os.listdir(f"/proc/{process.pid}/fd")) == before


def test_a_notifier_that_starts_again_keeps_the_interval(scene: Scene) -> None:
    """Deaths do not make a reader be told more often than it wants."""
    spec = replace(QUICK, command=scene.noting("sleep 300"), min_interval=300)
    scene.start(spec)
    scene.publish(1)
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")
    scene.running[-1].kill()
    scene.running[-1].wait()
    scene.publish(2)
    scene.start(spec)
    time.sleep(1)
    assert scene.orders()[0]["waiting"]
    assert len(scene.told()) == 1


@pytest.mark.parametrize(
    "content", ["{", '{"format": 99, "orders": {}}', "\0" * 5_000_000], ids=["torn", "new", "huge"]
)
def test_without_its_memory_a_notifier_tells_everybody(scene: Scene, content: str) -> None:
    """A state file that cannot be used is named in the log, and no reader is taken to know what there is."""
    scene.state.write_text(content, encoding="utf-8")
    scene.start(replace(QUICK, command=scene.noting()))
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")
    scene.settled()
    assert str(scene.state) in scene.log.read_text(encoding="utf-8")


def test_a_bundle_of_a_pattern_that_goes_while_no_notifier_runs_is_told(scene: Scene) -> None:
    """The next one misses it, and once it was told keeps nothing of it."""
    scene.bundles = ("ca-*.pem",)
    (scene.store / "ca-one.pem").write_bytes(CERTIFICATES[0])
    spec = replace(QUICK, command=scene.noting())
    scene.start(spec).kill()
    (scene.store / "ca-one.pem").unlink()
    scene.start(spec)
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")
    assert scene.told()[0].startswith(" 0 ")
    wait_until(lambda: scene.orders() == [], seconds=60, what="an empty state file")


def test_a_reader_that_is_told_no_more_is_forgotten(scene: Scene) -> None:
    """The state file has no order that nobody configures any more."""
    scene.start(replace(QUICK, command=("/missing",)))
    scene.publish(1)
    wait_until(lambda: scene.orders()[0]["failures"], seconds=60, what="a failure")
    scene.running[-1].kill()
    scene.running[-1].wait()
    scene.start(replace(QUICK, command=("/missing",), user="nobody"))
    wait_until(
        lambda: [one["failures"] for one in scene.orders()] == [0], seconds=60, what="one order"
    )


def test_a_run_that_its_notifier_left_behind_is_ended_by_the_next(scene: Scene) -> None:
    """A command that hangs does not outlive its notifier: no two run at the same time for one reader."""
    pids = scene.root / "pids"
    command = scene.script(f"trap '' TERM\necho $$ >>{pids}\nsleep 300\nsleep 300")
    spec = replace(QUICK, command=command, timeout=300, min_interval=0)
    scene.start(spec)
    scene.publish(1)
    wait_until(lambda: pids.exists() and pids.read_text() != "", seconds=60, what="a run")
    first = int(pids.read_text())
    scene.running[-1].kill()
    scene.running[-1].wait()
    scene.start(spec)
    wait_until(partial(_has_ended, first), seconds=30, what="the end of what was left behind")


def test_a_run_that_was_left_behind_ends_with_the_next_notifier_at_the_latest(scene: Scene) -> None:
    """Also where that one has to end before the run had its time after SIGTERM."""
    pids = scene.root / "pids"
    command = scene.script(f"trap '' TERM\necho $$ >>{pids}\nsleep 300\nsleep 300")
    spec = replace(QUICK, command=command, timeout=300, grace=300)
    scene.start(spec)
    scene.publish(1)
    wait_until(lambda: pids.exists() and pids.read_text() != "", seconds=60, what="a run")
    wait_until(lambda: scene.orders()[0]["process"], seconds=60, what="the note of it")
    first = int(pids.read_text())
    scene.running[-1].kill()
    scene.running[-1].wait()
    second = scene.start(spec)
    assert second.stdin is not None
    second.stdin.close()
    assert second.wait(timeout=60) == 0
    assert _has_ended(first)


def test_a_notifier_that_starts_again_tells_nothing_twice(scene: Scene) -> None:
    """What the server began with is long past by then: the reader was told of what there is."""
    scene.baseline = {"ca.pem": hashlib.sha256(CERTIFICATES[0]).hexdigest()}
    spec = replace(QUICK, command=scene.noting())
    scene.start(spec)
    for number in (1, 2):
        scene.publish(number)
        wait_until(partial(_were_told, scene, number), seconds=60, what="a call")
        scene.settled()
        scene.running[-1].kill()
        scene.running[-1].wait()
        scene.start(spec)
    time.sleep(1.5)  # the notifier looks again after one second
    assert len(scene.told()) == 2


def test_what_a_reader_is_told_is_counted_from_what_it_was_told_before(scene: Scene) -> None:
    """A change during a run is no part of that run, but of the next."""
    scene.start(replace(QUICK, command=scene.noting("sleep 0.5")))
    scene.publish(1)
    wait_until(lambda: scene.told() != [], seconds=60, what="a call")
    scene.publish(1, 2, 3)
    wait_until(lambda: len(scene.told()) == 2, seconds=60, what="the next call")
    assert [line.split(" ")[1:4] for line in scene.told()] == [["1", "+1", "-1"], ["3", "+2", "-0"]]


def _were_told(scene: Scene, count: int) -> bool:
    return len(scene.told()) == count


def test_a_directory_that_cannot_be_read_keeps_no_other_bundle_from_being_told(
    scene: Scene,
) -> None:
    """The log names it once, and not at each try."""
    unreadable = "x" * 300
    scene.bundles = (f"{unreadable}/ca.pem", "ca.pem")
    scene.start(replace(QUICK, command=scene.noting()))
    for number in (1, 2):
        scene.publish(number)
        wait_until(partial(_were_told, scene, number), seconds=60, what="a call")
    assert scene.log.read_text(encoding="utf-8").count(unreadable) == 1


def test_many_bundles_that_change_at_once_start_few_commands_at_a_time(scene: Scene) -> None:
    """Each is told of, and what that costs grows with their number and no faster (I18)."""
    count = 100
    for number in range(count):
        (scene.store / f"ca-{number}.pem").write_bytes(CERTIFICATES[0])
    scene.bundles = ("ca-*.pem",)
    running = scene.root / "running"
    running.mkdir()
    note = f"ls {running} | wc -l >>{scene.root}/at-once"
    hook = f"touch {running}/$$; {note}; echo $CERTFS_BUNDLE >>{scene.calls}; rm {running}/$$"
    process = scene.start(replace(QUICK, command=scene.script(hook), timeout=60))
    wait_until(lambda: len(scene.orders()) == count, seconds=60, what="all orders")
    for number in range(count):
        draft = scene.store / "draft"
        draft.write_bytes(CERTIFICATES[1])
        draft.rename(scene.store / f"ca-{number}.pem")
    wait_until(lambda: len(set(scene.told())) == count, seconds=120, what="all calls")
    assert max(map(int, (scene.root / "at-once").read_text().split())) <= 4
    times = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    seconds = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
    assert seconds < 0.04 * count
