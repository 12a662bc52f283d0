"""What follows from approvals: pure, with real signatures (I22)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from certfs.core.certificate import parse_source
from certfs.pool.approvals import Approvals, ApprovalTable, Approved, statement
from certfs.pool.keys import Value, encode
from certfs.pool.ssh_signature import Signers, read_signers, sign
from certfs.pool.view import Remote
from tests.support import pki

NAME = b"x.pem"


class Signer:
    """A person with a key."""

    def __init__(self, directory: Path) -> None:
        self.key = directory / "key"
        directory.mkdir(exist_ok=True)
        command: list[str | Path] = ["ssh-keygen", "-q", "-N", "", "-t", "ed25519", "-f", self.key]
        subprocess.run(command, check=True, timeout=60)

    @property
    def signers(self) -> Signers:
        """The list that has this person alone."""
        return read_signers(f"admin {self.key.with_suffix('.pub').read_text()}")

    def approves(
        self, value: Value | None, number: int, *, name: bytes = NAME, pool: str = "test"
    ) -> bytes:
        """Return the record of an approval."""
        approved = Approved(number, value.digest if value else None)
        (signature,) = sign(self.key, [statement(pool, name, approved)])
        return msgspec.json.encode(ApprovalTable(number, approved.digest, signature))


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Signer:
    """Make a person who may approve."""
    return Signer(tmp_path_factory.mktemp("admin"))


def value_of(name: str) -> Value:
    """Return the value of a certificate."""
    value = encode(parse_source(pki.authority(name).pem).certificates)
    assert value is not None
    return value


ONE, TWO = value_of("one"), value_of("two")


def judged(
    admin: Signer,
    value: Value | None,
    record: bytes | None,
    known: Approved | None = None,
    *,
    agreed: bool = False,
) -> tuple[Value | None, str, Approved | None]:
    """Return what counts of a name, why not, and what is remembered."""
    remote, remembered = Approvals.of("test", admin.signers).judge(
        Remote({NAME: value} if value else {}, {}),
        {NAME: record} if record is not None else {},
        {"x.pem": known} if known else {},
        frozenset({NAME} if agreed else ()),
    )
    return remote.values.get(NAME), remote.refused.get(NAME, ""), remembered.get("x.pem")


def test_only_what_was_approved_counts(admin: Signer) -> None:
    """A file counts with an approval of its content, and not without one, or with one of something else (I22)."""
    assert judged(admin, ONE, admin.approves(ONE, 1)) == (ONE, "", Approved(1, ONE.digest))
    assert judged(admin, ONE, None)[:2] == (None, "it is not approved")
    assert judged(admin, TWO, admin.approves(ONE, 1))[:2] == (None, "it is not what was approved")
    for other in (
        admin.approves(ONE, 1, name=b"y.pem"),
        admin.approves(ONE, 1, pool="another"),
        msgspec.json.encode(ApprovalTable(1, ONE.digest, "none")),
        admin.approves(ONE, 1).replace(b'"number":1', b'"number":2'),
        b"nonsense",
        b"{}",
        b"x" * (1 << 20),
    ):
        found, reason, remembered = judged(admin, ONE, other)
        assert (found, remembered) == (None, None)
        assert reason.startswith("its approval")


def test_an_older_approval_never_counts_again(admin: Signer) -> None:
    """Who brings back an older content with its approval, or takes the approval away, changes nothing (I22)."""
    newest = Approved(2, TWO.digest)
    assert judged(admin, ONE, admin.approves(ONE, 1), newest)[::2] == (None, newest)
    assert "older" in judged(admin, ONE, admin.approves(ONE, 1), newest)[1]
    assert judged(admin, ONE, admin.approves(ONE, 2), newest)[::2] == (None, newest)
    assert judged(admin, TWO, admin.approves(ONE, 1), newest) == (TWO, "", newest)
    assert judged(admin, TWO, None, newest) == (TWO, "", newest)
    assert judged(admin, ONE, admin.approves(ONE, 3), newest)[::2] == (ONE, Approved(3, ONE.digest))


def test_a_removal_is_approved_like_a_content(admin: Signer) -> None:
    """A file that was approved is not gone until its removal is approved, and does not come back then (I22)."""
    there, gone = Approved(1, ONE.digest), Approved(2, None)
    assert judged(admin, None, None, there) == (None, "its removal is not approved", there)
    assert judged(admin, None, admin.approves(ONE, 1), there)[1] == "its removal is not approved"
    assert judged(admin, None, admin.approves(None, 2), there) == (None, "", gone)
    found, reason, remembered = judged(admin, ONE, admin.approves(ONE, 1), gone)
    assert (found, remembered) == (None, gone)
    assert reason


def test_what_was_there_before_approvals_does_not_go_without_one(admin: Signer) -> None:
    """A file that a host applied before it asked for approvals stays until its removal is approved (I22)."""
    assert judged(admin, None, None, agreed=True) == (None, "its removal is not approved", None)
    gone = Approved(1, None)
    assert judged(admin, None, admin.approves(None, 1), agreed=True) == (None, "", gone)
    assert judged(admin, None, admin.approves(None, 1), gone, agreed=True) == (None, "", gone)


def test_a_signer_who_is_taken_from_the_list_approves_nothing_more(
    admin: Signer, tmp_path: Path
) -> None:
    """What another key signs does not count; what was believed before stays as it was (I22)."""
    other = Signer(tmp_path / "other")
    believed = Approved(1, ONE.digest)
    assert judged(admin, TWO, other.approves(TWO, 2), believed)[::2] == (None, believed)
    assert judged(admin, ONE, other.approves(ONE, 1), believed) == (ONE, "", believed)


def test_what_is_refused_for_another_reason_stays_refused(admin: Signer) -> None:
    """An approval does not make a name of what the pool's form does not allow (I22)."""
    rule = Approvals.of("test", admin.signers)
    remote, _ = rule.judge(
        Remote({}, {NAME: "why"}), {NAME: admin.approves(ONE, 1)}, {}, frozenset()
    )
    assert remote == Remote({}, {NAME: "why"})
    odd = admin.approves(None, 1, name=b"../y")
    assert rule.judge(Remote({}, {}), {b"../y": odd, b"\xff": odd}, {}, frozenset())[0] == Remote(
        {}, {}
    )
