"""What this host is called: its UUID, its names and its addresses, without asking the network.

Owns reading the platform's inventory, ``/etc/hosts`` and the kernel's list of addresses (promise
I20: no DNS; it would also hold up a mount for seconds on a host whose resolver is away).
"""

import contextlib
import fcntl
import os
import re
import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from certfs.identity.generate import ServerNames
from certfs.identity.paths import read_file
from certfs.procfs import ipv6_addresses

INVENTORY = Path("/etc/xensource-inventory")
"""The platform's file of ``KEY='value'`` lines, written by its installer."""

_HOSTS = Path("/etc/hosts")
_DNS_NAME_LIMIT = 253  # RFC 1035, section 2.3.4, without the final dot
_LINE = re.compile(r"^([A-Z0-9_]+)='(.*)'\s*$")
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9_-]{1,63}(?<!-))*")
_SIOCGIFADDR = 0x8915  # <linux/sockios.h>; netdevice(7)
_IFA_F_TEMPORARY = 0x01  # <linux/if_addr.h>: gone tomorrow (RFC 8981), of no use in a certificate
_GLOBAL_SCOPE = 0  # IPV6_ADDR_ANY of <net/ipv6.h>, neither loopback nor link nor site


@dataclass(frozen=True, slots=True)
class Inventory:
    """What the platform's installer wrote down about this host; empty where it is not known."""

    host_uuid: str = ""
    management_interface: str = ""


def read_inventory(path: Path = INVENTORY) -> Inventory:
    """Return the inventory; all empty on a host that is not one of the platform."""
    try:
        text = read_file(path).decode("utf-8", "replace")
    except OSError:
        return Inventory()
    values = {match[1]: match[2] for line in text.split("\n") if (match := _LINE.match(line))}
    return Inventory(
        host_uuid=values.get("INSTALLATION_UUID", ""),
        management_interface=values.get("MANAGEMENT_INTERFACE", ""),
    )


def host_names() -> ServerNames:
    """Return this host's names for its server certificate.

    On a host of the platform the addresses are those of the management interface.
    """
    return local_names(interface=read_inventory().management_interface or None)


def local_names(*, interface: str | None = None) -> ServerNames:
    """Return this host's names and addresses.

    The names are its host name and that name's aliases in ``/etc/hosts``; the addresses those of
    ``interface`` (default: of all interfaces but the loopback), IPv4 first, none that holds on one
    link only.
    """
    return ServerNames(tuple(_dns_names()), tuple(_addresses(interface)))


def _dns_names() -> list[str]:
    own = socket.gethostname().strip()
    names = {own: None}
    with contextlib.suppress(OSError):
        for line in read_file(_HOSTS).decode("utf-8", "replace").split("\n"):
            _, *aliases = line.partition("#")[0].split() or [""]
            if own in aliases:
                names.update(dict.fromkeys(aliases))
    return [name for name in names if _is_dns_name(name)]


def _is_dns_name(name: str) -> bool:
    if name.partition(".")[0] in {"", "localhost", "ip6-localhost", "ip6-loopback"}:
        return False
    with contextlib.suppress(ValueError):
        ip_address(name)
        return False
    return len(name) <= _DNS_NAME_LIMIT and _HOST_NAME.fullmatch(name) is not None


def _addresses(interface: str | None) -> list[IPv4Address | IPv6Address]:
    interfaces = [name for _, name in socket.if_nameindex()]
    chosen = [
        name
        for name in interfaces
        if (name == interface if interface is not None else name != "lo")
    ]
    addresses: list[IPv4Address | IPv6Address] = [
        *_ipv4_addresses(chosen),
        *_ipv6_addresses(chosen),
    ]
    return list(
        dict.fromkeys(
            a for a in addresses if not (a.is_loopback or a.is_link_local or a.is_unspecified)
        )
    )


def _ipv4_addresses(interfaces: list[str]) -> list[IPv4Address]:
    addresses = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for name in interfaces:
            request = struct.pack("16s24x", os.fsencode(name))
            # EADDRNOTAVAIL: the interface has no IPv4 address.
            with contextlib.suppress(OSError):
                addresses.append(IPv4Address(fcntl.ioctl(asker, _SIOCGIFADDR, request)[20:24]))
    return addresses


def _ipv6_addresses(interfaces: list[str]) -> list[IPv6Address]:
    return [
        IPv6Address(found.address)
        for found in ipv6_addresses()
        if found.scope == _GLOBAL_SCOPE
        and found.interface in interfaces
        and not found.flags & _IFA_F_TEMPORARY
    ]
