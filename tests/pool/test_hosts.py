"""What a host's own entry must prove before another host believes it, and what may stand in the pool (I22)."""

from __future__ import annotations

import hashlib
import uuid

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from certfs.core.certificate import parse_source
from certfs.core.pem import render
from certfs.pool import engine as engine_module
from certfs.pool import view as view_module
from certfs.pool.engine import Change, EngineRefusedError, Snapshot
from certfs.pool.hosts import Believed, HostEntry, judge, make_entry
from certfs.pool.keys import Keys, MemberTable, PoolError, decode, encode, name_defect
from certfs.pool.view import View
from certfs.pool.wire import KeyValue
from tests.support import pki, pki_raw

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


SUBJECT = pki_raw.name(pki_raw.attribute(str(HOST).encode()))
EXTENSION = pki_raw.sequence(
    pki_raw.element(0x06, bytes.fromhex("551d13")),
    pki_raw.element(0x04, pki_raw.sequence(pki_raw.element(0x01, b"\xff"))),
)


def alternative_names(names: bytes) -> bytes:
    """Encode a subjectAltName extension with this value."""
    return pki_raw.sequence(
        pki_raw.element(0x06, bytes.fromhex("551d11")), pki_raw.element(0x04, names)
    )


def key_of(algorithm: bytes, key: bytes) -> bytes:
    """Encode a public key of this algorithm."""
    return pki_raw.sequence(algorithm, pki_raw.element(0x03, b"\0", key))


UNKNOWN_KEY = key_of(pki_raw.sequence(pki_raw.element(0x06, bytes.fromhex("2a0304"))), b"key")
UNKNOWN_CURVE = pki_raw.sequence(
    pki_raw.element(0x06, bytes.fromhex("2a8648ce3d0201")),
    pki_raw.element(0x06, bytes.fromhex("2b8104000a7f")),
)


@pytest.mark.parametrize(
    "der",
    [
        pytest.param(der, id=label)
        for label, der in {
            "an extension twice": pki_raw.certificate(SUBJECT, extensions=[EXTENSION] * 2),
            "a broken extension": pki_raw.certificate(
                SUBJECT, extensions=[alternative_names(b"\xff\xff\xff")]
            ),
            "an X.400 address": pki_raw.certificate(
                SUBJECT, extensions=[alternative_names(b"\x30\x04\xa3\x02\xa0\x00")]
            ),
            "an unknown kind of key": pki_raw.certificate(SUBJECT, key=UNKNOWN_KEY),
            "an unknown curve": pki_raw.certificate(
                SUBJECT, key=key_of(UNKNOWN_CURVE, b"\x04" + b"x" * 64)
            ),
            "a broken key": pki_raw.certificate(
                SUBJECT, key=key_of(pki_raw.sequence(pki_raw.RSA, b"\x05\x00"), b"zzz")
            ),
            "a name of other bytes": pki_raw.certificate(
                pki_raw.name(pki_raw.attribute(b"\xe4\xff", kind=0x0C))
            ),
            "a key without a proof": pki_raw.certificate(SUBJECT, key=pki_raw.dsa_key(2048)),
        }.items()
    ],
)
def test_no_certificate_of_a_member_ends_the_process_of_another(der: bytes) -> None:
    """Whatever certificate a member writes into its entry, others have a reason not to believe it (I22)."""
    odd = msgspec.json.encode(HostEntry(render(der).decode(), b"proof"))
    assert isinstance(judge(POOL, str(HOST), odd, ()), str)


def test_no_former_key_of_a_member_ends_the_process_of_another() -> None:
    """Nor does what it calls the key that it had before (I22)."""
    right = make_entry(POOL, str(HOST), identity(1).host_pem, b"", b"")
    odd = msgspec.json.encode(
        HostEntry(right.certificate, right.proof, old_key=UNKNOWN_KEY, old_proof=b"proof")
    )
    known = (hashlib.sha256(UNKNOWN_KEY).hexdigest(),)
    assert "not signed with the old one" in str(judge(POOL, str(HOST), odd, known))


def test_a_host_whose_own_key_cannot_be_used_publishes_nothing() -> None:
    """An encrypted key, or one of another kind, is a reason and no traceback (I22)."""
    own = identity(1)
    encrypted = own.key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
    for key in (encrypted, own.key_pem + own.key_pem, b""):
        with pytest.raises(ValueError, match="key"):
            make_entry(POOL, str(HOST), own.pem + key, b"", b"")


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


def test_an_entry_is_verified_when_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Changes of others cost no signature of a host's entry, however often they come; its own do (I18)."""
    verified = []

    def noted(pool: str, uuid: str, raw: bytes, known: tuple[str, ...]) -> Believed | str:
        verified.append(raw)
        return judge(pool, uuid, raw, known)

    monkeypatch.setattr(view_module, "judge", noted)
    keys = Keys(POOL)
    table = msgspec.json.encode(MemberTable(publisher=False, admitted=0))
    member = KeyValue(key=keys.member(str(HOST)), value=table, mod_revision=1)
    first = KeyValue(key=keys.host(str(HOST)), value=entry(identity(1)), mod_revision=2)
    view = View(keys, Snapshot(1, 2, (member, first)))
    remote, known = view.certs_pool(str(OTHER), {})
    for revision in range(3, 9):
        other = KeyValue(key=keys.host(str(OTHER)), value=b"%d" % revision, mod_revision=revision)
        view = view.after(Change(revision, {other.key: other}))
        assert view.certs_pool(str(OTHER), known)[0] == remote
    assert len(verified) <= 2, "once by no keys, once by those of the entry"
    view = view.after(Change(9, {first.key: KeyValue(key=first.key, mod_revision=9, value=b"{}")}))
    assert view.certs_pool(str(OTHER), known)[0].refused


def test_a_pool_that_is_too_large_is_not_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """More keys, or more bytes, than a host keeps end its following, also where they come one by one (I18)."""
    keys = Keys(POOL)
    large = [KeyValue(key=b"/%d" % n, value=b"x" * 100, mod_revision=n) for n in range(1, 21)]
    for limit, most in (("MOST_KEYS", 10), ("MOST_BYTES", 1000)):
        with monkeypatch.context() as patch:
            patch.setattr(engine_module, limit, most)
            view = View(keys, Snapshot(1, 0, ()))
            for one in large[:10]:
                view = view.after(Change(one.mod_revision, {one.key: one}))
                view = view.after(Change(one.mod_revision, {one.key: one}))
            with pytest.raises(EngineRefusedError, match="are followed at most"):
                view.after(Change(11, {large[10].key: large[10]}))
            view = view.after(Change(11, {large[0].key: None}))
            view.after(Change(12, {large[10].key: large[10]}))


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
