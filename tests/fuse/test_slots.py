"""I18: threads and tasks are shared by user, with a reserve for root."""

from __future__ import annotations

import errno

import pytest
import trio

from certfs.fuse.slots import Limits, Slots

LIMITS = Limits(user_calls=2, all_calls=3, root_calls=2, user_waiting=3, all_waiting=5)
ALICE, BOB, CAROL, ROOT = 1, 2, 3, 0


async def wait_in(slots: Slots, user: int, order: list[int]) -> None:
    """Wait for a slot and note whose turn it was."""
    await slots.enter(user)
    order.append(user)


def test_a_user_has_its_share_and_root_its_own() -> None:
    """Whatever one user does, others and root find a slot."""
    slots = Slots(LIMITS)
    assert [slots.try_enter(ALICE) for _ in range(3)] == [True, True, False]
    assert [slots.try_enter(BOB) for _ in range(2)] == [True, False]
    assert [slots.try_enter(ROOT) for _ in range(3)] == [True, True, False]
    slots.leave(ALICE)
    assert slots.try_enter(BOB)


async def test_users_take_turns() -> None:
    """The user with the long queue is not served before the one with the short."""
    slots = Slots(LIMITS)
    for user in (ALICE, ALICE, CAROL):
        assert slots.try_enter(user)
    order: list[int] = []
    async with trio.open_nursery() as nursery:
        for user in (ALICE, ALICE, ALICE, BOB, BOB):
            nursery.start_soon(wait_in, slots, user, order)
            await trio.testing.wait_all_tasks_blocked()
        for user in (ALICE, ALICE, CAROL):
            slots.leave(user)
            await trio.testing.wait_all_tasks_blocked()
        assert order == [ALICE, BOB, ALICE]
        for user in (ALICE, BOB):
            slots.leave(user)
    assert sorted(order) == [ALICE] * 3 + [BOB] * 2
    for user in order[3:]:
        slots.leave(user)
    slots.leave(order[2])
    assert slots.waiting(ALICE) == 0
    assert [slots.try_enter(ALICE) for _ in range(3)] == [True, True, False]


async def test_a_queue_has_an_end() -> None:
    """What waits keeps a task: beyond its share a user is told EAGAIN, and root is not."""
    slots = Slots(LIMITS)
    while slots.try_enter(ALICE) or slots.try_enter(ROOT):
        pass
    async with trio.open_nursery() as nursery:
        for user in (ALICE, ALICE, ALICE, BOB, BOB, ROOT, ROOT, ROOT, ROOT, ROOT, ROOT):
            if user == BOB:
                while slots.try_enter(BOB):
                    pass
            nursery.start_soon(wait_in, slots, user, [])
            await trio.testing.wait_all_tasks_blocked()
        for user in (ALICE, CAROL):
            if user == CAROL and slots.try_enter(CAROL):
                continue
            with pytest.raises(OSError, match="temporarily") as caught:
                await slots.enter(user)
            assert caught.value.errno == errno.EAGAIN
        assert slots.waiting(ROOT) == 6
        for user in [ALICE, ROOT, BOB] * 10:
            if slots._made.get(user):
                slots.leave(user)


async def test_what_is_heavy_waits_alone() -> None:
    """A write keeps its data in memory while it waits, and counts for it."""
    slots = Slots(LIMITS)
    while slots.try_enter(ALICE):
        pass
    with pytest.raises(OSError, match="temporarily"):
        await slots.enter(ALICE, 4)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slots.enter, ALICE, 3)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError, match="temporarily"):
            await slots.enter(ALICE)
        slots.leave(ALICE)
