"""Which certificates the running stunnels of this host really present to the pool.

Owns finding their listening sockets (proc(5)) and a handshake with each, as a host of the pool makes
it: with the server name ``pool`` (``ocaml/xapi/xapi_stunnel_server.ml`` in xapi-project/xen-api). The
connections go to addresses of this host and end after the handshake. Must not know what is to be
concluded.
"""

import contextlib
import os
import socket
import ssl
import struct
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from certfs.procfs import command_of, listening_sockets

_PROGRAM = b"stunnel"
"""What the name of the process begins with; Debian's is stunnel4."""
_SERVER_NAME = "pool"
_HANDSHAKE_SECONDS = 2.0
_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Presented:
    """What the stunnel with this ``process`` id presents at an ``address``.

    ``certificate`` is DER, None if no handshake was possible; ``address`` is empty where the process may not be looked
    at by this user.
    """

    process: int
    address: str
    certificate: bytes | None


@dataclass(frozen=True, slots=True)
class _Listener:
    process: int
    address: IPv4Address | IPv6Address
    port: int

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)  # noqa: PLR2004
        return f"{host}:{self.port}"


def presented() -> tuple[Presented, ...]:
    """Return what each listening socket of each stunnel in this network namespace presents."""
    listeners: list[_Listener] = []
    found: list[Presented] = []
    for process in _stunnels():
        try:
            listeners += _listeners(process)
        except PermissionError:
            found.append(Presented(process, "", None))
        except OSError:
            continue  # it has ended meanwhile
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        certificates = pool.map(_handshake, listeners)
    found += [
        Presented(listener.process, str(listener), certificate)
        for listener, certificate in zip(listeners, certificates, strict=True)
    ]
    return tuple(found)


def _stunnels() -> Iterator[int]:
    own_network = os.stat("/proc/self/ns/net").st_ino
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        # A process may end at any moment, and another user's namespaces cannot be looked at.
        with contextlib.suppress(OSError):
            if not command_of(int(entry)).startswith(_PROGRAM):
                continue
            with contextlib.suppress(PermissionError):
                if os.stat(f"/proc/{entry}/ns/net").st_ino != own_network:
                    continue
            yield int(entry)


def _listeners(process: int) -> Iterator[_Listener]:
    descriptors = f"/proc/{process}/fd"
    sockets = set()
    for descriptor in os.listdir(descriptors):
        with contextlib.suppress(FileNotFoundError):
            sockets.add(os.readlink(f"{descriptors}/{descriptor}"))
    for found in listening_sockets(process):
        if f"socket:[{found.inode}]" in sockets:
            yield _Listener(process, _reachable(found.address), found.port)


def _reachable(packed: bytes) -> IPv4Address | IPv6Address:
    """Return the address that reaches a socket bound to ``packed``, which is in the kernel's words."""
    words = struct.unpack(f">{len(packed) // 4}I", packed)
    address = ip_address(struct.pack(f"={len(words)}I", *words))
    if address.is_unspecified:
        return ip_address("127.0.0.1" if address.version == 4 else "::1")  # noqa: PLR2004
    return address


def _handshake(listener: _Listener) -> bytes | None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    # The certificate is looked at, not trusted; an old server's algorithms are no reason not to look.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
    where = (str(listener.address), listener.port)
    try:
        with (
            socket.create_connection(where, timeout=_HANDSHAKE_SECONDS) as connection,
            context.wrap_socket(connection, server_hostname=_SERVER_NAME) as tls,
        ):
            return tls.getpeercert(binary_form=True)
    except (OSError, ValueError):
        return None
