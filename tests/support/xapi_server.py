"""A stand-in for XAPI on a unix socket: its XML-RPC, sessions, records and tasks, as far as a sync needs them.

It answers like the platform (``Status`` and ``Value`` or ``ErrorDescription``) and knows how to fail like it.
"""

from __future__ import annotations

import socketserver
import threading
import time
import xmlrpc.client
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

SESSION = "OpaqueRef:session"
TASK = "OpaqueRef:task"


@dataclass
class StandIn:
    """What the pool is like, and what a sync does. ``calls`` are the methods that were called."""

    coordinator: str
    hosts: dict[str, str | None]
    """The SHA-256 of each host's pool certificate by its UUID, None where XAPI has no record of it."""
    build: str = "26.13.0"
    offline: set[str] = field(default_factory=set)
    error: list[str] = field(default_factory=list)
    """What the sync fails with."""
    steps: int = 2
    """How often its task is asked for before it is done."""
    hang: str = ""
    """The method that is never answered."""
    calls: list[str] = field(default_factory=list)

    def answer(self, method: str, arguments: tuple[Any, ...]) -> dict[str, Any]:
        """Return the answer to a request."""
        self.calls.append(method)
        if method == self.hang:
            time.sleep(60)
        if method != "session.login_with_password" and arguments[0] != SESSION:
            return {"Status": "Failure", "ErrorDescription": ["SESSION_INVALID", arguments[0]]}
        try:
            return {"Status": "Success", "Value": self._value(method)}
        except KeyError:
            return {"Status": "Failure", "ErrorDescription": ["MESSAGE_METHOD_UNKNOWN", method]}

    def _value(self, method: str) -> Any:  # noqa: ANN401 - whatever the method answers
        match method:
            case "task.get_status":
                self.steps -= 1
                return "pending" if self.steps > 0 else "failure" if self.error else "success"
            case "host.get_all_records":
                return {f"OpaqueRef:{uuid}": self._host(uuid) for uuid in self.hosts}
            case "host_metrics.get_all_records":
                return {
                    f"OpaqueRef:m-{uuid}": {"live": uuid not in self.offline} for uuid in self.hosts
                }
            case "Certificate.get_all_records":
                return {
                    f"OpaqueRef:c-{uuid}": self._certificate(uuid, sha256)
                    for uuid, sha256 in self.hosts.items()
                    if sha256
                }
        return {
            "session.login_with_password": SESSION,
            "session.logout": "",
            "pool.get_all": ["OpaqueRef:pool"],
            "pool.get_master": f"OpaqueRef:{self.coordinator}",
            "Async.pool.certificate_sync": TASK,
            "task.get_progress": 0.5,
            "task.get_uuid": "b0c7b19c-2b2c-4a27-8d9c-0f5c2f1e3d11",
            "task.get_error_info": self.error,
            "task.destroy": "",
        }[method]

    def _host(self, uuid: str) -> dict[str, Any]:
        return {
            "uuid": uuid,
            "name_label": f"host {uuid[:4]}",
            "metrics": f"OpaqueRef:m-{uuid}",
            "software_version": {"xapi": "1.20", "xapi_build": self.build},
        }

    @staticmethod
    def _certificate(uuid: str, sha256: str) -> dict[str, Any]:
        colons = ":".join(sha256[at : at + 2].upper() for at in range(0, len(sha256), 2))
        return {"type": "host_internal", "host": f"OpaqueRef:{uuid}", "fingerprint": colons}


@contextmanager
def serving(stand_in: StandIn, path: Path) -> Iterator[StandIn]:
    """Let the stand-in answer at ``path`` for the time of a ``with``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            arguments, method = xmlrpc.client.loads(body)
            answer = stand_in.answer(str(method), arguments)
            data = xmlrpc.client.dumps((answer,), methodresponse=True).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - inherited
            pass

    class Server(socketserver.ThreadingUnixStreamServer):
        daemon_threads = True
        block_on_close = False

    with Server(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield stand_in
        finally:
            server.shutdown()
            thread.join()
