"""Machine and view together, over a mount table in memory: no sequence of events leaves a dead mount (I14)."""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from certfs.procfs import FILESYSTEM_TYPE, Entry, top_at
from certfs.protocol.messages import Failure
from certfs.supervisor import machine, view
from certfs.supervisor.machine import Phase

RUNTIME = "/run/certfs/x"
TARGETS = (view.View("/a", "/etc/a"), view.View("/b", "/etc/b"))
POINTS = [each.point for each in TARGETS]
ELSEWHERE = "/srv/bind"
FILE = "/srv/ca.pem"
"""Where others bind a bundle."""
FORMER = "/a/ca.pem//deleted"
"""How the kernel calls a generation of it that is not the present one."""
OTHER = "/run/certfs/other/mount-1"
"""Where another instance is mounted."""


class Kernel:
    """A mount table: mounts on top of mounts. What is gone leaves its numbers to the next mount."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def mount(self, device: str, root: str, point: str, kind: str = FILESYSTEM_TYPE) -> Entry:
        """Mount on top of what is there."""
        top = top_at(self.entries, point)
        taken = {entry.mount_id for entry in self.entries}
        number = next(each for each in itertools.count(2) if each not in taken)
        parent = top.mount_id if top else 1
        entry = Entry(number, parent, device, root, point, kind, owner=0)
        self.entries.append(entry)
        return entry

    def free_device(self) -> str:
        """Return the number of the next file system."""
        taken = {entry.device for entry in self.entries}
        return next(d for n in itertools.count(40) if (d := f"0:{n}") not in taken)

    def umount(self, point: str) -> None:
        """Take the topmost mount away."""
        top = top_at(self.entries, point)
        if top:
            self.entries.remove(top)


class World(RuleBasedStateMachine):
    """A supervisor over processes and mounts in memory, and a host on which anything happens."""

    one_place = False

    @initialize()
    def begin(self) -> None:
        """Start."""
        self.kernel = Kernel()
        self.targets = TARGETS[:1] if self.one_place else TARGETS
        self.state = machine.State(one_place=self.one_place)
        self.memory = view.Memory(
            runtime=RUNTIME, targets=self.targets, can_attach=not self.one_place
        )
        self.devices: dict[int, str] = {}
        self.alive: set[int] = set()
        self.draining: set[int] = set()
        self.bound: dict[tuple[int, str], int] = {}
        """Bind mounts of former generations: the server that has what they show."""
        self.events: deque[machine.Event] = deque()
        self.meanwhile: tuple[int, str] | None = None
        self.taken = False
        self.comes = False
        self.other: Entry | None = None
        self.happened(machine.Begin())

    # --- the hands, as in `certfs.supervisor.supervisor`

    def happened(self, event: machine.Event) -> None:
        """Do what follows."""
        self.events.append(event)
        handled = 0
        while self.events:
            handled += 1
            assert handled < 100, "the events do not come to an end"
            self.state, actions = machine.step(self.state, self.events.popleft())
            for action in actions:
                self.do(action)
            if self.state.phase is not Phase.ENDED:
                self.look()

    def do(self, action: machine.Action) -> None:
        """Do one thing."""
        match action:
            case machine.Start(number):
                self.alive.add(number)
            case machine.Mount(number):
                device = self.kernel.free_device()
                place = POINTS[0] if self.one_place else f"{RUNTIME}{view.HIDDEN}{number}"
                self.memory = view.mounted(self.memory, self.kernel.mount(device, "/", place))
                self.draining = {each for each in self.draining if self.devices[each] != device}
                self.devices[number] = device
            case machine.Retire(number) if number in self.alive:
                self.draining.add(number)
            case machine.Look():
                self.look()
            case machine.Kill(number):
                self.alive.discard(number)
            case machine.Lose(number):
                self.alive.discard(number)
                self.look()
                self.events.append(machine.Lost(killed=False, served_seconds=1.0))
            case machine.Finish():
                self.alive.clear()
                self.state = replace(self.state, current=None, next=None, showing=False)
                self.look()

    def look(self) -> None:
        """Bring into view what is to be seen."""
        table = self.kernel.entries
        self.draining &= {n for n in self.alive if self.devices.get(n) in self.memory.devices}
        drains = frozenset(self.devices[each] for each in self.draining if self.running)
        self.memory = replace(self.memory, draining=drains)
        self.memory = view.remember_binds(view.refresh(self.memory, table), table)
        live = self.devices.get(self.state.seen) if self.state.seen else None
        if live and view.unmounted(self.memory, table):
            self.events.append(machine.Unmounted())
            return
        alive = [self.devices[each] for each in self.state.servers if each in self.devices]
        for _ in range(64):
            self.memory = view.refresh(self.memory, table)
            steps = view.steps(self.memory, table, live=live, alive=alive)
            before = tuple(table)
            if not steps:
                break
            for step in steps:
                if isinstance(step, view.Attach):
                    assert live is not None
                    if step.over:
                        self.kernel.umount(step.view.point)
                    self.kernel.mount(live, step.view.root, step.view.point)
                else:
                    self.kernel.umount(step.point)
                self.memory = view.taken(self.memory, before, step)
                self.interfere()
        else:
            raise AssertionError("the view does not come to rest")
        self.memory = view.refresh(self.memory, table)
        if live and view.unmounted(self.memory, table):
            self.events.append(machine.Unmounted())
            return
        self.memory = view.settle(self.memory, table, live)
        if self.state.showing and live:
            shown = view.shows(self.memory, table, live)
            assert self.state.next is not None
            lost = machine.Failed(self.state.next, Failure(6, "not shown"))
            self.events.append(machine.Shown() if shown else lost)
        covered = self.one_place and bool(view.covered(self.memory, table))
        if covered != self.state.covered:
            self.events.append(machine.Room(covered))

    # --- what happens

    @property
    def running(self) -> bool:
        """Whether the supervisor has not ended."""
        return self.state.phase is not Phase.ENDED

    @precondition(lambda self: self.running and self.state.next in self.alive)
    @rule(fails=st.integers(0, 9))
    def server_goes_on(self, fails: int) -> None:
        """The next server loads, or answers, or fails."""
        number = self.state.next
        assert number is not None
        if fails == 0:
            self.happened(machine.Failed(number, Failure(3, "broken")))
        elif number in self.devices:
            self.happened(machine.Answers(number))
        else:
            self.happened(machine.Loaded(number))

    @precondition(lambda self: self.running and self.state.servers)
    @rule(data=st.data(), unmounted=st.booleans())
    def server_dies(self, data: st.DataObject, *, unmounted: bool) -> None:
        """A server dies, or finds itself unmounted."""
        number = data.draw(st.sampled_from(self.state.servers))
        self.alive.discard(number)
        mounted = any(entry.device == self.devices.get(number) for entry in self.kernel.entries)
        self.happened(machine.Gone(number, unmounted and not mounted))

    @precondition(lambda self: self.running and self.state.current)
    @rule()
    def server_hangs(self) -> None:
        """The current server is silent."""
        assert self.state.current is not None
        self.happened(machine.Silent(self.state.current))

    @precondition(lambda self: self.running and self.draining)
    @rule(data=st.data())
    def replaced_server_dies(self, data: st.DataObject) -> None:
        """One that served what was still open has ended, which is noticed with the next beat."""
        self.alive.discard(data.draw(st.sampled_from(sorted(self.draining))))
        self.table_changed()

    @precondition(lambda self: self.running)
    @rule()
    def restart(self) -> None:
        """A command asks for a restart."""
        if not self.state.asked:
            self.happened(machine.Restart())

    @precondition(lambda self: self.state.phase is Phase.BACKOFF)
    @rule()
    def retry(self) -> None:
        """The time is over."""
        self.happened(machine.Retry())

    @rule(point=st.sampled_from([*POINTS, ELSEWHERE]))
    def cover(self, point: str) -> None:
        """Others mount over it."""
        self.kernel.mount("0:9", "/", point, "tmpfs")
        self.table_changed()

    @rule(point=st.sampled_from([*POINTS, ELSEWHERE, FILE]), quickly=st.integers(1, 2))
    def unmount(self, point: str, quickly: int) -> None:
        """Others unmount what is on top, once or twice before anyone looks."""
        for _ in range(quickly):
            self.kernel.umount(point)
        self.forget_bound()
        self.table_changed()

    @rule()
    def bind(self) -> None:
        """Others bind a directory of ours elsewhere."""
        top = top_at(self.kernel.entries, POINTS[0])
        if top and top.kind == FILESYSTEM_TYPE and not self.one_place:
            self.kernel.mount(top.device, "/a/sub", ELSEWHERE)
            self.table_changed()

    @rule()
    def bind_bundle(self) -> None:
        """Others bind a bundle as a file."""
        top = top_at(self.kernel.entries, POINTS[0])
        if top and top.kind == FILESYSTEM_TYPE and not self.one_place:
            self.kernel.mount(top.device, "/a/ca.pem", FILE)
            self.table_changed()

    @precondition(lambda self: self.running and self.state.current in self.alive)
    @rule()
    def bundle_changes(self) -> None:
        """The present generation is another one: those of before have no name any more."""
        number = self.state.current
        assert number is not None
        for index, entry in enumerate(self.kernel.entries):
            if entry.device == self.devices[number] and entry.root == "/a/ca.pem":
                self.kernel.entries[index] = replace(entry, root=FORMER)
                self.bound[entry.mount_id, entry.device] = number

    def forget_bound(self) -> None:
        """Expect no more of what others have unmounted."""
        left = {(entry.mount_id, entry.device) for entry in self.kernel.entries}
        self.bound = {key: number for key, number in self.bound.items() if key in left}

    @precondition(lambda self: not self.one_place)
    @rule(number=st.integers(0, 1))
    def move(self, number: int) -> None:
        """A directory above a target is renamed, and with it what is mounted there, or renamed back."""
        here, there = POINTS[number], f"/moved{POINTS[number]}"
        points = {here: there, there: here, FILE: f"/moved{FILE}", f"/moved{FILE}": FILE}
        ends = not self.running or self.meanwhile is not None
        self.kernel.entries[:] = [
            replace(entry, point=points.get(entry.point, entry.point))
            for entry in self.kernel.entries
        ]
        self.table_changed()
        assert self.running or ends

    @precondition(lambda self: self.running)
    @rule(rarely=st.integers(0, 9))
    def end(self, rarely: int) -> None:
        """A command ends it."""
        if rarely == 0:
            self.happened(machine.End())

    @precondition(lambda self: self.running)
    @rule(point=st.sampled_from(POINTS), steps=st.integers(1, 4))
    def unmount_meanwhile(self, point: str, steps: int) -> None:
        """Others will unmount what is live at a place, right after so many steps of ours."""
        self.meanwhile = (steps, point)

    @precondition(lambda self: self.other is None)
    @rule(at_once=st.booleans())
    def another_instance(self, *, at_once: bool) -> None:
        """Another certfs of this user is mounted, now or right after the next step of ours."""
        self.comes = not at_once
        if at_once:
            self.other = self.kernel.mount(self.kernel.free_device(), "/", OTHER)
            self.table_changed()

    @rule()
    def unmount_while_another_comes(self) -> None:
        """Others unmount everything of ours, and another certfs gets the numbers before anyone looks."""
        ours = {entry.device for entry in self.kernel.entries} <= set(self.memory.devices)
        if self.other is None and ours and self.memory.devices:
            for entry in tuple(self.kernel.entries):
                if entry.device in self.memory.devices:
                    self.kernel.entries.remove(entry)
            self.forget_bound()
            self.other = self.kernel.mount(self.kernel.free_device(), "/", OTHER)
            self.table_changed()

    def interfere(self) -> None:
        """Do what others do between two steps of ours, unseen."""
        if self.comes:
            self.comes = False
            self.other = self.kernel.mount(self.kernel.free_device(), "/", OTHER)
        if self.meanwhile is None:
            return
        left, point = self.meanwhile
        if left > 1:
            self.meanwhile = (left - 1, point)
            return
        self.meanwhile = None
        top = top_at(self.kernel.entries, point)
        if self.running and self.state.seen and top and top.device == self.devices[self.state.seen]:
            self.kernel.umount(point)
            self.taken = True

    def table_changed(self) -> None:
        """Look at the table, as the supervisor does when the kernel says so."""
        if not self.running:
            self.janitor()
            return
        self.look()
        events, self.events = self.events, deque()
        for event in events:
            self.happened(event)

    def janitor(self) -> None:
        """Detach what comes into view after the supervisor has ended: it has handed that over (`Janitor.finish`)."""
        for point in [entry.point for entry in self.kernel.entries]:
            while (top := top_at(self.kernel.entries, point)) and top.device in self.memory.devices:
                if top == self.other:
                    break  # see janitor.sh
                self.kernel.umount(point)

    # --- what must be true then

    def ours(self) -> set[str]:
        """Return every device that certfs ever mounted."""
        return set(self.devices.values())

    @invariant()
    def another_instance_is_left_alone(self) -> None:
        """Whatever numbers its mount has got, it stays."""
        assert self.other is None or self.other in self.kernel.entries

    @invariant()
    def what_others_unmounted_has_ended(self) -> None:
        """A directory that somebody unmounted is not brought back, however quickly that came after a step of ours."""
        assert not (self.taken and self.running)

    @invariant()
    def nothing_dead_is_on_top(self) -> None:
        """No place that can be looked at leads to a server that is dead, or that nobody looks after."""
        if not self.running:
            living = set[str]()
        else:
            living = {self.devices[each] for each in self.state.servers if each in self.devices}
        drains = {self.devices[each] for each in self.draining} if self.running else set[str]()
        for point in {entry.point for entry in self.kernel.entries} - {OTHER}:
            top = top_at(self.kernel.entries, point)
            assert top is not None
            kept = top.root == FORMER and top.device in drains
            assert kept or top.device not in self.ours() - living, point

    @invariant()
    def what_others_have_bound_stays(self) -> None:
        """A bind mount of a former generation is there as long as the server that has it lives."""
        there = {
            (entry.mount_id, entry.device) for entry in self.kernel.entries if entry.root == FORMER
        }
        for key, number in self.bound.items():
            assert key in there or number not in self.alive or not self.running

    @invariant()
    def what_serves_is_in_view(self) -> None:
        """A live server is at every target, or something of others is over ours."""
        if self.state.phase is Phase.SERVING:
            assert self.state.current is not None
            live = self.devices[self.state.current]
            assert view.shows(self.memory, self.kernel.entries, live)

    @invariant()
    def somebody_looks_after_it(self) -> None:
        """While the supervisor runs there is a server, or a reason for the next one to start."""
        if self.running and not self.state.servers:
            assert self.state.phase in {Phase.BACKOFF, Phase.COVERED}
            assert self.state.covered or self.state.phase is Phase.BACKOFF


class UserWorld(World):
    """The same for an ordinary user, whose servers have one place."""

    one_place = True


TestRoot = World.TestCase
TestRoot.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestUser = UserWorld.TestCase
TestUser.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


def test_a_bind_mount_of_what_has_no_name_any_more_does_not_come_back() -> None:
    """A bundle's former generation, bound as a file, is nowhere in the next server's mount: nothing is tried."""
    device = "0:40"
    views = [("/a", "/etc/a"), ("/a/certs", "/srv/d"), ("/a/ca.pem//deleted", "/srv/f")]
    table = [
        Entry(number, 1, device, root, point, FILESYSTEM_TYPE, owner=0)
        for number, (root, point) in enumerate(views, 2)
    ]
    before = (view.View("/a/ca.pem", "/srv/f"),)  # when it was the present one
    memory = view.Memory(
        runtime=RUNTIME, targets=TARGETS[:1], can_attach=True, live=device, binds=before
    )
    memory = view.adopted(memory, table, [device])
    assert view.remember_binds(memory, table).binds == (view.View("/a/certs", "/srv/d"),)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_dead_mount_beneath_anothers_is_ours_wherever_it_is_moved(*, is_replaced: bool) -> None:
    """I14: all that is left of a server, seen at a target before: its way ends nothing, and it goes when it shows."""
    world = World()
    world.begin()
    world.server_goes_on(fails=1)
    world.server_goes_on(fails=1)
    world.cover(point="/etc/b")
    dead = world.state.current
    assert dead is not None
    world.alive.discard(dead)
    world.happened(machine.Gone(dead))
    for _ in range(2 * is_replaced):
        world.server_goes_on(fails=1)
    for _ in range(3):
        world.move(number=1)
        assert world.running
    world.unmount(point="/moved/etc/b", quickly=1)
    assert world.running
    world.nothing_dead_is_on_top()
    world.somebody_looks_after_it()
    world.what_serves_is_in_view()
