"""What a bundle is: where it comes from (``BundleSpec``) and what it holds at one moment (``Generation``).

Owns both values, the pattern rule by which one specification stands for many bundles, and the platform's bundles.
"""

from dataclasses import dataclass, field, replace

from certfs.core.readers import Reader
from certfs.core.rope import RopeView

SOURCE_SUFFIX = b".pem"
WILDCARD = b"*"
_LOCK_PREFIX = b".#"


def is_source_name(name: bytes) -> bool:
    """Whether a file of this name can be a source of the platform's bundles (promise I6)."""
    return name.endswith(SOURCE_SUFFIX)


def is_editors_lock(name: bytes) -> bool:
    """Whether a symbolic link of this name says that an editor has the file open (Emacs' ``.#x.pem``): no source."""
    return name.startswith(_LOCK_PREFIX)


@dataclass(frozen=True, slots=True)
class BundleSpec:
    """A rule: the certificates in the directory ``source`` appear as the file ``bundle``.

    Both are paths from the root of the mount, as components. A ``*`` in the last component of ``source`` stands for
    one or more characters, and is put in the place of the ``*`` in the last component of ``bundle``. Two rules for the
    same paths are one, whatever else they say. ``suffixes`` are those that the names of sources end in. What one of the
    ``readers`` refuses is left out; OpenSSL, which refuses nothing that is in a bundle, need not be among them.
    """

    source: tuple[bytes, ...]
    bundle: tuple[bytes, ...]
    suffixes: tuple[bytes, ...] = field(default=(SOURCE_SUFFIX,), compare=False)
    readers: tuple[Reader, ...] = field(default=(), compare=False)

    @property
    def is_pattern(self) -> bool:
        """Whether this stands for as many bundles as there are directories that match."""
        return WILDCARD in self.source[-1]

    def covers(self, directory: tuple[bytes, ...]) -> bool:
        """Whether the directory of this path is, or would be, a source directory of this rule."""
        if not self.is_pattern:
            return directory == self.source
        return (
            len(directory) == len(self.source)
            and directory[:-1] == self.source[:-1]
            and self.expand(directory[-1]) is not None
        )

    def expand(self, directory: bytes) -> "BundleSpec | None":
        """Return the specification for the source directory of this name, None where the pattern does not match."""
        head, _, tail = self.source[-1].partition(WILDCARD)
        if len(directory) <= len(head) + len(tail) or not (
            directory.startswith(head) and directory.endswith(tail)
        ):
            return None
        middle = directory[len(head) : len(directory) - len(tail)]
        bundle = self.bundle[-1].replace(WILDCARD, middle)
        return replace(
            self, source=(*self.source[:-1], directory), bundle=(*self.bundle[:-1], bundle)
        )

    def is_source(self, name: bytes) -> bool:
        """Whether a file of this name in the source directory can be a source (promise I6)."""
        return name.endswith(self.suffixes)


def _spec(source: str, bundle: str) -> BundleSpec:
    return BundleSpec(
        tuple(part.encode() for part in source.split("/")),
        tuple(part.encode() for part in bundle.split("/")),
    )


PLATFORM_BUNDLES = (
    _spec("stunnel/certs-pool", "stunnel/xapi-pool-ca-bundle.pem"),
    _spec("stunnel/certs", "stunnel/xapi-stunnel-ca-bundle.pem"),
    _spec("trusted-certs/ca-*", "trusted-certs/ca-bundle-*.pem"),
    _spec("trusted-certs/pinned-*", "trusted-certs/pinned-bundle-*.pem"),
)
"""The bundles of a XenServer or XCP-ng host; the last two are those of the newer layout, where it is there."""


@dataclass(frozen=True, slots=True)
class Generation:
    """The content of a bundle between two changes; ``number`` counts from 1 within one life of the server.

    ``certificates`` is how many there are; a bundle with none does not exist (promise I7). ``changed_ns`` is when it
    came to be, in nanoseconds since the epoch.
    """

    number: int
    certificates: int
    view: RopeView
    changed_ns: int

    @property
    def size(self) -> int:
        """The size in bytes of what a reader gets."""
        return self.view.size
