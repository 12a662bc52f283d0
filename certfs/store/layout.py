"""The directories that a standalone store needs, made with the modes that XAPI gives them."""

import os
from collections.abc import Iterable
from contextlib import suppress

from certfs.core.bundle import BundleSpec
from certfs.safe_open import LinkRefusedError, make_beneath

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
    # Where the path leads through a link, nothing is made: a source directory may be one, and of a bundle it is said
    # when its plain copy is to be written.
    with suppress(LinkRefusedError):
        os.close(make_beneath(store, path, mode, parents_mode=_DIRECTORY_MODE))
