"""What a host must remember of the pool over a crash, in one file that is replaced at once.

Owns the file's form and the rule by which an interrupted step is finished (`settled`): an intent is written and synced
before a file is touched, so that a name that holds what was intended is known to come from the pool, and is not taken
for a change of this host. Without that, a certificate that the pool has removed meanwhile would be published again.
"""

import os
from dataclasses import dataclass
from typing import Final

import msgspec

from certfs.errors import StoreError, from_os_error
from certfs.pool.approvals import Approved
from certfs.pool.keys import Digest
from certfs.pool.reconcile import Content
from certfs.store.atomic import write_atomic

FILE: Final = b"journal.json"
_MOST_BYTES: Final = 64 << 20

Names = dict[str, str]
"""Names (printable ASCII) and digests."""


class Intent(msgspec.Struct, frozen=True):
    """What is being applied: for each name of a directory the digest, or None for its removal.

    ``both`` has the digest of names that hold the old certificates and the new ones for a while.
    """

    directory: str
    names: dict[str, str | None]
    both: dict[str, str] = {}
    swap: bool = False
    """Whether a ``D.bk`` was made for it, which is to be removed with it."""


class Sending(msgspec.Struct, frozen=True):
    """A publication of which it is not known whether the engine took it."""

    sequence: int
    names: dict[str, str | None]


class Journal(msgspec.Struct, frozen=True):
    """Everything that is remembered.

    ``cluster`` and ``applied`` are the engine's identity and the revision up to which its state is in the directories.
    ``seen`` is the newest revision of which anything is in ``base``, or is about to be: an engine that is behind it has
    lost what this host acted upon.
    ``base`` is what was agreed, for each directory. ``kept_local`` were in ``certs`` before this host joined.
    ``keys`` has for each host of the pool the SHA-256 of the public keys that were believed last.
    ``held`` are the directories whose deletions are not believed. ``approved`` is the newest approval that was seen of
    each name: an older one does not count again.
    """

    cluster: int = 0
    applied: int = 0
    seen: int = 0
    sequence: int = 1
    base: dict[str, Names] = {}
    kept_local: Names | None = None
    keys: dict[str, tuple[str, ...]] = {}
    held: tuple[str, ...] = ()
    approved: dict[str, Approved] = {}
    intent: Intent | None = None
    sending: Sending | None = None

    def distrust(self, cluster: int, revision: int) -> str:
        """Return why what an engine has at this revision is not to be applied, empty if it is."""
        newest = max(self.applied, self.seen)
        if self.cluster and cluster != self.cluster:
            return "the engine is another cluster than before: certfs pool join FILE again, if it is meant to be"
        if revision < newest:
            return f"the engine went back from revision {newest} to {revision}"
        return ""

    def after(self, revision: int) -> "Journal":
        """Return the journal after something of this revision was believed."""
        return msgspec.structs.replace(self, seen=max(self.seen, revision))

    def agreed(self, directory: str) -> Content:
        """Return what was agreed of a directory."""
        return content(self.base.get(directory, {}))

    def perhaps_agreed(self, directory: str) -> frozenset[bytes]:
        """Return the names that were agreed in a directory, or were about to be when a process was ended."""
        applying = self.intent.names if self.intent and self.intent.directory == directory else {}
        sending = self.sending.names if self.sending and directory == "certs" else {}
        pending = [*applying.items(), *sending.items()]
        return frozenset(self.agreed(directory)) | {
            name.encode("ascii") for name, digest in pending if digest is not None
        }

    def with_names(self, directory: str, names: dict[bytes, Digest | None]) -> "Journal":
        """Return the journal after these names were agreed; None for a name that is in neither place."""
        if not names:
            return self
        base = dict(self.base.get(directory, {}))
        for name, digest in names.items():
            if digest is None:
                base.pop(name.decode("ascii"), None)
            else:
                base[name.decode("ascii")] = digest
        return msgspec.structs.replace(self, base={**self.base, directory: base})


def content(names: dict[str, str]) -> Content:
    """Return names as the journal has them as a directory's content."""
    return {name.encode("ascii"): Digest(digest) for name, digest in names.items()}


def settled(journal: Journal, directory: str, local: Content) -> Journal:
    """Return the journal after an interrupted application: what was intended and is there, came from the pool.

    The intent stays until the rest is applied: the ``D.bk`` that was made for it must not end before, or a reader would
    see a part of the new and not all of the old.
    """
    intent = journal.intent
    if intent is None or intent.directory != directory:
        return journal
    done: dict[bytes, Digest | None] = {}
    for text, digest in intent.names.items():
        name = text.encode("ascii")
        found = local.get(name)
        if found == digest or (found is not None and found == intent.both.get(text)):
            done[name] = found
    return journal.with_names(directory, done)


@dataclass(frozen=True, slots=True)
class JournalFile:
    """The file, in the state directory (a descriptor) whose path is ``path``."""

    directory: int
    path: str

    def read(self) -> Journal | None:
        """Return what is there, None where nothing is; StoreError for what certfs did not write."""
        try:
            descriptor = os.open(
                FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.directory
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise from_os_error(f"{self.path}/{FILE.decode()}", error) from None
        with open(descriptor, "rb") as file:
            raw = file.read(_MOST_BYTES)
        try:
            return msgspec.json.decode(raw, type=Journal)
        except msgspec.DecodeError as error:
            raise StoreError(
                f"{self.path}/{FILE.decode()}: not a journal of certfs: {error}",
                advice="remove it: what is only here stays here, and the pool's comes again",
            ) from None

    def write(self, journal: Journal) -> None:
        """Replace the file; it is on the disk when this returns. StoreError, NoSpaceError and so on."""
        try:
            write_atomic(self.directory, FILE, msgspec.json.encode(journal), mode=0o600)
        except OSError as error:
            raise from_os_error(f"{self.path}/{FILE.decode()}", error) from None
