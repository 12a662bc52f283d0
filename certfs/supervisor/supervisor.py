"""The supervisor (S): starts the server, watches it, and decides what is in view when it dies.

It owns the policy: what a death, a silence, a request or a signal leads to. It resolves no path through a mount of ours
in its own process, imports only the standard library and the modules beside it, and sleeps in `Reactor.step` alone.

The servers it knows: ``current`` is in view (or would be, if nobody had asked for plain directories); ``coming`` was
started and is not ready yet; ``released`` ones serve what was opened before they were replaced, and end by themselves.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from typing import Final

from certfs import procfs
from certfs.linux import log_file, mount_table
from certfs.linux.processes import reap, reap_strangers, urgent
from certfs.linux.sd_notify import notify
from certfs.protocol import link as messages
from certfs.protocol.control import Reply
from certfs.protocol.launch_spec import ENDING, Adoption, Order, execute
from certfs.protocol.link import Failure, failure_from
from certfs.protocol.state_file import Phase, await_lock, clear_instance
from certfs.supervisor import stand_in
from certfs.supervisor.commands import Requests
from certfs.supervisor.event_loop import TABLE_CHANGED, Reactor
from certfs.supervisor.history import Record
from certfs.supervisor.janitor import Janitor
from certfs.supervisor.notifier_process import NotifierProcess
from certfs.supervisor.outcome import Outcome
from certfs.supervisor.server_process import ENDED_EARLY, START_SECONDS, TOO_SLOW, Server
from certfs.supervisor.view import FLUSH_SECONDS, Stage

END_SECONDS: Final = 1.0
"""How long a server may take to end after its mount is gone, unless files are still open."""
TABLE_SECONDS: Final = 0.05
_NO_ROOM: Final = Failure(6, "something is mounted over it", "unmount that first")


class Supervisor:
    """One instance of certfs, from the order to the end."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._mount = order.mount
        self._reactor = Reactor()
        self._record = Record(order)
        self._stage = Stage(order.mount, lambda text: self._record.log("error", text))
        self._janitor = Janitor(self._reactor, replaced=self._introduce)
        self._notifier = NotifierProcess(order.mount, self._reactor)
        self._lock_fd = order.lock_fd
        self._current: Server | None = None
        self._coming: Server | None = None
        self._released: set[Server] = set()
        self._requests = Requests(
            end=lambda: self._end(0),
            replace=self._replace,
            flush=self._flush,
        )
        self._outcome = Outcome(order)
        self._exit_code: int | None = None

    def run(self) -> int:
        """Supervise until the mount has ended; return the exit code."""
        os.chdir("/")
        urgent(os.getpid())
        mount_table.mount_connections()
        self._reactor.on_signals((*ENDING, signal.SIGCHLD), self._signalled)
        if self._order.adopt is None:
            error = stand_in.put(self._mount)
            if error:
                self._not_started(Failure(6, f"cannot bind the store: {error.strerror or error}"))
                return self._exit_code or 0
            self._start()
        elif not self._adopt(self._order.adopt):
            return 0
        self._requests.listen(self._mount.runtime, self._reactor)
        table = os.open(procfs.MOUNTINFO, os.O_RDONLY)
        self._reactor.watch(table, self._table_changed, TABLE_CHANGED)
        while self._exit_code is None:
            self._reactor.step(self._held_up)
        return self._exit_code

    # --- starting a server

    def _start(self) -> None:
        """Start the next server; if that is impossible, try again later."""
        if self._coming or not self._stage.has_room():
            return
        self._reactor.cancel("again")
        try:
            asked = self._outcome.pending or self._requests.restarting is not None
            beside = self._current is not None
            server = self._stage.start(self._order.server_module, beside=beside, asked=asked)
        except OSError as error:
            self._not_started(Failure(1, f"cannot start the server: {error.strerror}"))
            return
        self._coming = server
        self._watch(server)
        self._reactor.after("start", START_SECONDS, lambda: self._give_up(server, TOO_SLOW))
        self._save()

    def _watch(self, server: Server) -> None:
        self._reactor.watch(server.link.fileno(), lambda: self._hear(server))
        self._reactor.watch(server.life_fd, lambda: self._ended(server))
        server.introduce(self._janitor.process)

    def _introduce(self) -> None:
        """Let everybody know which janitor there is now."""
        for server in self._serving():
            server.introduce(self._janitor.process)
        self._save()

    def _serving(self) -> list[Server]:
        return [server for server in (self._current, self._coming) if server]

    def _hear(self, server: Server) -> None:
        message = server.hear()
        if message == b"":
            self._reactor.forget(server.link.fileno())  # its life pipe tells the rest
        elif server is self._current:
            self._expect_beat(server)
            if self._mount.log:
                log_file.follow(self._mount.log)
                log_file.bound(self._mount.log)
        elif message == messages.READY:
            self._ready(server)
        elif message == messages.LOADED:
            self._make_room()
            server.say(messages.MOUNT)
        elif message.startswith(messages.ERROR):
            self._give_up(server, failure_from(message))

    def _make_room(self) -> None:
        """Take the server out of view and let it go (the way of an ordinary user, whose servers have one place)."""
        if self._current:
            self._reactor.cancel("beat")
            self._current.flush(FLUSH_SECONDS)
            self._retire(self._current)
            self._current = None
            self._save()  # a successor must not take the old one for the one in charge

    def _ready(self, server: Server) -> None:
        """Bring a server that is ready into view, in place of the one that is there."""
        if not self._stage.identify(server):
            self._give_up(server, Failure(6, f"nothing is mounted at {server.mountpoint}"))
            return
        self._save()
        failure = self._stage.show(server, self._current)
        if failure:
            self._give_up(server, failure)
            return
        self._reactor.cancel("start")
        self._coming, replaced, self._current = None, self._current, server
        self._expect_beat(server)
        if replaced:
            self._retire(replaced)
        if server.passive:
            server.say(messages.ACTIVATE)
        self._record.live()
        self._janitor.attend(server.life_fd)
        self._notifier.renew()
        self._introduce()
        stand_in.refresh(self._mount)
        self._outcome.tell(None)
        self._save()
        seconds = self._requests.restarting
        if seconds is not None:
            self._renew(server, seconds)

    def _retire(self, server: Server) -> None:
        """Let a server that was replaced serve what is open, and no more."""
        server.say(messages.PASSIVE)
        self._stage.remove(server)
        server.let_go()
        self._release(server)

    def _release(self, server: Server) -> None:
        self._reactor.forget(server.link.fileno())
        self._released.add(server)
        self._stage.clear(server.mountpoint)

    def _give_up(self, server: Server, failure: Failure) -> None:
        """Do without a server that was to come into view."""
        self._coming = None
        self._put_down(server)
        self._stage.remove(server)
        self._release(server)
        if self._current:
            self._stage.show(self._current, None)  # where the new one had taken its place already
        self._not_started(failure)

    def _not_started(self, failure: Failure, *, killed: bool = False) -> None:
        """Deal with a server that never served: the first, a new one beside the old, or one after a death."""
        self._reactor.cancel("start")
        if self._outcome.pending:
            self._end(failure.exit_code)
            self._outcome.tell(failure)  # now that nothing is left
            return
        self._record.note("not started", failure.message)
        self._requests.restarted(failure)
        if self._current is None:
            self._start_later(0.0, killed=killed)
        self._save()

    def _ended(self, server: Server) -> None:
        """Deal with the end of a process: an unmount, a death, or one that was to end."""
        self._reactor.forget(server.life_fd)
        self._reactor.forget(server.link.fileno())
        if server in self._released:
            self._released.discard(server)
        elif server is self._coming:
            self._coming = None
            self._stage.identify(server, beside=self._current)  # it may have mounted without a word
            self._stage.remove(server)
            self._not_started(ENDED_EARLY, killed=server.verdict(hung=False)[0] == "killed")
        elif self._stage.mounted(server) or not server.was_unmounted():
            self._lost(server)
        else:
            self._end(0)
        reap(server.process.pid)
        server.close()
        self._stage.clear(server.mountpoint)

    def _silent(self, server: Server) -> None:
        """Deal with a server that does not answer: as if it had died (I15)."""
        server.kill()
        self._release(server)
        self._lost(server, hung=True)

    def _lost(self, server: Server, *, hung: bool = False) -> None:
        """Bring the plain directories into view and start another server."""
        lost = time.monotonic()
        self._reactor.cancel("beat")
        self._current = None
        if self._stage.mounted(server):  # otherwise the number may be somebody else's by now
            # Also one that has died may not be done: a thread waits for a disk.
            mount_table.try_abort(server.device)
        self._stage.hide(server, except_for=self._coming)
        plain_seconds = time.monotonic() - lost
        kind, detail = server.verdict(hung=hung)
        self._record.lose(kind, detail, lost=lost, plain_seconds=plain_seconds)
        self._start_later(time.time() - server.since, killed=kind == "killed")
        self._save()

    def _start_later(self, served_seconds: float, *, killed: bool) -> None:
        if self._coming:
            return
        self._record.strikes = self._record.strikes.after(served_seconds)
        delay = self._record.strikes.delay(killed=killed)
        if delay:
            text = f"death {self._record.strikes.count} in a row: plain directories for {delay} s"
            self._record.log("error", text)
            notify(f"STATUS={text}")
        self._reactor.after("again", delay, self._start)

    def _expect_beat(self, server: Server) -> None:
        deadline = server.heard + messages.HANG_SECONDS
        self._reactor.at("beat", deadline, lambda: self._silent(server))

    def _held_up(self) -> None:
        if self._current:
            self._current.heard = time.monotonic()
            self._expect_beat(self._current)

    # --- requests, signals, the mount table

    def _replace(self) -> Failure | None:
        if self._stage.has_room():
            self._start()
            return None
        return _NO_ROOM

    def _flush(self) -> Reply:
        if self._current is None:
            return Reply()
        self._current.flush(FLUSH_SECONDS)
        return Reply(stale=self._current.stale)

    def _signalled(self, number: int) -> None:
        if number in ENDING:
            self._end(0)
            return
        self._janitor.check()
        self._notifier.check()
        own = [server.process for server in (*self._serving(), *self._released)]
        kept = (*own, self._janitor.process, self._notifier.process)
        reap_strangers({process.pid for process in kept if process})

    def _table_changed(self) -> None:
        """Look at the mount table soon: where containers come and go it changes all the time."""
        self._reactor.after("table", 0 if self._stage.waits else TABLE_SECONDS, self._look_at_table)

    def _look_at_table(self) -> None:
        current = self._current
        if current and current.gone(0):
            return  # `_ended` deals with that
        if current and not self._stage.shows(current):
            self._record.log("info", "unmounted from outside")
            self._stage.tidy(current, self._coming)  # numbers that are free are the next one's
            self._end(0)
            return
        if self._stage.tidy(current, self._coming):
            self._save()
        if current:
            self._stage.resume(current)
        elif self._stage.finds_room():
            self._start()

    # --- ending

    def _end(self, exit_code: int) -> Reply:
        """Take everything out of view and end; return what is still there."""
        if self._exit_code is not None:
            return Reply()
        notify("STOPPING=1")
        current, lingering = self._current, None
        if current:
            current.flush(FLUSH_SECONDS)
        if self._coming:
            self._put_down(self._coming)
        self._stage.hide(None)
        covered = self._stage.covered()
        if current and not current.gone(0 if covered else END_SECONDS) and current.let_go():
            lingering = current.process.pid
        self._notifier.dismiss()
        if covered:
            self._janitor.finish(self._stage.devices)
        else:
            self._janitor.dismiss()
        stand_in.remove(self._mount)
        clear_instance(self._mount.runtime)
        self._record.log("info", "ended")
        self._reactor.clear()
        self._exit_code = exit_code
        return Reply(None, lingering, covered, current.stale if current else ())

    def _put_down(self, server: Server) -> None:
        server.end(END_SECONDS)
        self._stage.identify(server, beside=self._current)  # it may have mounted without a word

    # --- one supervisor after the other

    def _adopt(self, adoption: Adoption) -> bool:
        """Take over a running server; whether it is the one to take over, and this process the one to do it."""
        server, before = Server.adopt(adoption), self._record.before
        in_charge = before.server if before else None
        if adoption.passive and in_charge and in_charge != server.process and in_charge.alive():
            self._put_down(server)  # it was to replace that one, whose own new supervisor goes on
            self._stage.hide(None)
            return False
        if self._lock_fd is None:
            self._lock_fd = await_lock(self._mount.runtime)
            if self._lock_fd is None:
                return False
        self._current = server
        self._watch(server)
        self._stage.take_over(server, before)
        self._save()  # what a janitor is to watch it has to know when it starts
        self._janitor.attend(server.life_fd)
        self._notifier.renew()
        for janitor in filter(None, {adoption.janitor, before.janitor if before else None}):
            janitor.kill_session()  # each supervisor has one that is its own child
        if adoption.passive:
            server.say(messages.ACTIVATE)
        self._expect_beat(server)
        if before and before.supervisor.pid != os.getpid():
            self._record.note("adopted", "the supervisor died, and this one took over")
        self._introduce()
        return True

    def _renew(self, server: Server, seconds: float) -> None:
        """Become a new supervisor, of the code that is installed now, with the same pid."""
        self._record.note("restarted", "on request", live_seconds=seconds)
        self._save()
        self._requests.restarted(None)
        adoption = server.handed_over(self._janitor.process)
        order = replace(self._order, adopt=adoption, report_fd=None, lock_fd=self._lock_fd)
        try:
            execute(order)
        except OSError as error:
            self._record.log("error", f"the supervisor stays the old one: {error}")

    def _save(self) -> None:
        self._janitor.watch(self._stage.devices, [server.process for server in self._serving()])
        phase: Phase = "serving" if self._current else "plain"
        if self._outcome.pending:
            phase = "starting"
        server = self._current or self._coming
        self._record.save(phase, server, janitor=self._janitor.process, devices=self._stage.devices)


if __name__ == "__main__":
    sys.exit(Supervisor(Order.receive(int(sys.argv[1]))).run())
