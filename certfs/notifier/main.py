"""The notifier: tells configured readers that a bundle has changed (promise I21).

    python -I -m certfs.notifier.main FD

FD is open on a `NotifierSpec` as JSON; standard input is a pipe whose end means that the supervisor is gone, or wants
the notifier to end. A child of the supervisor, started only where something is configured. Neither supervisor nor
server ever waits for it. Owns the loop: what has changed, which orders are due, which runs are under way.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Final

from certfs.linux.console import Level, log
from certfs.linux.processes import ProcessId, manner
from certfs.notifier import copies, policy
from certfs.notifier.bundles import Content, PlainFiles
from certfs.notifier.policy import Progress, Record, Timing
from certfs.notifier.targets import (
    PATH,
    NotRunning,
    RefusedError,
    Run,
    Systemd,
    run_of,
    session_directory,
)
from certfs.protocol.notify_spec import HOST_CERTIFICATE, NotifierSpec, NotifySpec
from certfs.protocol.notify_state import Entry, Memory, recalled
from certfs.protocol.specs import receive
from certfs.supervisor.event_loop import EventLoop

_LOOK_SECONDS: Final = 0.05
"""Events are gathered for so long before the files are looked at."""
_FIRST_LOOK_SECONDS: Final = 1.0
"""After the first look the files are looked at again: by then the server has written its plain copies."""
_MOST_RUNS: Final = 4
"""So many runs of one command may be under way at once, where many bundles have changed."""
_OUTPUT_BYTES: Final = 4096
"""So much of a run's output goes into the log, from its end."""
_LAST_SECONDS: Final = 1.0
"""What is under way when the notifier ends has so long after SIGTERM."""
_SYSTEMD_SLACK: Final = 10.0
"""systemd ends what it runs for us itself, a little later than we would."""


@dataclass(slots=True, eq=False)
class Order:
    """One reader, or one reader and one bundle, and where telling it stands."""

    key: str
    spec: NotifySpec
    entry: Entry
    progress: Progress
    process: "subprocess.Popen[bytes] | None" = None
    output: bytes = b""
    before: Content | None = None
    """What its bundle was when the reader was told last, None where this process does not know."""
    telling: Content | None = None
    """What its bundle was when the run began that is under way."""
    sought_again: bool = False
    timed_out: bool = False

    @property
    def path(self) -> str:
        """Of which file a command is told."""
        return self.entry.bundle or HOST_CERTIFICATE

    @property
    def due_timer(self) -> str:
        """The name of the deadline at which the next run begins."""
        return f"due {self.key}"

    @property
    def run_timer(self) -> str:
        """The name of the deadline of the run that is under way."""
        return f"run {self.key}"

    @property
    def timing(self) -> Timing:
        """How patient it is."""
        return Timing(
            delay=self.spec.delay,
            max_delay=self.spec.max_delay,
            min_interval=self.spec.min_interval,
        )


