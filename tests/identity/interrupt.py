"""Ending a command at a chosen system call, or making that call fail: with strace, no luck involved.

Owns finding the system calls by which a command changes a filesystem, and running the command again
so that it dies just before the Nth of them, or so that the Nth fails. What a kill between two calls
leaves is what the first of them left, so this is every state that an interruption can leave.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support.forked import run_forked
from tests.support.mounts import need_program

_CHANGING = (
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,"
    "chmod,fchmod,fchmodat,chown,fchown,fchownat,lchown,write,pwrite64,fsync,fdatasync,"
    "truncate,ftruncate"
)
_WITHOUT_A_TRACE = {"fsync", "fdatasync"}
"""Calls after which a kill leaves what it would have left before them."""
_EVERY = int(os.environ.get("CERTFS_TEST_EVERY", "4"))
"""A test tries every so manieth call of a command; the nightly run tries every one."""
_CREATING = "openat"
"""Counted apart, and only in the host's directories: Python opens more or fewer files as it starts."""
_CALL = re.compile(r"^(\w+)\((.*)")


@dataclass(frozen=True, slots=True)
class Step:
    """The `number`-th call (from 1) of the system call `name` that the command makes.

    With `paths` only the calls that concern these directories count.
    """

    name: str
    number: int
    arguments: str
    paths: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} {self.number}"


def steps(words: Sequence[str | Path], trace: Path) -> Iterator[Step]:
    """Run a command undisturbed, and give the calls by which it changes files."""
    yield from _steps(words, trace, _CHANGING, ())


def kills(words: Sequence[str | Path], trace: Path) -> list[Step]:
    """Give the calls before which a kill leaves a state of its own, of many of them only some."""
    found = [*steps(words, trace)]
    before = [None, *found]
    states = [
        step
        for step, previous in zip(found, before, strict=False)
        if (previous is None or previous.name not in _WITHOUT_A_TRACE)
        and not (step.name == "write" and step.arguments[0] in "12")  # what it says to its caller
    ]
    return some(states)


def some(found: Sequence[Step]) -> list[Step]:
    """Give every so manieth step and the last one, which is where a command becomes visible or has left something."""
    return [*found[:-1:_EVERY], *found[-1:]]


def creations(words: Sequence[str | Path], trace: Path, paths: Sequence[Path]) -> Iterator[Step]:
    """Run a command undisturbed, and give the calls by which it makes files in `paths`."""
    found = _steps(words, trace, _CREATING, tuple(paths))
    yield from (step for step in found if "O_CREAT" in step.arguments)


def _steps(
    words: Sequence[str | Path], trace: Path, calls: str, paths: tuple[Path, ...]
) -> Iterator[Step]:
    need_program("strace")
    done = _run(["-o", trace, "-y", "-s", "0", "-e", f"trace={calls}", *_only(paths)], words)
    assert done.returncode == 0, done.stderr
    counts: Counter[str] = Counter()
    for line in trace.read_text(errors="replace").splitlines():
        call = _CALL.match(line)
        if call is not None:
            counts[call[1]] += 1
            yield Step(call[1], counts[call[1]], call[2], paths)


def kill_at(step: Step, words: Sequence[str | Path]) -> None:
    """Run the command and kill it as it enters that system call."""
    done = _inject(step, words, "signal=KILL")
    assert done.returncode == -signal.SIGKILL, f"{step}: not killed: {done}"


def fail_at(
    step: Step, words: Sequence[str | Path], *, error: str
) -> subprocess.CompletedProcess[str]:
    """Run the command and let that system call fail with `error`, such as ENOSPC."""
    return _inject(step, words, f"error={error}")


def _inject(
    step: Step, words: Sequence[str | Path], fault: str
) -> subprocess.CompletedProcess[str]:
    inject = f"inject={step.name}:{fault}:when={step.number}"
    what = ["-o", "/dev/null", "-e", f"trace={step.name}", "-e", inject, *_only(step.paths)]
    return _run(what, words)


def _only(paths: tuple[Path, ...]) -> list[str | Path]:
    return [word for path in paths for word in ("-P", path)]


def _run(
    options: Sequence[str | Path], arguments: Sequence[str | Path]
) -> subprocess.CompletedProcess[str]:
    """Run the command, traced from where its interpreter has started and has imported it.

    Not the programs that it starts: how often these write depends on what else runs here.
    """
    with contextlib.ExitStack() as stack:

        def attach(pid: int) -> None:
            command = ["strace", *options, "-p", str(pid)]
            tracer = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE))
            assert tracer.stderr is not None
            assert b"attached" in tracer.stderr.readline()

        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        return run_forked(arguments, env=environment, attach=attach)
