"""The supervisor (S): carries out what the machine and the view decide.

It owns the processes and what they are told; what an event leads to is `certfs.supervisor.machine`'s, what is to be in
view `certfs.supervisor.view`'s. It resolves no path through a mount of ours in its own process, imports only the
standard library and the packages of its side, and sleeps in `EventLoop.step` alone.
"""

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from typing import Final, NoReturn, assert_never

from certfs import procfs
from certfs.linux import log_file, mount_table
from certfs.linux.processes import ProcessId, in_child, leave, reap, reap_strangers, urgent
from certfs.linux.sd_notify import notify
from certfs.protocol import messages, timeouts
from certfs.protocol.control import Reply
from certfs.protocol.messages import Failure
from certfs.protocol.owned_mounts import devices_of
from certfs.protocol.specs import ENDING, Adoption, ServerSpec, SupervisorSpec, execute, receive
from certfs.protocol.state_file import Phase, State, await_lock, clear_instance
from certfs.supervisor import machine, stand_in, view
from certfs.supervisor.commands import Commands
from certfs.supervisor.event_loop import TABLE_CHANGED, EventLoop
from certfs.supervisor.history import History
from certfs.supervisor.janitor import Janitor
from certfs.supervisor.machine import Action, Event, Strikes
from certfs.supervisor.mounter import discard, mounter_for, targets_of, with_arrived
from certfs.supervisor.notifier_process import NotifierProcess
from certfs.supervisor.server_process import ServerProcess

_ROUNDS: Final = 64
"""Bound on the steps of one look at the mount table."""


