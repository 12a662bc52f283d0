"""The directories that a standalone store needs, made with the modes that XAPI gives them."""

import os
from collections.abc import Iterable
from contextlib import suppress

from certfs.core.bundle import BundleSpec

_SOURCE_MODE = 0o700
_DIRECTORY_MODE = 0o755
_OPTIONAL = b"trusted-certs"


def make_directories(store: int, specs: Iterable[BundleSpec], *, platform: bool) -> None:
    """Make the source directories of ``specs``, and where their bundles appear, if they are missing; OSError.

    With ``platform`` also those of a host that no bundle comes from. A pattern's directories are whoever's makes them,
    and the newer layout is there only where it was made.
    """
    if platform:
        _make(store, (b"xensource",), _DIRECTORY_MODE)
    for spec in specs:
        if spec.is_pattern or spec.source[0] == _OPTIONAL:
            continue
        _make(store, spec.source, _SOURCE_MODE)
        if len(spec.bundle) > 1:
            _make(store, spec.bundle[:-1], _DIRECTORY_MODE)


def _make(store: int, path: tuple[bytes, ...], mode: int) -> None:
    for depth in range(1, len(path) + 1):
        with suppress(FileExistsError):
            os.mkdir(
                b"/".join(path[:depth]),
                mode if depth == len(path) else _DIRECTORY_MODE,
                dir_fd=store,
            )
