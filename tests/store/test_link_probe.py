"""Questions that nobody answers cost their asker a bounded time, and no other question its answer."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from certfs.store.link_probe import LinkProbe
from tests.support.mounts import wait_until


class Oracle:
    """Answers with the place that a link leads to; places that begin with ``hung`` wait to be woken."""

    def __init__(self) -> None:
        self.wake = threading.Event()
        self.asked: list[bytes] = []

    def __call__(self, directory: int, name: bytes) -> bytes:
        """Answer, or wait."""
        target = os.readlink(name, dir_fd=directory)
        self.asked.append(name)
        if target.startswith(b"hung"):
            self.wake.wait(30)
        return target


def asking() -> int:
    """Count the threads that wait for an answer."""
    return sum(thread.name == "certfs-link-probe" for thread in threading.enumerate())


def link(path: Path, count: int, place: str, prefix: str = "x") -> list[bytes]:
    """Make links to files of a place."""
    names = [f"{prefix}{number:03}" for number in range(count)]
    for name in names:
        (path / name).symlink_to(f"{place}/{name}")
    return [name.encode() for name in names]


def test_answers_are_given_to_those_who_asked(directory: int, tmp_path: Path) -> None:
    """Each name has its own answer."""
    names = link(tmp_path, 5, "good")
    assert LinkProbe().ask(directory, names, Oracle()) == {name: b"good/" + name for name in names}


def test_a_silent_place_costs_a_second_once(directory: int, tmp_path: Path) -> None:
    """I18: and all others are answered, those of the same question and those of later ones."""
    good = link(tmp_path, 20, "good", "g") + link(tmp_path, 20, "good", "z")
    hung = link(tmp_path, 20, "hung", "h")
    targets, oracle = LinkProbe(), Oracle()
    started = time.monotonic()
    for _ in range(10):
        answers = targets.ask(directory, [*hung, *good], oracle)
        assert set(answers) == set(good)
    assert time.monotonic() - started < 5
    assert oracle.asked.count(hung[0]) == 1
    oracle.wake.set()


def test_many_answers_may_take_their_time(directory: int, tmp_path: Path) -> None:
    """I1: a place with very many links is not silent because all of them together take long."""
    names = link(tmp_path, 100, "good")

    def ponder(_directory: int, name: bytes) -> bytes:
        time.sleep(0.005)
        return name

    assert len(LinkProbe().ask(directory, names, ponder, patience=0.2, most=60)) == 100


def test_a_place_that_wakes_is_asked_again(directory: int, tmp_path: Path) -> None:
    """I1: the next question after the awakening is answered."""
    names = link(tmp_path, 3, "hung")
    targets, oracle = LinkProbe(), Oracle()
    assert targets.ask(directory, names, oracle) == {}
    oracle.wake.set()
    wait_until(lambda: len(targets.ask(directory, names, oracle)) == 3, what="an answer")


def test_many_silent_places_are_bounded(directory: int, tmp_path: Path) -> None:
    """I18: fifty hung places keep a few threads and one asker for a few seconds."""
    names = [
        name for place in range(50) for name in link(tmp_path, 1, f"hung{place}", f"p{place}-")
    ]
    targets, oracle = LinkProbe(), Oracle()
    started = time.monotonic()
    assert targets.ask(directory, names, oracle) == {}
    first = time.monotonic() - started
    assert targets.ask(directory, names, oracle) == {}
    assert first < 10
    assert time.monotonic() - started - first < 1
    assert asking() <= 64
    oracle.wake.set()
    wait_until(lambda: asking() == 0, what="the end of the threads")


def test_no_descriptor_is_left(directory: int, tmp_path: Path) -> None:
    """I18: an abandoned thread closes what it holds when it is back."""
    names = link(tmp_path, 3, "hung")
    targets, oracle = LinkProbe(), Oracle()
    wait_until(lambda: asking() == 0, what="the end of what tests before have begun")
    before = len(os.listdir("/proc/self/fd"))
    targets.ask(directory, names, oracle)
    oracle.wake.set()
    wait_until(
        lambda: len(os.listdir("/proc/self/fd")) == before, what="as many descriptors as before"
    )


def test_a_mistake_in_a_question_is_told(directory: int, tmp_path: Path) -> None:
    """I16: an exception is the asker's, and not a thread's that nobody looks at."""
    names = link(tmp_path, 1, "good")

    def fail(_directory: int, _name: bytes) -> None:
        raise KeyError("a bug")

    with pytest.raises(KeyError):
        LinkProbe().ask(directory, names, fail)