class Supervisor:
    """One instance of certfs, from the spec to the end."""

    def __init__(self, spec: SupervisorSpec) -> None:
        self._spec = spec
        self._mount = spec.mount
        self._loop = EventLoop()
        self._history = History(spec)
        self._mounter = mounter_for(spec.mount)
        self._state = machine.State(one_place=self._mounter.one_place)
        self._events = deque[Event]()
        self._memory = view.Memory(
            runtime=spec.mount.runtime,
            targets=targets_of(spec.mount),
            can_attach=not self._mounter.one_place,
        )
        self._servers: dict[int, ServerProcess] = {}
        """Every server that has not ended, also those that were let go."""
        places = [tree.target for tree in spec.mount.trees]
        self._janitor = Janitor(self._loop, places=places, replaced=self._introduce)
        self._notifier = NotifierProcess(spec.mount, self._loop)
        self._lock_fd = spec.lock_fd
        self._commands = Commands(
            self._loop,
            {"unmount": self._end, "flush": self._flush, "store": self._store},
            restart=self._restart,
            log=partial(self._history.log, "info"),
        )
        self._waits = False
        """Something of ours is beneath a mount of others."""
        self._own_restart = ("by itself", time.monotonic())
        """Why it replaces its server without being asked, and since when (time.monotonic)."""
        self._reply = Reply()
        self._exit_code: int | None = None

    def run(self) -> int:
        """Supervise until the mount has ended; return the exit code."""
        os.chdir("/")
        urgent(os.getpid())
        mount_table.mount_connections()
        self._loop.on_signals((*ENDING, signal.SIGCHLD), self._signalled)
        if self._spec.adopt is None:
            self._begin()
        elif not self._adopt(self._spec.adopt):
            return 0
        if self._exit_code is None:
            self._commands.listen(self._mount.runtime)
            table = os.open(procfs.MOUNTINFO, os.O_RDONLY)
            self._loop.watch(table, self._table_changed, TABLE_CHANGED)
        while self._exit_code is None:
            self._loop.step(self._held_up)
        return self._exit_code

    def _begin(self) -> None:
        error = stand_in.put(self._mount)
        self._happened(machine.Begin())
        if error and self._state.next is not None:
            text = f"cannot bind the store over {self._mount.title}: {error.strerror or error}"
            self._happened(machine.Failed(self._state.next, Failure(6, text)))

    # --- events and actions

    def _happened(self, event: Event) -> None:
        """Do what follows from an event, and from what that leads to."""
        self._events.append(event)
        if len(self._events) > 1:
            return  # from within an action: whoever handles the first one handles this one next
        while self._events:
            self._state, actions = machine.step(self._state, self._events[0])
            for action in actions:
                self._do(action)
            if self._exit_code is None:
                self._look()
                self._save()
            self._events.popleft()

    def _do(self, action: Action) -> None:  # noqa: C901, PLR0912  one line for each
        match action:
            case machine.Start(number, standby, asked):
                self._start(number, standby=standby, asked=asked)
            case machine.Mount(number):
                self._mount_for(self._servers[number])
            case machine.Flush(number):
                self._servers[number].flush()
                self._look_up_binds(self._servers[number])
            case machine.Record():
                self._save()
            case machine.Look():
                self._look()
            case machine.Retire(number):
                self._retire(self._servers[number])
            case machine.Kill(number):
                self._kill(number)
            case machine.Lose(number, hung):
                self._lose(self._servers[number], hung=hung)
            case machine.Activate(number):
                self._activate(self._servers[number])
            case machine.Note(failure):
                self._history.note("not started", failure.message)
            case machine.Wait(seconds):
                self._history.wait(self._state.strikes, seconds)
                self._loop.after("again", seconds, partial(self._happened, machine.Retry()))
            case machine.Answer(failure):
                self._commands.restarted(failure)
            case machine.Renew():
                self._renew()
            case machine.Report(failure):
                self._history.report(failure)
            case machine.Finish(exit_code):
                self._finish(exit_code)
            case _:
                assert_never(action)

    # --- servers

    def _start(self, number: int, *, standby: bool, asked: bool) -> None:
        first = self._state.phase is machine.Phase.STARTING
        spec = ServerSpec(mount=self._mount, standby=standby, asked=asked, first=first)
        try:
            server = ServerProcess.start(number, self._spec.server_module, spec)
        except OSError as error:
            failure = Failure(1, f"cannot start the server: {error.strerror}")
            self._happened(machine.Failed(number, failure))
            return
        self._watch(server)
        self._expect_start(number)

    def _expect_start(self, number: int) -> None:
        late = machine.Failed(number, machine.TOO_SLOW)
        self._loop.after("start", timeouts.START, partial(self._happened, late))
        self._loop.after("stopped", timeouts.BEAT, partial(self._look_whether_stopped, number))

    def _look_whether_stopped(self, number: int, before: int = 0) -> None:
        """End a server that was stopped while it starts: plain files are in view for as long as it is waited for (I15).

        It sends no beats yet. Looks are counted, not seconds: this process may have been stopped itself.
        """
        server = self._servers.get(number)
        if server is None or number != self._state.next:
            return
        looks = before + 1 if server.process.stopped() else 0
        if looks * timeouts.BEAT >= timeouts.HANG:
            self._history.log("error", "the new server is stopped: ending it")
            server.kill()  # its end is answered as that of every server that was killed
            return
        again = partial(self._look_whether_stopped, number, looks)
        self._loop.after("stopped", timeouts.BEAT, again)

    def _watch(self, server: ServerProcess) -> None:
        self._servers[server.number] = server
        self._loop.watch(server.link.fileno(), lambda: self._hear(server))
        self._loop.watch(server.life_fd, lambda: self._ended(server))
        server.introduce(self._janitor.process)

    def _hear(self, server: ServerProcess) -> None:
        try:
            message = server.hear()
        except EOFError:
            self._loop.forget(server.link.fileno())  # its life pipe tells the rest
            return
        match message:
            case messages.Loaded():
                self._happened(machine.Loaded(server.number))
            case messages.Failed(failure):
                self._happened(machine.Failed(server.number, failure))
            case messages.Beat(oldest):
                self._beat(server, oldest)

    def _beat(self, server: ServerProcess, oldest: float) -> None:
        if server.number == self._state.next:
            self._happened(machine.Answers(server.number))
        elif server.number == self._state.current and oldest >= timeouts.HANG:
            self._happened(machine.Silent(server.number))
        elif server.number == self._state.current:
            self._expect_beat(server)
            self._history.save_again()
            if self._drains() != self._memory.draining:
                self._look_again()
            if self._state.phase is machine.Phase.SERVING and (came := self._take_in_trees()):
                self._own_restart = (f"{came} came after the mount", time.monotonic())
                self._happened(machine.Restart())
            if self._mount.log:
                log_file.follow(self._mount.log)
                log_file.bound(self._mount.log)

    def _restart(self) -> None:
        self._take_in_trees()
        self._happened(machine.Restart())

    def _take_in_trees(self) -> str:
        """Let servers from now on have the directories that have come since the mount; return which, for people."""
        mount = with_arrived(self._mount)
        came = mount.trees[len(self._mount.trees) :]
        self._mount, self._spec = mount, replace(self._spec, mount=mount)
        for tree in came:
            self._history.log("info", f"{tree.target} is there now: the next server presents it")
        return " and ".join(tree.target for tree in came)

    def _mount_for(self, server: ServerProcess) -> None:
        """Mount, and hand the descriptor to the server, after everyone who cleans up has been told of the mount."""
        try:
            fd, server.mountpoint = self._mounter.mount()
        except OSError as error:
            text = f"the FUSE mount was refused: {error.strerror or error}"
            advice = "check /dev/fuse and fusermount3; the log has their own words"
            self._happened(machine.Failed(server.number, Failure(6, text, advice)))
            return
        table = procfs.mounts()
        top = procfs.top_at(table, server.mountpoint)
        if top is None or not procfs.is_ours(top):
            os.close(fd)
            self._happened(machine.Gone(server.number, unmounted=True))  # in this instant
            return
        server.device = top.device
        self._history.draining(self._memory.devices)  # a number of them may be this one's now
        self._memory = view.mounted(self._memory, top)
        if self._state.current is None:
            self._janitor.attend(server.life_fd)
        self._save()
        server.hand(fd)

    def _activate(self, server: ServerProcess) -> None:
        self._loop.cancel("start")
        self._expect_beat(server)
        if server.standby:
            server.say(messages.Activate())
        self._history.live()
        self._janitor.attend(server.life_fd)
        self._notifier.renew()
        self._introduce()
        came = targets_of(self._mount)[len(self._memory.targets) :]
        if came:
            self._memory = replace(self._memory, targets=(*self._memory.targets, *came))
            self._look()
        stand_in.refresh(self._mount)
        # Once more when the plain copies have been written, which may be names of their own.
        self._loop.after("links", timeouts.END, partial(stand_in.refresh, self._mount))

    def _retire(self, server: ServerProcess) -> None:
        self._loop.cancel("beat")
        self._loop.forget(server.link.fileno())
        server.say(messages.StandBy())
        if server.let_go():
            draining = {*self._drains(), server.device or ""}
            memory = replace(self._memory, draining=frozenset(draining))
            bound = {device for _, device, _ in view.kept(memory, procfs.mounts())}
            self._history.linger(server, bound=bound)

    def _kill(self, number: int) -> None:
        self._loop.cancel("start")
        server = self._servers.get(number)
        if server:  # otherwise it was never there
            server.kill()
            server.gone(timeouts.END)

    def _lose(self, server: ServerProcess, *, hung: bool) -> None:
        """Bring the plain directories into view in the place of a server that died or is to die."""
        lost = time.monotonic()
        self._loop.cancel("beat")
        if hung:
            server.kill()
        # Also one that has died may not be done: a thread waits for a disk.
        place = (server.device, server.mountpoint)
        there = [each for each in procfs.mounts() if (each.device, each.point) == place]
        abort = partial(mount_table.abort_mounted, there)
        if self._mounter.one_place:
            # Its mountpoint may be on a file system that does not answer.
            in_child(abort, timeouts.STORE)
        else:
            abort()
        self._look()
        kind, detail = server.verdict(hung=hung)
        self._history.lose(kind, detail, lost=lost)
        stand_in.refresh(self._mount)
        self._happened(machine.Lost(kind == "killed", server.served_seconds))

    def _ended(self, server: ServerProcess) -> None:
        """Deal with the end of a process: an unmount, a death, or one that was to end."""
        self._loop.forget(server.life_fd)
        self._loop.forget(server.link.fileno())
        if server.number in self._state.servers:
            self._memory = view.refresh(self._memory, procfs.mounts())
            mounted = server.device in self._memory.devices
            unmounted = not mounted and server.was_unmounted()
            if server.number == self._state.next and server.verdict(hung=False)[0] == "killed":
                failed = machine.Failed(server.number, machine.ENDED_EARLY, killed=True)
                self._happened(failed)
            else:
                self._happened(machine.Gone(server.number, unmounted))
        reap(server.process.pid)
        server.close()
        del self._servers[server.number]
        discard(self._mount, server.mountpoint)
        if server.device in self._memory.draining:
            self._look_again()

    def _expect_beat(self, server: ServerProcess) -> None:
        def silent() -> None:
            self._happened(machine.Silent(server.number))

        self._loop.at("beat", server.heard + timeouts.SILENCE, silent)

    def _held_up(self) -> None:
        current = self._current
        if current:
            current.heard = time.monotonic()
            self._expect_beat(current)

    @property
    def _current(self) -> ServerProcess | None:
        number = self._state.current
        return None if number is None else self._servers.get(number)

    def _introduce(self) -> None:
        """Let everybody know which janitor there is now."""
        for number in self._state.servers:
            if number in self._servers:
                self._servers[number].introduce(self._janitor.process)
        self._save()

    # --- what is in view

    def _look(self) -> None:
        """Bring into view what is to be seen, as far as others let us, and notice what others have unmounted."""
        table = procfs.mounts()
        self._memory = replace(self._memory, draining=self._drains())
        self._memory = view.remember_binds(view.refresh(self._memory, table), table)
        server = self._servers.get(self._state.seen) if self._state.seen is not None else None
        live = server.device if server else None
        if self._was_unmounted(server, table):
            return
        errors = self._take_steps(server)
        table = procfs.mounts()
        self._memory = view.refresh(self._memory, table)
        if self._was_unmounted(server, table):
            return
        self._memory = view.settle(self._memory, table, live)
        if self._state.showing and live is not None:
            self._shown(table, live, errors)
        self._waits = bool(view.covered(self._memory, table))
        covered = self._mounter.one_place and self._waits
        if covered != self._state.covered:
            self._events.append(machine.Room(covered))

    def _drains(self) -> frozenset[str]:
        """Return the devices of replaced servers that live; none when everything is to go."""
        draining = self._history.draining(self._memory.devices)
        return frozenset(() if self._state.phase is machine.Phase.ENDED else draining)

    def _look_up_binds(self, server: ServerProcess) -> None:
        """Have the kernel know which names that others have bound lead to something else by now."""
        table = procfs.mounts()
        self._memory = view.remember_binds(view.refresh(self._memory, table), table)
        paths = [f"{server.mountpoint}{bind.root}" for bind in self._memory.binds]
        if paths:
            in_child(lambda: list(map(os.path.lexists, paths)), timeouts.STORE)

    def _was_unmounted(self, server: ServerProcess | None, table: view.Table) -> bool:
        """Whether others have unmounted what is to be seen, which ends the instance."""
        if not (server and server.device and view.unmounted(self._memory, table)):
            return False
        if not server.gone():  # otherwise its end says what happened
            self._history.log("info", "unmounted from outside")
            self._events.append(machine.Unmounted())
        return True

    def _take_steps(self, server: ServerProcess | None) -> dict[view.Step, OSError]:
        errors: dict[view.Step, OSError] = {}
        live = server.device if server else None
        for _ in range(_ROUNDS):
            table = procfs.mounts()
            self._memory = view.refresh(self._memory, table)
            alive = [
                each.device
                for number in self._state.servers
                if (each := self._servers.get(number)) and each.device
            ]
            steps = view.steps(self._memory, table, live=live, alive=alive, failed=errors)
            if not steps:
                break
            for step in steps:
                error = self._take_step(step, server)
                self._memory = view.taken(self._memory, table, step, failed=error is not None)
                if error:
                    errors[step] = error
                    self._complain(step, error)
        return errors

    def _take_step(self, step: view.Step, server: ServerProcess | None) -> OSError | None:
        if isinstance(step, view.Attach):
            place = server.mountpoint if server else None
            return self._mounter.attach(step, place) if place else None
        try:
            self._mounter.detach(step)
        except OSError as error:
            return error
        if self._mounter.one_place and step.point not in self._memory.points:
            text = f"detached {step.point}, where others had bound this mount: only root's comes back there"
            self._history.log("warning", text)
        return None

    def _complain(self, step: view.Step, error: OSError) -> None:
        if isinstance(step, view.Attach):
            what, point = "bring into view", step.view.point
        else:
            what, point = "detach", step.point
        self._history.log("error", f"cannot {what} {point}: {error.strerror or error}")

    def _shown(self, table: view.Table, live: str, errors: dict[view.Step, OSError]) -> None:
        if view.shows(self._memory, table, live):
            self._events.append(machine.Shown())
            return
        reason = next((f": {error.strerror or error}" for error in errors.values()), "")
        failure = Failure(
            6,
            f"cannot bring {self._mount.title} into view{reason}",
            "the log of the kernel (dmesg) may say why",
        )
        if self._state.next is not None:
            self._events.append(machine.Failed(self._state.next, failure))

    def _table_changed(self) -> None:
        """Look at the mount table soon: where containers come and go it changes all the time."""
        self._loop.after("table", 0 if self._waits else timeouts.TABLE, self._look_again)

    def _look_again(self) -> None:
        before = self._memory
        current = self._current
        if current and current.gone():
            return  # `_ended` deals with that
        self._look()
        events, self._events = self._events, deque()
        for event in events:
            self._happened(event)
        now, then = ((each.devices, each.targets, each.kept) for each in (self._memory, before))
        if now != then:
            self._save()

    # --- requests and signals

    def _store(self) -> Reply:
        trees = self._mount.trees
        return Reply(
            trees=tuple(tree.name for tree in trees), descriptors=tuple(tree.fd for tree in trees)
        )

    def _flush(self) -> Reply:
        current = self._current
        if current:
            current.flush()
        return Reply(stale=current.stale if current else ())

    def _signalled(self, number: int) -> None:
        if number in ENDING:
            self._end()
            return
        self._janitor.check()
        self._notifier.check()
        own = [server.process for server in self._servers.values()]
        kept = (*own, self._janitor.process, self._notifier.process)
        reap_strangers({process.pid for process in kept if process})

    def _end(self) -> Reply:
        self._happened(machine.End())
        return self._reply

    def _finish(self, exit_code: int) -> None:
        """Take everything out of view and end."""
        notify("STOPPING=1")
        self._save()  # for a mount that waits for the end of this one
        current, lingering = self._current, None
        if current:
            current.flush()
        if self._state.next is not None:
            self._kill(self._state.next)
        self._state = replace(self._state, current=None, next=None, showing=False)
        self._look()
        table = procfs.mounts()
        self._memory = view.refresh(self._memory, table)
        covered = view.covered(self._memory, table) or view.out_of_reach(self._memory, table)
        if current and not current.gone(0 if covered else timeouts.END) and current.let_go():
            lingering = current.process.pid
        self._notifier.dismiss()
        if covered:
            self._janitor.finish(self._memory.devices)
        else:
            self._janitor.dismiss()
        targets = [target.point for target in self._memory.targets]
        stand_in.remove([tree.store for tree in self._mount.trees[: len(targets)]], targets)
        clear_instance(self._mount.runtime)
        self._history.log("info", "ended")
        self._loop.clear()
        self._exit_code = exit_code
        self._reply = Reply(None, lingering, covered, current.stale if current else ())

    # --- one supervisor after the other

    def _may_adopt(self, server: ServerProcess) -> bool:
        """Whether a server is the one to go on with, and this process the one to do it; what is not wanted is ended."""
        before = self._history.before
        if server.standby and _is_served(before, server):
            server.kill()  # it was to replace that one, whose own new supervisor goes on
            server.gone(timeouts.END)
            return False
        if is_replaced(before, server.process, server.device, procfs.mounts()):
            server.let_go()  # the other one gets a supervisor of its own
            return False
        if self._lock_fd is None:
            self._lock_fd = await_lock(self._mount.runtime)
        if self._lock_fd is None:
            server.let_go()  # another one is in charge, and not of this server
            return False
        return True

    def _adopt(self, adoption: Adoption) -> bool:
        """Take over a running server; whether that is what is to be done."""
        server, before = ServerProcess.adopt(1, adoption), self._history.before
        if not self._may_adopt(server):
            return False
        table = procfs.mounts()
        devices = set(devices_of(self._mount.runtime, before))
        if server.device:
            devices.add(server.device)
        targets = self._memory.targets
        if before:  # a directory above one may have been renamed
            points = zip(targets, before.targets, strict=False)  # one may have come since
            known = tuple(view.View(target.root, point) for target, point in points)
            targets = (*known, *targets[len(known) :])
        self._memory = view.adopted(replace(self._memory, targets=targets), table, devices)
        strikes = Strikes(before.deaths, before.defects) if before else Strikes()
        self._state = replace(self._state, strikes=strikes)
        shown = before and before.phase == "serving" and before.server == server.process
        if shown or (self._mounter.one_place and server.mountpoint):
            # What was in view a moment ago, and is not there any more, somebody has unmounted.
            held = frozenset(before.targets) if before else self._memory.points
            self._memory = replace(self._memory, held=held)
        self._watch(server)
        janitors = {adoption.janitor, before.janitor if before else None}
        self._happened(machine.Adopted(1, mounted=server.mountpoint is not None))
        if self._exit_code is not None:
            _end_all(janitors)
            return True
        # What a janitor is to watch it has to know when it starts.
        self._janitor.attend(server.life_fd)
        _end_all(janitors)  # each supervisor has one that is its own child
        if server.mountpoint is None:
            self._expect_start(server.number)
        else:
            if adoption.standby:
                server.say(messages.Activate())
            self._expect_beat(server)
            self._notifier.renew()
        if before and before.supervisor.pid != os.getpid():
            self._history.note("adopted", "the supervisor died, and this one took over")
        self._introduce()
        return True

    def _renew(self) -> None:
        """Become a new supervisor, of the code that is installed now, with the same pid."""
        asked = self._commands.restart_began
        why, began = self._own_restart if asked is None else ("on request", asked)
        self._history.note("restarted", why, live_seconds=time.monotonic() - began)
        self._save()
        self._commands.restarted(None)
        server = self._current
        assert server is not None  # noqa: S101  it is what was asked for
        adoption = server.handed_over(self._janitor.process)
        spec = replace(self._spec, adopt=adoption, report_fd=None, lock_fd=self._lock_fd)
        try:
            execute(spec, self._loop.raise_again)
        except OSError as error:
            self._history.log("error", f"the supervisor stays the old one: {error}")

    def _save(self) -> None:
        if self._exit_code is not None:
            return
        serving = [self._servers[each] for each in self._state.servers if each in self._servers]
        self._janitor.watch(self._memory.devices, [server.process for server in serving])
        self._history.save(
            _PHASES[self._state.phase],
            serving[0] if serving else None,
            strikes=self._state.strikes,
            janitor=self._janitor.process,
            memory=self._memory,
        )


