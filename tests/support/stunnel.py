"""Real stunnel servers and clients, configured as XAPI configures them.

Owns the two stunnel configurations of a host: the server, which shows
`xapi-ssl.pem`, or `xapi-pool-tls.pem` to a client that asks for the name
`pool`; and the clients, one process for each connection, which trust what is
in one of the two bundles. Loopback only, ports chosen by the kernel.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Self

_DEADLINE = 15.0
"""Seconds for a start or for a whole connection."""
_CRASHES = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)
_REASONS = (
    r"CERT: [^\n]*",
    r"error:[0-9A-F]+:[^\n]*",
    r"LOG3[^\n]*",
)


class Verdict(StrEnum):
    """How a client's connection ended."""

    ACCEPTED = "accepted"
    """The server's certificate was trusted and its answer arrived."""
    REFUSED = "refused"
    """stunnel ran, and the handshake failed."""
    NOT_STARTED = "not started"
    """stunnel did not accept its configuration, the bundle for one, and exited."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one client saw."""

    verdict: Verdict
    answer: str
    """Which service answered: `default`, `pool`, or nothing."""
    reason: str
    """stunnel's own words for a refusal, one line."""
    log: str
    seconds: float


@dataclass(slots=True)
class Server:
    """A running stunnel server.

    stunnel 5.68 sometimes crashes (SIGSEGV) when it is told to reload while clients come. As its unit on a host would,
    `revive` starts it again then.
    """

    process: subprocess.Popen[bytes]
    configuration: Path
    log: Path
    _reviving: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def start(cls, configuration: Path, log: Path) -> Self:
        """Start it and wait until it listens."""
        log.touch()
        running = cls(_start_server(configuration, log), configuration, log)
        running.wait_for_port(1)
        return running

    def revive(self) -> None:
        """Start it again if it has crashed; nothing if it runs."""
        with self._reviving:
            if self.process.poll() in _CRASHES:
                before = len(self._bound())
                self.process = _start_server(self.configuration, self.log)
                self.wait_for_port(before + 1)

    @property
    def port(self) -> int:
        """The port that it listens on now."""
        return int(self._bound()[-1])

    def reload(self) -> None:
        """Make it read its files again, as XAPI does with SIGHUP; it also takes a new port."""
        before = len(self._bound())
        self.process.send_signal(signal.SIGHUP)
        self.wait_for_port(before + 1)

    def wait_for_port(self, times: int) -> None:
        """Wait until it has bound its port that often, and listens."""
        deadline = time.monotonic() + _DEADLINE
        while len(self._bound()) < times or not _is_listened_to(self.port):
            status = self.process.poll()
            if status in _CRASHES:
                self.revive()
            elif time.monotonic() > deadline or status is not None:
                raise AssertionError(f"the stunnel server did not start:\n{self.log.read_text()}")
            time.sleep(0.005)

    def _bound(self) -> list[str]:
        return re.findall(r"bound to 127\.0\.0\.1:(\d+)", self.log.read_text())


@contextlib.contextmanager
def server(*, api: Path, pool: Path, directory: Path) -> Iterator[Server]:
    """Run a server that shows `api` by default and `pool` for the name `pool`.

    Both files hold a private key and a certificate. `directory` takes its
    configuration and log.
    """
    configuration = directory / "stunnel-server.conf"
    configuration.write_text(
        f"foreground = yes\npid =\ndebug = info\nsocket = r:TCP_NODELAY=1\n"
        f"[xapi]\naccept = 127.0.0.1:0\ncert = {api}\n"
        f"exec = /bin/echo\nexecArgs = echo default\n"
        f"[pool]\nsni = xapi:pool\ncert = {pool}\n"
        f"exec = /bin/echo\nexecArgs = echo pool\n"
    )
    running = Server.start(configuration, directory / "stunnel-server.log")
    try:
        yield running
    finally:
        running.process.terminate()
        try:
            running.process.wait(_DEADLINE)
        except subprocess.TimeoutExpired:
            running.process.kill()
            running.process.wait()


def _start_server(configuration: Path, log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as output:
        return subprocess.Popen(
            ["stunnel", str(configuration)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )


def _is_listened_to(port: int) -> bool:
    """Whether clients can connect: stunnel logs that it has bound a port before it listens (proc(5), /proc/net/tcp)."""
    sockets = Path("/proc/net/tcp").read_bytes().split(b"\n")[1:]
    return any(f":{port:04X}".encode() in each and each.split()[3] == b"0A" for each in sockets)


def connect_pool(port: int, bundle: Path) -> Outcome:
    """Connect as a host of the pool does: the peer's certificate itself must be in the bundle."""
    return _connect(port, f"sni = pool\nverifyPeer = yes\nCAfile = {bundle}\n")


def connect_appliance(port: int, bundle: Path, *, host: str) -> Outcome:
    """Connect as to an appliance: its chain must end in the bundle and its name must match."""
    return _connect(
        port, f"sni = {host}\ncheckHost = {host}\nverifyChain = yes\nCAfile = {bundle}\n"
    )


def connect_with_crls(port: int, bundle: Path, crls: Path) -> Outcome:
    """Connect as a host of the pool whose revocation lists are in a directory."""
    return _connect(port, f"sni = pool\nverifyPeer = yes\nCAfile = {bundle}\nCRLpath = {crls}\n")


def _connect(port: int, verification: str) -> Outcome:
    """Run one client stunnel on a socket pair, as XAPI does for each connection."""
    configuration = (
        "foreground = yes\npid =\ndebug = debug\nclient = yes\n"
        "socket = r:TCP_NODELAY=1\nTIMEOUTclose = 0\nTIMEOUTconnect = 10\n"
        f"connect = 127.0.0.1:{port}\n{verification}"
    )
    begin = time.monotonic()
    ours, theirs = socket.socketpair()
    read_end, write_end = os.pipe()
    with ours, open(read_end, "rb") as piped:
        with theirs, open(write_end, "wb") as feed:
            process = subprocess.Popen(
                ["stunnel", "-fd", str(piped.fileno())],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                pass_fds=[piped.fileno()],
            )
            feed.write(configuration.encode())
        try:
            answer = _read_all(ours)
            _, errors = process.communicate(timeout=_DEADLINE)
        finally:
            if process.poll() is None:
                process.kill()
                process.communicate()
    log = errors.decode(errors="replace")
    return Outcome(
        verdict=_verdict(answer, log),
        answer=answer,
        reason=_reason(log) if not answer else "",
        log=log,
        seconds=time.monotonic() - begin,
    )


def _read_all(connection: socket.socket) -> str:
    deadline = time.monotonic() + _DEADLINE
    pieces = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([connection], [], [], left)[0]:
            raise TimeoutError(f"a stunnel client did not end within {_DEADLINE} s")
        try:
            piece = connection.recv(4096)
        except ConnectionResetError:
            break
        if not piece:
            break
        pieces.append(piece)
    return b"".join(pieces).decode().strip()


def _verdict(answer: str, log: str) -> Verdict:
    if answer:
        return Verdict.ACCEPTED
    if "Configuration successful" not in log:
        return Verdict.NOT_STARTED
    return Verdict.REFUSED


def _reason(log: str) -> str:
    for pattern in _REASONS:
        found = re.search(pattern, log)
        if found:
            return found[0].strip()
    return log.strip().splitlines()[-1] if log.strip() else "stunnel said nothing"
