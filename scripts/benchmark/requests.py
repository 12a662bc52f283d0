"""How many requests to the server a call takes: counted, because their number does not depend on the machine.

Owns watching what a server reads from /dev/fuse, with strace(1), and telling the kinds of requests apart. The calls are
made in Dom0's layout where that is possible, which needs root: there /etc/stunnel itself is the mountpoint.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmark.figures import Results
from scripts.benchmark.timing import wait_until
from tests.support import pki
from tests.support.host import Host, serving_host

# enum fuse_opcode of the kernel's include/uapi/linux/fuse.h
_KINDS = {
    1: "LOOKUP",
    2: "FORGET",
    3: "GETATTR",
    4: "SETATTR",
    10: "UNLINK",
    12: "RENAME",
    14: "OPEN",
    15: "READ",
    16: "WRITE",
    17: "STATFS",
    18: "RELEASE",
    20: "FSYNC",
    22: "GETXATTR",
    25: "FLUSH",
    27: "OPENDIR",
    28: "READDIR",
    29: "RELEASEDIR",
    34: "ACCESS",
    35: "CREATE",
    36: "INTERRUPT",
    39: "IOCTL",
    42: "BATCH_FORGET",
    44: "READDIRPLUS",
}
_READ = re.compile(r'read\((\d+), "((?:\\x[0-9a-f]{2}){8})')
_QUIET_SECONDS = 0.3
"""A request that was not seen after so long was not made."""
_FORGOTTEN_SECONDS = 1.0
"""After so long the kernel asks again for what it may remember for some milliseconds."""


@dataclass(slots=True)
class Watch:
    """A server that is being traced, and what was seen of it so far."""

    trace: Path
    device: int
    """The server's descriptor of /dev/fuse."""
    seen: int = 0

    def during(self, call: Callable[[], object]) -> list[str]:
        """Make a call that is the only one, and return the requests that came until it returned, and soon after."""
        self._take()
        call()
        time.sleep(_QUIET_SECONDS)
        return self._take()

    def _take(self) -> list[str]:
        content = self.trace.read_bytes()
        fresh, self.seen = content[self.seen :].decode(), len(content)
        headers = (
            bytes.fromhex(header.replace("\\x", ""))
            for descriptor, header in _READ.findall(fresh)
            if int(descriptor) == self.device
        )
        numbers = (struct.unpack("<II", header)[1] for header in headers)
        return [_KINDS.get(number, f"opcode {number}") for number in numbers]


@contextlib.contextmanager
def watched(server: int, trace: Path) -> Iterator[Watch]:
    """Trace what a server reads from /dev/fuse."""
    command = ["strace", "--follow-forks", "--quiet=all", "-e", "trace=read", "-xx", "-s", "64"]
    (device,) = (
        name
        for name in os.listdir(f"/proc/{server}/fd")
        if os.readlink(f"/proc/{server}/fd/{name}") == "/dev/fuse"
    )
    with subprocess.Popen([*command, "-o", trace, "-p", str(server)]) as process:
        try:
            tracer = re.compile(rf"^TracerPid:\t{process.pid}$", re.MULTILINE)
            status = Path(f"/proc/{server}/status")
            wait_until(
                lambda: bool(tracer.search(status.read_text())), seconds=30, what="the tracing"
            )
            time.sleep(_QUIET_SECONDS)
            yield Watch(trace, int(device))
        finally:
            process.terminate()


def measure_requests(results: Results, directory: Path) -> None:
    """Count the requests of the calls that readers, writers and XAPI make most."""
    if os.geteuid() != 0 or shutil.which("strace") is None:
        results.note("requests-open", "not counted, which needs root and strace")
        return
    trace = directory / "requests.trace"
    with (
        contextlib.redirect_stderr(io.StringIO()),  # a host shows its log when it ends
        serving_host() as host,
        watched(host.server(), trace) as watch,
    ):
        for name, requests in _counted(host, watch).items():
            results.count(name, requests)
    opened = results.requests["open of a settled bundle"]
    results.add("requests-open", len(opened))


def _counted(host: Host, watch: Watch) -> dict[str, list[str]]:
    """Make each call once after a pause and once more at once, and return its requests."""
    tree = host.tree
    (tree.xensource / "pool.conf").write_bytes(b"master")
    new = pki.issue("new").pem
    held: list[int] = []

    def open_bundle() -> None:
        held.append(os.open(tree.pool_bundle, os.O_RDONLY))

    def copy_in() -> None:
        (tree.certs_pool / "new.pem").write_bytes(new)

    calls: dict[str, Callable[[], object]] = {
        "open of a settled bundle": open_bundle,
        "read of it": lambda: os.pread(held[-1], 1 << 20, 0),
        "close of it": lambda: os.close(held[-1]),
        "stat of a bundle": lambda: os.stat(tree.pool_bundle),
        "stat of a passed-through file": lambda: os.stat(tree.xensource / "pool.conf"),
        "open of a passed-through file": lambda: held.append(
            os.open(tree.xensource / "pool.conf", os.O_RDONLY)
        ),
        "close of a passed-through file": lambda: os.close(held[-1]),
        "copy in of a certificate": copy_in,
        "open of the changed bundle": open_bundle,
        "removal of a certificate": (tree.certs_pool / "new.pem").unlink,
    }
    os.stat(tree.pool_bundle)
    found = {}
    for name, call in calls.items():
        time.sleep(_FORGOTTEN_SECONDS)
        found[name] = watch.during(call)
    os.close(held[-1])
    return found