_PHASES: Final[dict[machine.Phase, Phase]] = {
    machine.Phase.STARTING: "starting",
    machine.Phase.SERVING: "serving",
    machine.Phase.REPLACING: "serving",
    machine.Phase.PLAIN: "plain",
    machine.Phase.BACKOFF: "plain",
    machine.Phase.COVERED: "plain",
    machine.Phase.ENDED: "ending",
}
"""What the state file and ``certfs status`` call it: what people see."""


def is_replaced(
    before: State | None, process: ProcessId, device: str | None, table: view.Table
) -> bool:
    """Whether a server has lost its mount to another one that is in charge and lives: no one has unmounted it then.

    The supervisor of an ordinary user's restart may die between the old mount and the new one.
    """
    if device is None or any(entry.device == device for entry in table):
        return False
    in_charge = before.server if before else None
    return in_charge is not None and in_charge != process and in_charge.alive()


def _is_served(before: State | None, beside: ServerProcess) -> bool:
    """Whether another server is in charge, lives, and is in view."""
    if before is None or before.server is None or before.server == beside.process:
        return False
    seen = {entry.device for entry in procfs.mounts() if entry.point in before.targets}
    return before.server.alive() and before.device in seen


def _end_all(janitors: Iterable[ProcessId | None]) -> None:
    for janitor in filter(None, janitors):
        janitor.kill_session()


def main() -> NoReturn:
    """Be the supervisor of the spec whose descriptor the command line names."""
    leave(Supervisor(receive(SupervisorSpec, int(sys.argv[1]))).run())


if __name__ == "__main__":
    main()
