"""The rows about stunnel: what a client that XAPI would start for one connection loses by a CAfile on certfs.

The server is one stunnel that passes to an echo of one byte; each client is a process of its own, with its
configuration through a pipe and its connection through a socket pair, as XAPI has it.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.figures import Results
from scripts.benchmark.grounds import Grounds
from scripts.benchmark.timing import Operation, Plan, alternate, wait_until
from tests.support.pki import Identity

_CROWD = 200
_PATIENCE = 60.0


def measure_connections(grounds: Grounds, results: Results, seconds: float, rounds: int) -> None:
    """Measure one client after the other, then all at once."""
    ground = grounds[64]
    identity = grounds.template.identity
    (ground.certfs.sources / "server.pem").write_bytes(identity.pem)
    ground.settle()
    directory = grounds.base / "stunnel"
    directory.mkdir(exist_ok=True)
    bundles = {"certfs": ground.certfs.bundle, "ext4": ground.ext4_copy()}
    with _responder() as backend, _server(identity, backend, directory) as port:
        medians = alternate(
            {name: _one(port, bundle) for name, bundle in bundles.items()},
            Plan(seconds, rounds=20, batch=2),
        )
        results.add("client", medians["certfs"] / medians["ext4"], **medians)
        medians = alternate(
            {name: _crowd(port, bundle) for name, bundle in bundles.items()},
            Plan(0, rounds=rounds, warm=False),
        )
        results.add("clients-200", medians["certfs"] / medians["ext4"], **medians)


@dataclass(slots=True)
class _Client:
    """A running stunnel and our end of its connection."""

    pid: int
    connection: socket.socket

    @classmethod
    def start(cls, port: int, bundle: Path) -> _Client:
        """Start one that trusts exactly the certificates in ``bundle``."""
        configuration = (
            "foreground = yes\npid =\ndebug = crit\nclient = yes\nsocket = r:TCP_NODELAY=1\n"
            f"TIMEOUTclose = 0\nconnect = 127.0.0.1:{port}\nverifyPeer = yes\nCAfile = {bundle}\n"
        )
        ours, theirs = socket.socketpair()
        reading, writing = os.pipe()
        os.write(writing, configuration.encode())
        os.close(writing)
        program = _stunnel()
        with theirs:
            pid = os.posix_spawn(
                program,
                [program, "-fd", "3"],
                os.environ,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, reading, 3),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 1),
                ],
            )
        os.close(reading)
        return cls(pid, ours)

    def first_byte(self) -> None:
        """Take the first byte; ConnectionError if there is none."""
        if not self.connection.recv(1):
            raise ConnectionError("a stunnel client was refused: its words are above")

    def end(self) -> None:
        """End it: left alone it would wait for a polite goodbye."""
        self.connection.close()
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def _one(port: int, bundle: Path) -> Operation:
    def operation() -> float:
        started = time.perf_counter()
        client = _Client.start(port, bundle)
        try:
            client.first_byte()
            return time.perf_counter() - started
        finally:
            client.end()

    return operation


def _crowd(port: int, bundle: Path) -> Operation:
    def operation() -> float:
        clients: list[_Client] = []
        started = time.perf_counter()
        try:
            with selectors.DefaultSelector() as selector:
                for _ in range(_CROWD):
                    clients.append(_Client.start(port, bundle))
                    selector.register(
                        clients[-1].connection, selectors.EVENT_READ, data=clients[-1]
                    )
                while selector.get_map():
                    for key, _ in selector.select(_PATIENCE):
                        key.data.first_byte()
                        selector.unregister(key.fileobj)
            return time.perf_counter() - started
        finally:
            for client in clients:
                client.end()

    return operation


@contextlib.contextmanager
def _responder() -> Iterator[int]:
    """Send one byte to whoever connects; give the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=2 * _CROWD) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.send(b".")

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            # accept(2) does not return by itself when its socket is closed.
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(_PATIENCE)


@contextlib.contextmanager
def _server(identity: Identity, backend: int, directory: Path) -> Iterator[int]:
    """Run a stunnel server with this certificate; give its port."""
    certificate, configuration, log = (
        directory / name for name in ("server.pem", "stunnel.conf", "log")
    )
    certificate.write_bytes(identity.host_pem)
    certificate.chmod(0o600)
    configuration.write_text(
        f"foreground = yes\npid =\ndebug = info\nsocket = r:TCP_NODELAY=1\n"
        f"[xapi]\naccept = 127.0.0.1:0\ncert = {certificate}\nconnect = 127.0.0.1:{backend}\n"
    )

    def port() -> int:
        found = re.search(r"bound to 127\.0\.0\.1:(\d+)", log.read_text())
        return int(found[1]) if found else 0

    with log.open("wb") as output:
        process = subprocess.Popen(
            [_stunnel(), configuration], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        wait_until(lambda: port() > 0, seconds=15, what="the start of stunnel")
        yield port()
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _stunnel() -> str:
    program = shutil.which("stunnel") or shutil.which("stunnel4")
    if program is None:
        raise FileNotFoundError("stunnel is not installed: apt-get install stunnel4")
    return program
