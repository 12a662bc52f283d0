"""The sources of one bundle and the bundle that follows from them.

Owns the order of a bundle (promise I5): ``*.new.pem`` first, then by file name, within a file as written; a certificate
that is there twice appears at its first place; certificates of one subject share out the places that they have so
that the one with the later ``notBefore`` comes first; of those with the same date as well, the ones whose own signature
fits. And the union that holds while a directory is swapped (I10).

A change costs what it touches: its own certificates and those that share a subject with them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from types import MappingProxyType
from typing import TypeVar

from sortedcontainers import SortedDict

from certfs.core.certificate import (
    Certificate,
    Fingerprint,
    Remark,
    Severity,
    SourceContent,
    own_signature,
)
from certfs.core.rope import Rope, RopeView, Slot
from certfs.core.signature import OwnSignature

SourceKey = tuple[int, bytes, int]
"""The order of sources: (0 for ``*.new.pem`` else 1, file name, 0 or ``_GHOST``)."""

_GHOST = 1

_K = TypeVar("_K")
_V = TypeVar("_V")


@dataclass(frozen=True, slots=True)
class Source:
    """One file of a source directory: what it contributes, and the ``stamp`` of the file that this was read from.

    The stamp is opaque here; equal stamps mean an unchanged file. ``kept`` if it counts as it was before: its file
    holds something else, or is about to (promise I3).
    """

    content: SourceContent
    stamp: bytes = b""
    kept: bool = False


@dataclass(frozen=True, slots=True)
class SourcedCertificate:
    """A certificate together with the name of the source that it comes from."""

    source: bytes
    certificate: Certificate


@dataclass(frozen=True, slots=True)
class Change:
    """What a change of sources did to trust: the certificates that came in and those that went out.

    ``copied`` and ``uncopied`` are those of which a source came to have one more copy, or has it no more, while the
    bundle has them through another source. They change nothing, and are left out while a directory is swapped.
    """

    added: tuple[SourcedCertificate, ...] = ()
    removed: tuple[SourcedCertificate, ...] = ()
    reordered: bool = False
    copied: tuple[SourcedCertificate, ...] = ()
    uncopied: tuple[SourcedCertificate, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.reordered)


def _key(name: bytes, ghost: int = 0) -> SourceKey:
    return (0 if name.endswith(b".new.pem") else 1, name, ghost)


class Catalog:
    """All sources of one bundle, kept in order, with the bundle's content kept up to date beside them."""

    def __init__(self) -> None:
        self._sources: SortedDict[SourceKey, Source] = SortedDict()
        # A slot for the many certificates that are there once; a set of slots for the few that are there more often.
        self._places: dict[Fingerprint, Slot | set[Slot]] = {}
        # The certificates of a subject: one fingerprint, or a set of them.
        self._subjects: dict[bytes, Fingerprint | set[Fingerprint]] = {}
        # Of certificates that share subject and notBefore with another one.
        self._signatures: dict[Fingerprint, OwnSignature] = {}
        self._rope = Rope()
        self._ghosts = False

    def __len__(self) -> int:
        """Return how many certificates the bundle has."""
        return len(self._places)

    def get(self, name: bytes) -> Source | None:
        """Return the source of this name, None where there is none."""
        return self._sources.get(_key(name))

    def names(self) -> list[bytes]:
        """Return the names of the sources, in the order of the bundle."""
        return [name for _, name, ghost in self._sources if not ghost]

    def sources(self) -> Iterator[tuple[bytes, Source]]:
        """Yield name and source, in the order of the bundle."""
        for (_, name, ghost), source in self._sources.items():
            if not ghost:
                yield name, source

    def snapshot(self) -> RopeView:
        """Freeze the bundle's content as it is now."""
        return self._rope.snapshot()

    def owner(self, fingerprint: Fingerprint) -> bytes | None:
        """Return the name of the source that a certificate is taken from, None where no source has it."""
        places = self._places.get(fingerprint)
        return None if places is None else _first(places)[1]

    @property
    def is_swapping(self) -> bool:
        """Whether the bundle is the union with what it was (promise I10)."""
        return self._ghosts

    def hold(self, was: Mapping[bytes, Source] | None = None) -> Change:
        """Start a swap: what the bundle has now, or ``was`` when the swap began, stays in it until ``release``."""
        held = dict(self.sources()) if was is None else was
        before = dict(self.held())
        self._ghosts = True
        return self._apply(
            {
                _key(name, _GHOST): _both(before.get(name), source)
                for name, source in held.items()
                if source.content.certificates
            }
        )

    def held(self) -> Iterator[tuple[bytes, Source]]:
        """Yield name and source of what stays in the bundle because of a swap."""
        for (_, name, ghost), source in self._sources.items():
            if ghost:
                yield name, source

    def release(self) -> Change:
        """End a swap: the bundle is what the sources hold."""
        ghosts = [key for key in self._sources if key[2]]
        self._ghosts = False
        return self._apply(dict.fromkeys(ghosts))

    def update(
        self,
        changes: Mapping[bytes, Source | None],
        verified: Mapping[Fingerprint, OwnSignature] | None = None,
    ) -> Change:
        """Put in the sources of these names, or take out those that are None; return what that did to trust.

        ``verified`` is what became of those that ``unverified`` named; what is missing there is verified now.
        """
        return self._apply({_key(name): source for name, source in changes.items()}, verified or {})

    def unverified(self, contents: Iterable[SourceContent]) -> list[Certificate]:
        """Return the certificates whose signatures are to be verified before these contents can be put in order.

        They share subject and date with another one, here or among the contents. Each is verified once while it is
        here, so there are two for each new certificate at most. May be called in a thread: reads single entries only.
        """
        new: dict[tuple[bytes, int], dict[Fingerprint, Certificate]] = {}
        for content in contents:
            for certificate in content.certificates:
                alike = new.setdefault((certificate.subject_key, certificate.not_before), {})
                alike[certificate.fingerprint] = certificate
        found: dict[Fingerprint, Certificate] = {}
        for (subject, not_before), alike in new.items():
            for present in map(self._find, self._fingerprints(subject)):
                if present is not None and present.not_before == not_before:
                    alike[present.fingerprint] = present
            if len(alike) > 1:
                found |= alike
        return [
            certificate
            for fingerprint, certificate in found.items()
            if certificate.is_verifiable and fingerprint not in self._signatures
        ]

    def _fingerprints(self, subject: bytes) -> tuple[Fingerprint, ...]:
        present = self._subjects.get(subject)
        if present is None:
            return ()
        # One call of C, which nothing can come between.
        return tuple(present) if isinstance(present, set) else (present,)

    def _find(self, fingerprint: Fingerprint) -> Certificate | None:
        places = self._places.get(fingerprint)
        if places is None:
            return None
        slot = min(tuple(places)) if isinstance(places, set) else places
        source = self._sources.get(slot[:3])
        certificates = source.content.certificates if source else ()
        return certificates[slot[3]] if slot[3] < len(certificates) else None

    def _apply(
        self,
        changes: Mapping[SourceKey, Source | None],
        verified: Mapping[Fingerprint, OwnSignature] = MappingProxyType({}),
    ) -> Change:
        removals: list[tuple[Slot, Certificate]] = []
        additions: list[tuple[Slot, Certificate]] = []
        for key, source in changes.items():
            old = self._sources.get(key)
            before = old.content.certificates if old else ()
            after = source.content.certificates if source else ()
            if before != after:
                removals.extend(
                    ((*key, index), certificate) for index, certificate in enumerate(before)
                )
                additions.extend(
                    ((*key, index), certificate) for index, certificate in enumerate(after)
                )
        subjects = {certificate.subject_key for _, certificate in (*removals, *additions)}
        was = self._layout(subjects)
        for slot, certificate in removals:
            self._forget(slot, certificate)
        for key, source in changes.items():
            if source is None:
                self._sources.pop(key, None)
            else:
                self._sources[key] = source
        for slot, certificate in additions:
            self._place(slot, certificate)
        self._signatures.update(
            (fingerprint, signature)
            for fingerprint, signature in verified.items()
            if fingerprint in self._places
        )
        change = self._lay_out(was, self._layout(subjects))
        return change if self._ghosts else _with_copies(change, removals, additions)

    def _place(self, slot: Slot, certificate: Certificate) -> None:
        places = self._places.get(certificate.fingerprint)
        if places is None:
            self._places[certificate.fingerprint] = slot
            _join(self._subjects, certificate.subject_key, certificate.fingerprint)
        else:
            _join(self._places, certificate.fingerprint, slot)

    def _forget(self, slot: Slot, certificate: Certificate) -> None:
        _part(self._places, certificate.fingerprint, slot)
        if certificate.fingerprint not in self._places:
            self._signatures.pop(certificate.fingerprint, None)
            _part(self._subjects, certificate.subject_key, certificate.fingerprint)

    def _layout(self, subjects: Iterable[bytes]) -> dict[Slot, SourcedCertificate]:
        """Return what stands at each place that certificates of these subjects have."""
        layout: dict[Slot, SourcedCertificate] = {}
        for subject in subjects:
            fingerprints = self._subjects.get(subject)
            if fingerprints is None:
                continue
            if not isinstance(fingerprints, set):
                slot = _first(self._places[fingerprints])
                layout[slot] = self._entry(slot)
                continue
            slots = sorted(_first(self._places[fingerprint]) for fingerprint in fingerprints)
            # The sort is stable: certificates that are alike stay in the order of their places.
            entries = sorted(map(self._entry, slots), key=_newest_first)
            layout.update(zip(slots, self._broken_last(entries), strict=True))
        return layout

    def _broken_last(self, entries: list[SourcedCertificate]) -> Iterator[SourcedCertificate]:
        """Yield the certificates of a subject; among those of one date the ones whose own signature fits first.

        OpenSSL may find the first of a subject only, and a damaged copy of a certificate must not hide the good one.
        """
        for _, group in groupby(entries, key=_newest_first):
            alike = list(group)
            yield from sorted(alike, key=self._own_signature) if len(alike) > 1 else alike

    def _own_signature(self, entry: SourcedCertificate) -> OwnSignature:
        certificate = entry.certificate
        signature = self._signatures.get(certificate.fingerprint)
        if signature is None:
            signature = own_signature(certificate)
            if certificate.is_verifiable:
                self._signatures[certificate.fingerprint] = signature
        return signature

    def _entry(self, slot: Slot) -> SourcedCertificate:
        return SourcedCertificate(slot[1], self._sources[slot[:3]].content.certificates[slot[3]])

    def _lay_out(
        self, was: dict[Slot, SourcedCertificate], now: dict[Slot, SourcedCertificate]
    ) -> Change:
        """Bring the rope from one layout to the other."""
        reordered = False
        for slot in was.keys() - now.keys():
            self._rope.delete(slot)
            reordered = True
        for slot, entry in now.items():
            old = was.get(slot)
            if old is None or old.certificate.fingerprint != entry.certificate.fingerprint:
                self._rope.set(slot, entry.certificate.pem)
                reordered = True
        before = {entry.certificate.fingerprint: entry for entry in was.values()}
        after = {entry.certificate.fingerprint: entry for entry in now.values()}
        return Change(
            added=tuple(entry for fingerprint, entry in after.items() if fingerprint not in before),
            removed=tuple(
                entry for fingerprint, entry in before.items() if fingerprint not in after
            ),
            reordered=reordered,
        )

    def remarks(self, severity: Severity) -> Iterator[tuple[bytes, Remark]]:
        """Yield every remark of at least this severity, with the name of its source (promise I9)."""
        for name, source in self.sources():
            for remark in source.content.remarks:
                if remark.severity >= severity:
                    yield name, remark


