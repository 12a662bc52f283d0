"""What each bundle holds and what was left out of it, certificate by certificate (promise I9).

Owns the judgement that ``certfs list`` and ``certfs check`` show. It is made from the sources with the very code that
makes the bundles, so it is the same on a mount and on a store that is not mounted.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from certfs.core.catalog import Source
from certfs.core.certificate import Certificate, Severity
from certfs.core.details import Details, describe
from certfs.store.bundle import LiveBundle
from certfs.store.overlooked import overlooked


@dataclass(frozen=True)
class Item:
    """A certificate of a source, or something in a source that is none.

    ``bundle`` and ``source`` are paths from the root of the mount. ``included`` says whether the bundle has the
    certificate from this source; if not, ``reason`` says why, and ``duplicate_of`` names the source that it is taken
    from. ``line`` is where a block that was left out begins, 0 for the whole file. ``certificate`` is None for what is
    none. ``is_source`` is False for a file that looks like a source and is none.
    """

    bundle: bytes
    source: bytes
    certificate: Certificate | None
    included: bool
    severity: Severity
    reason: str = ""
    duplicate_of: bytes = b""
    line: int = 0
    is_source: bool = True

    @cached_property
    def details(self) -> Details | None:
        """What the certificate says of itself."""
        return None if self.certificate is None else describe(self.certificate)


def inspect(bundle: LiveBundle) -> Iterator[Item]:
    """Yield what the sources of a bundle hold, in the order of the bundle's sources."""
    path = b"/".join(bundle.spec.bundle)
    directory = b"/".join(bundle.spec.source) + b"/"
    for name, source in bundle.catalog.sources():
        yield from _inspect_source(bundle, path, directory, name, source)
    if bundle.directory is not None:
        for name, reason in overlooked(bundle.directory, bundle.spec):
            yield Item(
                path,
                directory + name,
                None,
                included=False,
                severity=Severity.NOTE,
                reason=reason,
                is_source=False,
            )


def _inspect_source(
    bundle: LiveBundle, path: bytes, directory: bytes, name: bytes, source: Source
) -> Iterator[Item]:
    seen = set()
    for certificate in source.content.certificates:
        owner = bundle.catalog.owner(certificate.fingerprint)
        duplicate_of = b"" if owner is None else directory + owner
        if owner == name and certificate.fingerprint not in seen:
            yield Item(path, directory + name, certificate, included=True, severity=Severity.NOTE)
        else:
            yield Item(
                path,
                directory + name,
                certificate,
                included=False,
                severity=Severity.NOTE,
                reason="duplicate",
                duplicate_of=duplicate_of,
            )
        seen.add(certificate.fingerprint)
    for remark in source.content.remarks:
        yield Item(
            path,
            directory + name,
            None,
            included=False,
            severity=remark.severity,
            reason=remark.reason,
            line=remark.line,
        )
