"""Short `certfs` commands as forks of one process that has imported them, which saves most of a start.

A command that is run so is a process of its own with the descriptors, the environment and the directory that it is
given, and an exit code. What differs from the program: its modules are there already, and /proc/PID/environ and
/proc/PID/cmdline are those of the process that it was forked from. Tests of the start itself, of locales and of what
stays in the foreground start the program (`mounts.certfs_program`).

Owns the process that forks (``python -m tests.support.forked``): one for each test session and, since
coverage is started with it, one more for the modules whose commands are counted.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import IO, NoReturn
from unittest import mock

from certfs import cli
from tests.support import counted

_LONGEST_REQUEST = 1 << 20
"""Bytes of a request: an environment and a command line."""
_GO = b"go"


def run_forked(  # noqa: PLR0913 - each argument is one condition of a process
    arguments: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    namespace: Path | None = None,
    feed: bytes = b"",
    timeout: float = 60.0,
    attach: Callable[[int], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``certfs ARGUMENTS`` to its end with ``feed`` as its input; raise TimeoutExpired after `timeout` seconds.

    With ``namespace`` (a file as /proc/PID/ns/mnt) it runs in that namespace, at the root directory. Bytes of its
    output that are no UTF-8 are surrogates. The command waits while ``attach`` is called with its pid.
    """
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as said,
        tempfile.TemporaryFile() as errors,
    ):
        given.write(feed)
        given.seek(0)
        streams = (given, said, errors)
        code = call_forked(
            arguments,
            streams=streams,
            env=env,
            namespace=namespace,
            timeout=timeout,
            attach=attach,
        )
        return subprocess.CompletedProcess(list(arguments), code, _text(said), _text(errors))


def call_forked(  # noqa: PLR0913 - each argument is one condition of a process
    arguments: Sequence[str | Path],
    *,
    streams: tuple[IO[bytes], IO[bytes], IO[bytes]],
    env: Mapping[str, str] | None = None,
    namespace: Path | None = None,
    timeout: float = 60.0,
    attach: Callable[[int], None] | None = None,
) -> int:
    """Run ``certfs ARGUMENTS`` on these three streams, and return its exit code (minus a signal's number)."""
    environment = dict(os.environ if env is None else env)
    request = {
        "arguments": [str(each) for each in arguments],
        "environment": environment,
        "directory": "/" if namespace else str(Path.cwd()),
        "namespace": str(namespace or ""),
        "waits": attach is not None,
    }
    settings = tuple(sorted((k, v) for k, v in os.environ.items() if k.startswith("COVERAGE_")))
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(_server(settings))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST_REQUEST)
        fds = [stream.fileno() for stream in streams]
        socket.send_fds(connection, [json.dumps(request).encode()], fds)
        pid = int(connection.recv(64))
        if attach is not None:
            attach(pid)
            connection.send(_GO)
        connection.settimeout(timeout)
        try:
            return int(connection.recv(64))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired([str(each) for each in arguments], timeout) from None


def _text(stream: IO[bytes]) -> str:
    stream.seek(0)
    return stream.read().decode(errors="surrogateescape")


@functools.cache
def _server(settings: tuple[tuple[str, str], ...]) -> str:
    """Start the process that forks, and return its address (abstract, unix(7)); it ends with this process."""
    ours, its = socket.socketpair()
    with its:
        plain = {k: v for k, v in os.environ.items() if not k.startswith("COVERAGE_")}
        process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(its.fileno())],
            pass_fds=[its.fileno()],
            env=plain | dict(settings),
            stdin=subprocess.DEVNULL,
        )
    address = ours.recv(256).decode()
    assert address, f"the process that forks ended with {process.wait()}"

    def end() -> None:
        ours.close()
        process.wait(30)

    atexit.register(end)
    return address


class _Server:
    """The process that forks: takes requests, and says how each command ended."""

    def __init__(self, owner: socket.socket) -> None:
        self._owner = owner
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind("")  # a name of the kernel's choice
        self._listener.listen()
        self._selector = selectors.DefaultSelector()
        self._running: dict[int, socket.socket] = {}
        # A process that ends is noticed by its signal: a pidfd is newer than the oldest kernel.
        self._ended, self._wakeup = socket.socketpair()
        self._wakeup.settimeout(0)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wakeup.fileno())

    def serve(self) -> None:
        """Fork for each request until the owner is gone."""
        self._selector.register(self._owner, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._ended, selectors.EVENT_READ)
        self._owner.send(self._listener.getsockname())
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._owner:
                    return
                if key.fileobj is self._listener:
                    self._begin(self._listener.accept()[0])
                else:
                    self._ended.recv(4096)
                    self._report()

    def _begin(self, connection: socket.socket) -> None:
        request, fds, _, _ = socket.recv_fds(connection, _LONGEST_REQUEST, 3)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            self._selector.close()
            own = (self._listener, self._owner, self._ended, self._wakeup)
            for held in (*own, *self._running.values()):
                held.close()
            _become(json.loads(request), fds, connection)
        for fd in fds:
            os.close(fd)
        connection.send(str(pid).encode())
        self._running[pid] = connection

    def _report(self) -> None:
        for pid in list(self._running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                with (
                    self._running.pop(pid) as connection,
                    contextlib.suppress(OSError),
                ):  # the test has given up
                    connection.send(str(code).encode())


def _become(request: dict[str, object], fds: list[int], connection: socket.socket) -> NoReturn:
    """Be the command, and end as the interpreter does."""
    code = 1
    try:
        with connection:
            if request["waits"]:
                _wait_for_tracer(connection)
                # A tracer follows one process: the command is this one, and nobody looks on.
                mock.patch.object(cli, "_watched", return_value=sys.exit).start()
        arguments, environment = request["arguments"], request["environment"]
        assert isinstance(arguments, list)
        assert isinstance(environment, dict)
        # The streams of sys stand for 0, 1 and 2, whatever these are.
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
            os.close(fd)
        if request["namespace"]:
            _enter(str(request["namespace"]))
        os.chdir(str(request["directory"]))
        os.environ.clear()
        os.environ.update(environment)
        sys.dont_write_bytecode = "PYTHONDONTWRITEBYTECODE" in environment
        sys.argv = [str(Path(sys.executable).with_name("certfs")), *arguments]
        cli.main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - as the interpreter does
        traceback.print_exc()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(code)


def _wait_for_tracer(connection: socket.socket) -> None:
    """Let any process trace this one, where Yama allows it to ancestors only (prctl(2), PR_SET_PTRACER), and wait."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_long(-1), 0, 0, 0)
    if connection.recv(len(_GO)) != _GO:
        raise SystemExit(1)


def _enter(namespace: str) -> None:
    """Enter a namespace (setns(2), which Python has from 3.12 on), with a mount namespace also its root directory."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(namespace, "rb") as file:
        if libc.setns(file.fileno(), 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), namespace)


def main(owner: int) -> None:
    """Import what commands need, and fork."""
    for name in {command.module for command in cli.COMMANDS.values()}:
        import_module(name)
    counted.save()  # this process ends when all has been reported already
    with socket.socket(fileno=owner) as connection:
        _Server(connection).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
