"""Network namespaces on a bridge, made by the test itself: what happens in them never leaves them.

Owns the namespaces, their addresses, and cutting a node off. Knows nothing of what runs in them.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.support import mounts

_HOLD = ["unshare", "--net", "sh", "-c", "ip link set lo up && echo ready && exec sleep infinity"]


@dataclass(slots=True)
class Node:
    """A namespace with one interface on the bridge."""

    holder: subprocess.Popen[bytes]
    number: int
    network: Network

    @property
    def address(self) -> str:
        """Its IPv4 address."""
        return f"10.99.{self.number // 250}.{self.number % 250 + 1}"

    @property
    def namespace(self) -> Path:
        """Its network namespace."""
        return Path(f"/proc/{self.holder.pid}/ns/net")

    def entering(self) -> list[str]:
        """Return what runs a command on the node, to be followed by the command."""
        return ["nsenter", f"--net={self.namespace}", "--"]

    def cut(self, *, off: bool) -> None:
        """Take the node off the bridge, or put it back."""
        self.network.ip("link", "set", f"port{self.number}", "down" if off else "up")

    def deafen(self, to: Node, *, off: bool) -> None:
        """Lose what another node sends to this one, and not the other way round; or no longer."""
        verb = "add" if off else "del"
        command = ["ip", "route", verb, "blackhole", f"{self.address}/32"]
        subprocess.run([*to.entering(), *command], check=True, capture_output=True, timeout=30)


@dataclass(slots=True)
class Network:
    """A bridge in a namespace of its own, and the nodes on it."""

    holder: subprocess.Popen[bytes]
    nodes: list[Node] = field(default_factory=list)

    def ip(self, *arguments: str) -> None:
        """Run the program ip where the bridge is (ip(8))."""
        entering = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "ip", *arguments]
        subprocess.run(entering, check=True, capture_output=True, timeout=30)

    def node(self) -> Node:
        """Add a node."""
        number = len(self.nodes)
        node = Node(_held(), number, self)
        self.nodes.append(node)
        port = f"port{number}"
        pid = str(node.holder.pid)
        self.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", pid)
        self.ip("link", "set", port, "master", "bridge", "up")
        for arguments in (
            ["address", "add", f"{node.address}/16", "dev", "eth0"],
            ["link", "set", "eth0", "up"],
        ):
            subprocess.run(
                [*node.entering(), "ip", *arguments], check=True, capture_output=True, timeout=30
            )
        return node


def _held() -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(_HOLD, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"ready\n"
    holder.stdout.close()
    return holder


@contextlib.contextmanager
def network() -> Iterator[Network]:
    """Make a network; its namespaces end with the processes that hold them."""
    mounts.need_root()
    mounts.need_program("ip", "unshare", "nsenter")
    made = Network(_held())
    try:
        made.ip("link", "add", "bridge", "type", "bridge")
        made.ip("link", "set", "bridge", "up")
        yield made
    finally:
        for holder in (*(node.holder for node in made.nodes), made.holder):
            holder.kill()
            holder.wait()