def _with_copies(
    change: Change,
    removals: Iterable[tuple[Slot, Certificate]],
    additions: Iterable[tuple[Slot, Certificate]],
) -> Change:
    """Return ``change`` with what sources gained and lost that did not change the bundle."""
    lost = {(slot[1], each.fingerprint): each for slot, each in removals if slot[2] != _GHOST}
    gained = {(slot[1], each.fingerprint): each for slot, each in additions if slot[2] != _GHOST}
    told = {each.certificate.fingerprint for each in (*change.added, *change.removed)}

    def only(those: Iterable[tuple[bytes, Fingerprint]]) -> Iterator[tuple[bytes, Fingerprint]]:
        return (key for key in those if key[1] not in told)

    copied = (SourcedCertificate(key[0], gained[key]) for key in only(gained) if key not in lost)
    uncopied = (SourcedCertificate(key[0], lost[key]) for key in only(lost) if key not in gained)
    return replace(change, copied=tuple(copied), uncopied=tuple(uncopied))


def _both(before: Source | None, source: Source) -> Source:
    """Return a source with the certificates of another one as well."""
    if before is None:
        return source
    certificates = dict.fromkeys((*before.content.certificates, *source.content.certificates))
    return replace(source, content=SourceContent(tuple(certificates)))


def _newest_first(entry: SourcedCertificate) -> int:
    return -entry.certificate.not_before


def _first(places: Slot | set[Slot]) -> Slot:
    return min(places) if isinstance(places, set) else places


def _join(groups: dict[_K, _V | set[_V]], key: _K, value: _V) -> None:
    """Add ``value`` to those of ``key``; a lone value stands for itself, which saves 200 bytes a certificate."""
    present = groups.get(key)
    if present is None:
        groups[key] = value
    elif isinstance(present, set):
        present.add(value)
    else:
        groups[key] = {present, value}


def _part(groups: dict[_K, _V | set[_V]], key: _K, value: _V) -> None:
    """Take ``value`` from those of ``key``."""
    present = groups[key]
    if not isinstance(present, set):
        del groups[key]
        return
    present.remove(value)
    if len(present) == 1:
        groups[key] = present.pop()
