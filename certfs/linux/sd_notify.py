"""Telling systemd how the service is: sd_notify(3) in a few lines, a no-op without systemd."""

import os
import socket
from contextlib import suppress


def notify(*assignments: str) -> None:
    """Send ``assignments`` such as ``READY=1`` to the manager that started this process, if one did."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect(address)
        connection.send("\n".join(assignments).encode())
