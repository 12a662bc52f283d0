"""Certificates by the hundred thousand: one real certificate of a host, its names and serial number replaced.

A signature that does not fit makes no difference to whoever reads a bundle, and none of these is ever presented by a
server. The sizes are those of XAPI's pool certificates: RSA 2048, no extensions.
"""

from __future__ import annotations

import binascii
import itertools
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.support import pki

_LINE = 64


@dataclass(frozen=True, slots=True)
class Pem:
    """One certificate file: the ``name`` that a host gives it, and its ``text``."""

    name: str
    text: bytes


class Template:
    """Makes any number of different certificates of hosts, in 10 us each."""

    def __init__(self) -> None:
        host = uuid.uuid4()
        self.identity = pki.pool_certificate(host)
        self._host = str(host).encode()
        self._der = self.identity.der
        self._serial = self.identity.certificate.serial_number.to_bytes(20).lstrip(b"\0")

    def __iter__(self) -> Iterator[Pem]:
        """Yield certificates, each for another host, for ever."""
        while True:
            host = str(uuid.UUID(bytes=os.urandom(16), version=4)).encode()
            serial = bytes((self._serial[0],)) + os.urandom(len(self._serial) - 1)
            der = self._der.replace(self._host, host).replace(self._serial, serial)
            yield Pem(f"{host.decode()}.pem", _armour(der))

    def write(self, directory: Path, count: int) -> None:
        """Put ``count`` certificates into ``directory``."""
        directory.mkdir(parents=True, exist_ok=True)
        for pem in itertools.islice(self, count):
            (directory / pem.name).write_bytes(pem.text)


def _armour(der: bytes) -> bytes:
    text = binascii.b2a_base64(der, newline=False)
    lines = [text[i : i + _LINE] for i in range(0, len(text), _LINE)]
    return b"\n".join((b"-----BEGIN CERTIFICATE-----", *lines, b"-----END CERTIFICATE-----", b""))
