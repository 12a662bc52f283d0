"""What a bundle must be, computed naively from what was put into its directory.

Owns the tests' own reading of I5 and I7. Certificates here all have different
subjects, so that the order is a matter of file names alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.support.pki import Identity

Sources = Mapping[str, Sequence[Identity]]


def bundle_of(sources: Sources) -> bytes | None:
    """Give the bytes of the bundle, or None when there is none.

    `sources` are the certificates of each file, as written in it. Names that
    do not end in `.pem` contribute nothing.
    """
    names = sorted(
        (name for name in sources if name.endswith(".pem")),
        key=lambda name: (not name.endswith(".new.pem"), name.encode()),
    )
    unique = dict.fromkeys(identity.pem for name in names for identity in sources[name])
    return b"".join(unique) or None
