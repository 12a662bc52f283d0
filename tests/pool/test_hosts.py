"""What a host's own entry must prove before another host believes it, and what may stand in the pool (I22)."""

from __future__ import annotations

import uuid

import msgspec
import pytest

from certfs.core.certificate import parse_source
from certfs.pool.engine import Snapshot
from certfs.pool.hosts import Believed, HostEntry, judge, make_entry
from certfs.pool.keys import Keys, MemberTable, PoolError, decode, encode, name_defect
from certfs.pool.view import View
from certfs.pool.wire import KeyValue
from tests.support import pki

POOL = "prod"
HOST = uuid.UUID("960abfff-6017-4d97-bd56-0a8f1a43e51a")
OTHER = uuid.UUID("0e5b1a6c-7a8e-4f8a-9d5e-3c1b2a4d5e6f")


def identity(number: int, host: uuid.UUID = HOST) -> pki.Identity:
    """Issue what a host shows to its pool, with the key of that number."""
    return pki.pool_certificate(host, key=pki.ec_key(number))


def entry(current: pki.Identity, upcoming: bytes = b"", before: bytes = b"") -> bytes:
    """Return the entry of a host."""
    return msgspec.json.encode(make_entry(POOL, str(HOST), current.host_pem, upcoming, before))


def believed(raw: bytes, known: tuple[str, ...] = ()) -> Believed:
    """Judge an entry that has to be believed."""
    found = judge(POOL, str(HOST), raw, known)
    assert isinstance(found, Believed), found
    return found


@pytest.mark.parametrize("key", [pki.ec_key(1), pki.rsa_key(1)])
def test_an_entry_with_its_proof_is_believed(key: pki.Key) -> None:
    """A certificate whose key signed the entry becomes the host's file; the key is not in the entry (I22)."""
    own = pki.pool_certificate(HOST, key=key)
    raw = entry(own)
    assert believed(raw).names[f"{HOST}.pem".encode()].pem == own.pem
    assert own.key_pem.splitlines()[1] not in raw


def test_a_new_key_must_be_signed_with_the_old_one() -> None:
    """A changed key is believed if it was announced as the next one, or if the old one signed it (I22)."""
    old, new = identity(1), identity(2)
    known = believed(entry(old)).keys
    assert "not signed with the old one" in str(judge(POOL, str(HOST), entry(new), known))
    assert believed(entry(new, before=old.host_pem), known).keys != known
    announced = believed(entry(old, new.host_pem), known)
    assert set(announced.names) == {f"{HOST}.pem".encode(), f"{HOST}.new.pem".encode()}
    assert believed(entry(new), announced.keys).keys == announced.keys[1:]


@pytest.mark.parametrize(
    "forged, reason",
    [
        (entry(identity(1, OTHER)), "subject of its certificate is not its UUID"),
        (entry(pki.issue(str(HOST), ca=True)), "CA"),
        (b"{}", "none of certfs"),
        (b"x" * 70_000, "too large"),
    ],
)
def test_a_forged_entry_is_ignored(forged: bytes, reason: str) -> None:
    """Another host's certificate, one of a CA, and what is no entry are not believed, each with its reason (I22)."""
    assert reason in str(judge(POOL, str(HOST), forged, ()))


def test_a_copied_proof_proves_nothing() -> None:
    """A proof of another pool, of another certificate or without a signature is refused (I22)."""
    own = identity(1)
    right = make_entry(POOL, str(HOST), own.host_pem, b"", b"")
    elsewhere = make_entry("lab", str(HOST), own.host_pem, b"", b"")
    for proof in (elsewhere.proof, b"", b"\0" * 70):
        wrong = msgspec.json.encode(HostEntry(right.certificate, proof))
        assert "has not proven" in str(judge(POOL, str(HOST), wrong, ()))
    other = msgspec.json.encode(HostEntry(identity(2).pem.decode(), right.proof))
    assert "has not proven" in str(judge(POOL, str(HOST), other, ()))


def test_only_members_are_believed_and_what_is_refused_keeps_what_was() -> None:
    """An entry without a membership means nothing; a refused one is named, and its keys stay known (I22)."""
    keys = Keys(POOL)
    put = KeyValue(key=keys.host(str(HOST)), value=entry(identity(1)), mod_revision=3)
    view = View(keys, Snapshot(1, 3, (put,)))
    assert view.certs_pool(str(OTHER), {})[0].values == {}
    table = msgspec.json.encode(MemberTable(publisher=False, admitted=0))
    member = KeyValue(key=keys.member(str(HOST)), value=table, mod_revision=4)
    view = View(keys, Snapshot(1, 4, (put, member)))
    assert view.certs_pool(str(OTHER), {})[0].values
    remote, known = view.certs_pool(str(OTHER), {str(HOST): ("another key",)})
    assert f"{HOST}.pem".encode() in remote.refused
    assert known == {str(HOST): ("another key",)}


@pytest.mark.parametrize(
    "name",
    [
        b"../../x.pem",
        b"a/b.pem",
        b".hidden.pem",
        b"x.txt",
        b"x\n.pem",
        b"\xff.pem",
        b"n" * 200 + b".pem",
    ],
)
def test_a_name_that_is_no_file_of_certs_is_refused(name: bytes) -> None:
    """What an engine says becomes the name of a file only if it can be nothing else (I22)."""
    assert name_defect(name)


def test_only_what_certfs_publishes_is_a_value() -> None:
    """Re-encoded certificates are a value; with a key, a comment or in another form they are none (I4, I22)."""
    one = pki.authority("one")
    value = encode(parse_source(b"comment\n" + one.key_pem + one.pem).certificates)
    assert value is not None
    assert value.pem == one.pem
    assert decode(one.pem) == value
    for other in (b"", one.key_pem + one.pem, b"# x\n" + one.pem, one.pem[:-5]):
        assert decode(other) is None


@pytest.mark.parametrize("name", ["", "Prod", "a/b", "../x", "x" * 64])
def test_a_pool_has_a_plain_name(name: str) -> None:
    """The name of a pool is part of every key and of every user's name (I22)."""
    with pytest.raises(PoolError, match="no name of a pool"):
        Keys(name)
