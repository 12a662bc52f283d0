"""The plain bundles of a host whose directories no certfs serves at the moment.

Owns bringing them up to date after a change of their sources, as the platform's own commands do by
its script. On a mount there is nothing to do: the bundles follow by themselves, and a mount that
comes later writes the plain copies anew (promise I12). Must not know the configuration: these are
the platform's two bundles.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from certfs.core.bundle import is_source_name
from certfs.core.catalog import Catalog, Source
from certfs.core.certificate import parse_source
from certfs.identity.paths import (
    CERTS,
    CERTS_POOL,
    PUBLIC_MODE,
    HostPaths,
    file_errors,
    open_directory,
    read_file,
)
from certfs.store.atomic import write_atomic

BUNDLES = {CERTS: b"xapi-stunnel-ca-bundle.pem", CERTS_POOL: b"xapi-pool-ca-bundle.pem"}
"""Source directory and bundle, both in ``stunnel``."""

_FILESYSTEM_TYPE = "fuse.certfs"
_MOUNT_TABLE = Path("/proc/self/mountinfo")


def is_served(directory: Path) -> bool:
    """Tell whether ``directory`` is on a live mount of certfs (proc(5), mountinfo)."""
    device = directory.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    for line in _MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == number and rest.partition(" ")[0] == _FILESYSTEM_TYPE:
            return True
    return False


def update_plain_bundle(paths: HostPaths, source: bytes) -> None:
    """Write the bundle of the source directory ``source`` anew if nobody synthesises it.

    A bundle without a certificate is removed (promise I7). Raises ``StoreError``.
    """
    bundle = BUNDLES[source]
    with file_errors(paths.stunnel / os.fsdecode(bundle)):
        if is_served(paths.stunnel):
            return
        with open_directory(paths.stunnel) as stunnel:
            content = _bundle_content(stunnel, source)
            if not content:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(bundle, dir_fd=stunnel)
            elif content != _present(stunnel, bundle):
                write_atomic(stunnel, bundle, content, mode=PUBLIC_MODE)


def is_stale(paths: HostPaths, source: bytes) -> bool:
    """Tell whether a plain bundle holds other certificates than its source directory.

    How they are written does not matter: the platform's script copies files as they are. On a mount
    nothing is ever stale. Raises ``OSError``.
    """
    if is_served(paths.stunnel):
        return False
    with open_directory(paths.stunnel) as stunnel:
        wanted = parse_source(_bundle_content(stunnel, source)).certificates
        present = parse_source(_present(stunnel, BUNDLES[source])).certificates
    return {one.fingerprint for one in wanted} != {one.fingerprint for one in present}


def _bundle_content(stunnel: int, source: bytes) -> bytes:
    catalog = Catalog()
    with (
        contextlib.suppress(FileNotFoundError),
        open_directory(source, within=stunnel) as directory,
    ):
        catalog.update(dict(_sources(directory)))
    view = catalog.snapshot()
    return view.read(0, view.size)


def _sources(directory: int) -> Iterator[tuple[bytes, Source]]:
    for name in map(os.fsencode, os.listdir(directory)):
        if is_source_name(name):
            # What cannot be read contributes nothing; the health check and ``certfs list`` say why.
            with contextlib.suppress(OSError):
                yield name, Source(parse_source(read_file(name, within=directory)))


def _present(stunnel: int, bundle: bytes) -> bytes:
    with contextlib.suppress(OSError):
        return read_file(bundle, within=stunnel)
    return b""