class Notifier:
    """The orders of one mount."""

    def __init__(self, spec: NotifierSpec, systemd: Systemd) -> None:
        self._spec = spec
        self._systemd = systemd
        self._files = PlainFiles(spec)
        self._memory: Memory = recalled(spec.state)
        if self._memory.problem:
            problem = f"{spec.state}: {self._memory.problem}: every reader is told once more"
            self._log("warning", problem)
        self._recalled = frozenset(self._memory.entries)
        # Of a bundle of a pattern that has gone meanwhile there is no other trace.
        known = (entry.bundle for entry in self._memory.entries.values() if entry.bundle)
        self._files.contents.update({path: Content() for path in known})
        self._baseline = {path: Content(sha256) for path, sha256 in spec.baseline.items()}
        self._unreadable = ""
        """What was last said of a store that cannot be read."""
        self._loop = EventLoop()
        self._orders: dict[str, Order] = {}
        self._started = False
        self._settled_at = 0.0
        """From then on the plain copies are those of the server that is there now."""
        self._queued: dict[NotifySpec, dict[str, Order]] = {}
        """Orders that are due and have to wait for another run of the same reader, the first one first."""
        self._found: dict[str, Content] = {}
        """What they were at the first look."""
        self._left_behind: list[ProcessId] = []
        """What a notifier that has died had started."""
        self._ending = False

    def run(self) -> None:
        """Tell until standard input ends."""
        self._loop.on_signals((signal.SIGCHLD, signal.SIGTERM, signal.SIGINT), self._signalled)
        self._loop.watch(0, self._end)
        self._loop.watch(self._files.queue, self._changed)
        self._look()
        while not self._ending:
            self._loop.step(lambda: None)
        for process in self._processes():
            with suppress(subprocess.TimeoutExpired):
                process.wait(_LAST_SECONDS)
            _kill(process, signal.SIGKILL)
        for left in self._left_behind:
            left.kill_session()

    def _end(self) -> None:
        self._ending = True
        self._loop.clear()  # what falls due now is for the next notifier
        for process in self._processes():  # it is recorded as begun: the next notifier repeats it
            _kill(process, signal.SIGTERM)

    def _processes(self) -> list["subprocess.Popen[bytes]"]:
        return [order.process for order in self._orders.values() if order.process]

    def _signalled(self, number: int) -> None:
        if number != signal.SIGCHLD:
            self._end()
            return
        for order in self._orders.values():
            if order.process and _has_ended(order.process):
                self._ended(order)

    # --- what has changed

    def _changed(self) -> None:
        self._loop.forget(self._files.queue)  # looked at once for all that comes meanwhile
        self._loop.after("look", _LOOK_SECONDS, self._look)

    def _look(self) -> None:
        try:
            self._files.look()
        except OSError as error:
            problem = f"notify: the store cannot be read: {error.filename or ''}: {error.strerror}"
            if problem != self._unreadable:
                self._log("error", problem)
            self._unreadable = problem
            self._loop.after("look", 1, self._look)
        else:
            self._unreadable = ""
            self._loop.watch(self._files.queue, self._changed)
        if not self._started:
            self._found = dict(self._files.contents)
            self._settled_at = time.monotonic() + _FIRST_LOOK_SECONDS
        now = time.monotonic()
        wanted = self._wanted()
        if not self._started:
            keys = {key for key, _, _ in wanted}  # the others are of another configuration
            self._memory.entries = {k: v for k, v in self._memory.entries.items() if k in keys}
        for key, spec, paths in wanted:
            content = _digest({path: self._content(key, path) for path in paths})
            order = self._orders.get(key) or self._new_order(key, spec, paths, content, now)
            is_news = content != order.progress.wanted
            order.progress = policy.seen(order.progress, content, now)
            if is_news and order.sought_again:
                # A process that did not run a moment ago is looked for at once for what is new.
                self._loop.after(order.run_timer, order.spec.delay, partial(self._begin, order))
            self._plan(order)
        if self._started:
            self._forget_gone()
        else:
            self._started = True
            self._loop.after("look", _FIRST_LOOK_SECONDS, self._look)

    def _forget_gone(self) -> None:
        """Keep nothing of a bundle of a pattern that is gone, once its readers were told (I18)."""
        owed = {one.entry.bundle for one in self._orders.values() if not one.progress.is_settled}
        gone = self._files.gone() - owed
        for path in gone:
            del self._files.contents[path]
            self._baseline.pop(path, None)
        ended = [key for key, one in self._orders.items() if one.entry.bundle in gone]
        for key in ended:
            del self._orders[key], self._memory.entries[key]
        if ended:
            self._remember()

    def _wanted(self) -> list[tuple[str, NotifySpec, list[str]]]:
        """Return key, specification and paths of every order that there is to be."""
        wanted = []
        for spec in self._spec.notify:
            paths = sorted(path for path in self._files.contents if _concerns(spec, path))
            groups = [[path] for path in paths] if spec.is_for_each_bundle else [paths]
            wanted += [(_key(spec, group), spec, group) for group in groups]
        return wanted

    def _new_order(
        self, key: str, spec: NotifySpec, paths: list[str], content: str, now: float
    ) -> Order:
        entry = self._memory.entries.get(key)
        if entry:
            record = Record(
                told=entry.told,
                dirty=entry.dirty,
                failures=entry.failures,
                last_run=entry.last_run,
            )
            self._end_left_behind(key, spec, entry)
        else:
            bundle = paths[0] if spec.is_for_each_bundle else ""
            entry = Entry(target=spec.target, bundle=bundle)
            if spec.copy or self._memory.problem:
                # Whatever a copy holds, it is looked at; and what a reader was told is not known.
                record = Record(told="")
            else:
                # What there was when the server began to serve; nothing of a bundle that has come since.
                absent = Content() if self._started else None
                contents = self._files.contents
                record = Record(
                    told=_digest(
                        {
                            path: self._baseline.get(path) or absent or contents[path]
                            for path in paths
                        }
                    )
                )
        order = Order(key, spec, entry, policy.resumed(record, content, now))
        if order.progress.told == content:
            order.before = self._files.contents.get(order.path)
        self._orders[key] = order
        self._memory.entries[key] = entry
        self._save(order)
        return order

    def _content(self, key: str, path: str) -> Content:
        """Return what a file holds.

        To who was never told anything it is at first what the server says, as long as that may not have written it yet.
        """
        content = self._files.contents[path]
        is_early = time.monotonic() < self._settled_at and key not in self._recalled
        is_old = is_early and content == self._found.get(path)
        return self._baseline.get(path, content) if is_old else content

    def _end_left_behind(self, key: str, spec: NotifySpec, entry: Entry) -> None:
        """End what a notifier that has died had started: no reader is told twice at the same time."""
        left = entry.process
        if left and left.alive():
            with suppress(OSError):
                os.killpg(left.pid, signal.SIGTERM)
            self._loop.after(f"left {key}", spec.grace, left.kill_session)
            self._left_behind.append(left)

    # --- telling

    def _plan(self, order: Order) -> None:
        at = policy.due(order.progress, order.timing)
        if at is None:
            self._loop.cancel(order.due_timer)
        else:
            self._loop.at(order.due_timer, at, lambda: self._begin(order))
        if order.entry.waiting != (at is not None):
            self._save(order)

    def _begin(self, order: Order) -> None:
        if order.entry.process and order.entry.process.alive():
            self._loop.after(order.due_timer, _LOOK_SECONDS, partial(self._begin, order))
            return
        if self._is_full(order.spec):
            self._queued.setdefault(order.spec, {})[order.key] = order
            return
        if order.spec.copy and time.monotonic() < self._settled_at:
            # The plain copy may be absent, or of yesterday, for a moment yet: the further copy must not follow that.
            self._loop.after(order.due_timer, _FIRST_LOOK_SECONDS, partial(self._begin, order))
            return
        order.progress = policy.begun(order.progress, time.monotonic())
        order.telling = self._files.contents.get(order.path)
        order.output, order.timed_out = b"", False
        self._save(order)
        try:
            if order.spec.copy:
                data = self._files.data(order.entry.bundle)
                store = [tree.fd for tree in self._spec.trees]
                copies.keep(order.spec.copy, data, store=store)
                self._finish(order, "", quietly=True)
                return
            run = run_of(
                order.spec,
                self._about(order),
                self._systemd,
                unit_name=f"certfs-notify-{order.key}",
            )
            if run is None:
                self._finish(order, "")
            else:
                self._start(order, run)
        except NotRunning as reason:
            self._not_running(order, str(reason))
        except RefusedError as error:
            self._finish(order, str(error))
        except OSError as error:
            self._finish(order, f"{error.filename or order.spec.target}: {error.strerror}")

    def _is_full(self, spec: NotifySpec) -> bool:
        """Whether as many runs of one reader are under way, for as many bundles, as may be at once."""
        running = sum(one.process is not None and one.spec is spec for one in self._orders.values())
        return running >= _MOST_RUNS

    def _plan_queued(self, spec: NotifySpec) -> None:
        """Let the next one begin of those for which there was no room."""
        queued = self._queued.get(spec, {})
        while queued and not self._is_full(spec):
            order = queued.pop(next(iter(queued)))
            if self._orders.get(order.key) is order and order.progress.is_waiting:
                self._plan(order)
                return

    def _not_running(self, order: Order, reason: str) -> None:
        if order.sought_again:
            self._log("info", f"notify: {order.spec.target}: not running: {reason}")
            self._finish(order, "", quietly=True)
        else:
            order.sought_again = True  # it may be starting
            self._loop.after(order.run_timer, order.spec.grace, lambda: self._begin(order))

    def _start(self, order: Order, run: Run) -> None:
        group, groups = _groups_of(run.user)
        order.process = subprocess.Popen(
            run.command,
            env=dict(run.environment),
            user=run.user,
            group=group,
            extra_groups=groups,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with suppress(ProcessLookupError):
            order.entry.process = ProcessId.of(order.process.pid)
        self._remember(order)
        assert order.process.stdout is not None  # noqa: S101 - PIPE makes one
        output = order.process.stdout.fileno()
        os.set_blocking(output, False)
        self._loop.watch(output, lambda: self._heard(order, output))
        slack = _SYSTEMD_SLACK if run.command[0] == "systemd-run" else 0.0
        self._loop.after(order.run_timer, order.spec.timeout + slack, lambda: self._give_up(order))

    def _heard(self, order: Order, output: int) -> None:
        with suppress(BlockingIOError):
            data = os.read(output, 65536)
            if not data:
                self._loop.forget(output)
            order.output = (order.output + data)[-_OUTPUT_BYTES:]

    def _give_up(self, order: Order) -> None:
        if order.process:
            order.timed_out = True
            _kill(order.process, signal.SIGTERM)
            process = order.process
            self._loop.after(
                order.run_timer, order.spec.grace, lambda: _kill(process, signal.SIGKILL)
            )

    def _ended(self, order: Order) -> None:
        process, order.process = order.process, None
        if process is None:
            return
        if order.timed_out:
            _kill(process, signal.SIGKILL)  # what it has left behind; before its number is free
        process.wait()
        if process.stdout:
            output = process.stdout.fileno()
            self._heard(order, output)
            self._loop.forget(output)
            process.stdout.close()
        code = process.returncode
        if order.timed_out:
            self._finish(order, f"was not done after {order.spec.timeout:g} s and was ended")
        elif code == 0:
            self._finish(order, "")
        elif code < 0:
            self._finish(order, manner(code))
        else:
            self._finish(order, f"exit status {code}")

    def _finish(self, order: Order, problem: str, *, quietly: bool = False) -> None:
        self._loop.cancel(order.run_timer)
        order.progress = policy.ended(order.progress, time.monotonic(), well=not problem)
        order.sought_again = False
        entry = order.entry
        entry.runs += 1
        entry.process = None
        entry.last_error = problem
        if problem:
            said = order.output.decode(errors="backslashreplace").strip()
            tries = f", failure {order.progress.failures} in a row"
            self._log(
                "error", f"notify: {order.spec.target}: {problem}{tries}{said and ': ' + said}"
            )
        else:
            entry.last_success = time.time()
            order.before = order.telling
            if not quietly:
                self._log("info", f"notify: {order.spec.target}: told")
        self._save(order)
        self._plan(order)
        self._plan_queued(order.spec)
        if entry.bundle in self._files.gone():
            self._forget_gone()

    def _about(self, order: Order) -> dict[str, str]:
        """Return what a command is told of the bundle."""
        now, before = order.telling or Content(), order.before
        return {
            "CERTFS_BUNDLE": order.path,
            "CERTFS_PATH": self._files.shown(order.path),
            "CERTFS_GENERATION": str(order.entry.runs + 1),
            "CERTFS_SHA256": now.sha256,
            "CERTFS_CERTIFICATES": str(len(now.certificates)),
            "CERTFS_ADDED": str(len(now.certificates - before.certificates)) if before else "",
            "CERTFS_REMOVED": str(len(before.certificates - now.certificates)) if before else "",
        }

    def _save(self, order: Order) -> None:
        record = order.progress.record
        entry = order.entry
        entry.told, entry.dirty, entry.failures = record.told, record.dirty, record.failures
        entry.last_run = record.last_run
        entry.waiting = policy.due(order.progress, order.timing) is not None
        self._remember(order)

    def _remember(self, *changed: Order) -> None:
        try:
            self._memory.save(*(order.key for order in changed))
        except OSError as error:
            # The reader is told all the same; only a crash in the middle would be forgotten.
            self._log("error", f"{self._spec.state}: {error.strerror}")

    def _log(self, level: Level, text: str) -> None:
        log(level, text, journal=self._spec.journal)


def _concerns(spec: NotifySpec, path: str) -> bool:
    if spec.on == "host-certificate":
        return path == HOST_CERTIFICATE
    if path == HOST_CERTIFICATE:
        return False
    return not spec.bundles or any(fnmatchcase(path, pattern) for pattern in spec.bundles)


def _key(spec: NotifySpec, paths: list[str]) -> str:
    """Return what an order is known by, also to the next notifier: the reader and what it is told of."""
    reader = {name: value for name, value in asdict(spec).items() if not isinstance(value, float)}
    bundle = paths[0] if spec.is_for_each_bundle and paths else ""
    text = json.dumps([reader, bundle], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(contents: dict[str, Content]) -> str:
    """Return what identifies the content of bundles; one that is absent is like one that never was."""
    there = [f"{one.sha256} {path}" for path, one in sorted(contents.items()) if one.sha256]
    return hashlib.sha256("\n".join(there).encode()).hexdigest()


def _groups_of(user: str | None) -> tuple[int | None, list[int] | None]:
    """Return the group and all groups of what runs as ``user``; None for those of this process."""
    if user is None:
        return None, None
    import pwd  # noqa: PLC0415 - only where a user is configured

    try:
        group = pwd.getpwnam(user).pw_gid
    except KeyError:
        raise RefusedError(f"there is no user {user}") from None
    return group, os.getgrouplist(user, group)


def _kill(process: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Whether it has ended; it is not waited for, so its number stays its own."""
    options = os.WEXITED | os.WNOHANG | os.WNOWAIT
    return os.waitid(os.P_PID, process.pid, options) is not None


def systemd_here() -> Systemd:
    """Return the service manager that runs on this machine (sd_booted(3))."""
    if not os.path.isdir("/run/systemd/system"):
        return Systemd()
    for_user = os.geteuid() != 0
    bus = f"{session_directory()}/bus" if for_user else "/run/dbus/system_bus_socket"
    command = ["systemctl", "--version"]
    with suppress(OSError, ValueError, IndexError, subprocess.SubprocessError):
        said = subprocess.run(
            command, check=True, capture_output=True, timeout=5, env={"PATH": PATH}
        ).stdout
        return Systemd(int(said.split()[1]), bus=bus, for_user=for_user)
    return Systemd()


def main() -> None:
    """Run as a process of its own."""
    # The supervisor is urgent and spared by the OOM killer; what is started to tell readers is an ordinary process.
    os.setpriority(os.PRIO_PROCESS, 0, max(os.getpriority(os.PRIO_PROCESS, 0), 0))
    os.umask(0o022)
    with suppress(OSError), open("/proc/self/oom_score_adj", "r+b", buffering=0) as adjustment:
        if int(adjustment.read()) < 0:
            adjustment.write(b"0")
    Notifier(receive(NotifierSpec, int(sys.argv[1])), systemd_here()).run()


if __name__ == "__main__":
    main()
