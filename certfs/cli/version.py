"""``certfs --version --verbose``: what this certfs consists of and runs on.

A self-contained package brings its own interpreter and libraries; who keeps a host up to date has to see which.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from typing import Final

from cryptography.hazmat.backends.openssl import backend

from certfs.fuse.libfuse import libfuse

_NAME: Final = re.compile(r"[A-Za-z0-9._-]+")
"""A distribution's name, with which a requirement begins (PEP 508)."""
_BILL: Final = "share/certfs.cdx.json"


def components() -> Iterator[tuple[str, str]]:
    """Yield each component with its version, and where it is where that is a question."""
    yield "installed in", sys.prefix
    yield "Python", f"{sys.version.split()[0]} ({os.path.realpath(sys.executable)})"
    yield "C library", os.confstr("CS_GNU_LIBC_VERSION") or "unknown"
    version, path = libfuse()
    yield "libfuse3", f"{version} ({path})"
    yield "OpenSSL", f"{backend.openssl_version_text().removeprefix('OpenSSL ')} (in cryptography)"
    for requirement in sorted(_distributions("certfs")):
        yield requirement, metadata.version(requirement)
    yield "Linux", os.uname().release
    bill = os.path.join(sys.prefix, _BILL)
    if os.path.exists(bill):
        yield "bill of materials", bill


def _distributions(root: str) -> set[str]:
    """Return the names of what a distribution needs, and what that needs, as far as it is installed."""
    found: set[str] = set()
    waiting = [root]
    while waiting:
        try:
            requirements = metadata.requires(waiting.pop()) or []
        except metadata.PackageNotFoundError:
            continue
        for requirement in requirements:
            match = _NAME.match(requirement)
            if match is None or "extra ==" in requirement or match[0] in found:
                continue
            with suppress(metadata.PackageNotFoundError):
                metadata.version(match[0])
                found.add(match[0])
                waiting.append(match[0])
    return found
