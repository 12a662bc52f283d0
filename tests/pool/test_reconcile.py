"""What follows from base, local and remote (I22), and the journal's rule after a crash."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfs.errors import StoreError
from certfs.pool.journal import Intent, Journal, JournalFile, Sending, settled
from certfs.pool.keys import Digest
from certfs.pool.reconcile import PATIENCE_SECONDS, Content, Patience, Plan, reconcile, restored

A, B, C = Digest("a"), Digest("b"), Digest("c")
_CONTENT = st.dictionaries(
    st.sampled_from([b"1.pem", b"2.pem", b"3.pem", b"4.pem"]), st.sampled_from([A, B, C])
)


def plan(
    base: Content, local: Content | None, remote: Content, *, may_publish: bool = True
) -> Plan:
    """Reconcile a directory to which nothing special applies."""
    return reconcile(base, local, remote, may_publish=may_publish, kept_local={})


@pytest.mark.parametrize(
    "was, mine, theirs, expected",
    [
        (A, B, A, Plan(publish={b"x.pem": B})),
        (A, None, A, Plan(publish={b"x.pem": None})),
        (None, A, None, Plan(publish={b"x.pem": A})),
        (A, A, B, Plan(apply={b"x.pem": B})),
        (A, A, None, Plan(apply={b"x.pem": None})),
        (A, None, B, Plan(apply={b"x.pem": B})),
        (A, B, None, Plan(apply={b"x.pem": None}, aside=frozenset({b"x.pem"}))),
        (A, B, C, Plan(apply={b"x.pem": C}, aside=frozenset({b"x.pem"}))),
        (None, A, B, Plan(apply={b"x.pem": B}, aside=frozenset({b"x.pem"}))),
        (A, B, B, Plan(agreed={b"x.pem": B})),
        (A, None, None, Plan(agreed={b"x.pem": None})),
        (A, A, A, Plan()),
    ],
)
def test_table_of_conflicts(
    was: Digest | None, mine: Digest | None, theirs: Digest | None, expected: Plan
) -> None:
    """Each row of the table of conflicts gives what it says (I22)."""
    base, local, remote = (
        {b"x.pem": each} if each is not None else {} for each in (was, mine, theirs)
    )
    assert plan(base, local, remote) == expected


@given(base=_CONTENT, local=_CONTENT, remote=_CONTENT, may_publish=st.booleans())
def test_a_plan_converges(
    base: Content, local: Content, remote: Content, *, may_publish: bool
) -> None:
    """After a plan is carried out, the next one does nothing, and both sides differ only in what is shown (I22)."""
    first = plan(base, local, remote, may_publish=may_publish)
    here, there, agreed = dict(local), dict(remote), dict(base)
    for target, changes in (
        (here, first.apply),
        (there, first.publish),
        (agreed, {**first.apply, **first.publish, **first.agreed}),
    ):
        for name, digest in changes.items():
            target.pop(name, None)
            if digest is not None:
                target[name] = digest
    second = reconcile(
        agreed, here, there, may_publish=may_publish, kept_local={}, was_held=bool(first.held)
    )
    assert not second.apply
    assert not second.publish
    assert not second.agreed
    assert {name for name in here.keys() | there.keys() if here.get(name) != there.get(name)} == (
        second.drift
    )


@given(_CONTENT, _CONTENT, _CONTENT)
def test_nothing_local_is_lost(base: Content, local: Content, remote: Content) -> None:
    """What was changed here is published, set aside, equal to the pool's, or stays; it never vanishes (I22)."""
    found = plan(base, local, remote)
    for name, digest in local.items():
        if base.get(name) != digest and remote.get(name) != digest:
            assert name in found.publish or name in found.aside or name in found.drift


@given(_CONTENT, _CONTENT, _CONTENT)
def test_a_host_that_may_not_publish_changes_nothing(
    base: Content, local: Content, remote: Content
) -> None:
    """A member that is no publisher never publishes, and a local removal is not undone without a sync (I22)."""
    found = plan(base, local, remote, may_publish=False)
    assert not found.publish
    for name in found.drift:
        assert name not in found.apply
        assert restored(found, remote).get(name) == remote.get(name)


def test_what_was_here_before_stays_here() -> None:
    """A joiner's own certificates are not published as long as they are what they were (I22)."""
    own = {b"own.pem": A}
    found = reconcile({}, own, {}, may_publish=True, kept_local=own)
    assert found == Plan(drift=frozenset({b"own.pem"}))
    assert reconcile({}, {b"own.pem": B}, {}, may_publish=True, kept_local=own).publish


def test_a_directory_that_vanished_publishes_nothing() -> None:
    """More than max(3, half) of the names gone, or the directory: held, until deletions are accepted (I22)."""
    base = {b"%d.pem" % number: A for number in range(10)}
    few = dict(list(base.items())[5:])
    assert len(plan(base, few, base).publish) == 5
    most = dict(list(base.items())[6:])
    for local in (most, None):
        held = plan(base, local, base)
        assert held.held
        assert not held.publish
    accepted = reconcile(base, most, base, may_publish=True, kept_local={}, accept_deletions=True)
    assert len(accepted.publish) == 6
    assert not accepted.held


def test_a_file_that_is_being_written_waits() -> None:
    """A name that is being written is neither published, nor taken for removed, nor overwritten (I3, I22)."""
    base = {b"x.pem": A}
    for remote in (base, {b"x.pem": B}, {}):
        found = reconcile(base, {}, remote, may_publish=True, kept_local={}, unsettled={b"x.pem"})
        assert found == Plan()


def test_what_changed_together_waits_for_the_file_that_is_still_open() -> None:
    """What is to happen waits for a name that is being written, once, and later only after it was closed (I10)."""
    patience = Patience()
    slow, none = frozenset({b"slow"}), frozenset[bytes]()
    assert patience.waits(slow, slow, 0.0)
    assert not patience.waits(none, none, 1.0)
    assert patience.waits(slow, slow, 2.0)
    assert patience.waits(slow, slow, 2.0 + PATIENCE_SECONDS - 1)
    assert not patience.waits(slow, slow, 2.0 + PATIENCE_SECONDS)
    assert not patience.waits(slow, slow, 100.0)
    assert patience.waits(slow | {b"other"}, slow | {b"other"}, 101.0)
    assert not patience.waits(none, none, 102.0)
    assert patience.waits(slow, slow, 103.0)


def test_what_misses_nothing_waits_for_nothing() -> None:
    """A name that is being written takes no patience while nothing misses it."""
    patience = Patience()
    slow = frozenset({b"slow"})
    assert not patience.waits(frozenset(), slow, 0.0)
    assert patience.waits(slow, slow, 100.0)


@given(_CONTENT, _CONTENT, st.sets(st.sampled_from([b"1.pem", b"2.pem", b"3.pem", b"4.pem"])))
def test_a_crash_while_applying_resurrects_nothing(
    old: Content, new: Content, done: set[bytes]
) -> None:
    """Killed at any point of an application whose result the pool has removed since, a host publishes nothing (I22)."""
    changed = {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
    intent = Intent("certs", {name.decode(): new.get(name) for name in changed})
    base = {name.decode(): str(digest) for name, digest in old.items()}
    journal = Journal(base={"certs": base}, intent=intent)
    local = {
        name: digest
        for name in old.keys() | new.keys()
        if (digest := (new if name in done and name in changed else old).get(name)) is not None
    }
    after = settled(journal, "certs", local)
    assert after.intent == intent, "the D.bk ends with the rest of it"
    found = reconcile(after.agreed("certs"), local, {}, may_publish=True, kept_local={})
    assert not found.publish
    assert not found.aside
    assert set(found.apply) == set(local)


def test_a_file_that_holds_old_and_new_is_the_pools() -> None:
    """Killed while a name holds the old and the new, a host neither publishes that nor sets it aside (I22)."""
    intent = Intent("certs", {"x.pem": B}, both={"x.pem": C}, swap=True)
    journal = settled(Journal(base={"certs": {"x.pem": A}}, intent=intent), "certs", {b"x.pem": C})
    found = plan(journal.agreed("certs"), {b"x.pem": C}, {b"x.pem": B})
    assert found == Plan(apply={b"x.pem": B})


def test_the_journal_is_read_as_it_was_written(tmp_path: Path) -> None:
    """A journal survives being written, and a damaged one is an error that says what to do (I22)."""
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        file = JournalFile(directory, str(tmp_path))
        assert file.read() is None
        journal = Journal(
            cluster=5,
            applied=7,
            base={"certs": {"x.pem": A}},
            intent=Intent("certs", {"y.pem": None}, swap=True),
        )
        file.write(journal)
        assert file.read() == journal
        written = tmp_path / "journal.json"
        written.write_bytes(msgspec.json.encode(journal)[:-9])
        with pytest.raises(StoreError, match=r"journal\.json.*remove it"):
            file.read()
    finally:
        os.close(directory)


def test_what_was_under_way_when_a_process_ended_may_be_agreed() -> None:
    """What was being applied or published is a name that the host had, when it is gone in the pool after that (I22)."""
    journal = Journal(
        base={"certs": {"a.pem": "1"}},
        intent=Intent("certs", {"b.pem": "2", "gone.pem": None}),
        sending=Sending(1, {"c.pem": "3", "lost.pem": None}),
    )
    assert journal.perhaps_agreed("certs") == {b"a.pem", b"b.pem", b"c.pem"}
    assert journal.perhaps_agreed("certs-pool") == set()


def test_an_engine_that_has_lost_what_was_begun_is_not_believed() -> None:
    """Also what was only begun to be applied, or was published, must not be taken back by an old engine (I22)."""
    journal = Journal(cluster=1, applied=5).after(7).after(6)
    assert "went back from revision 7 to 6" in journal.distrust(1, 6)
    assert journal.distrust(1, 7) == ""
    assert "another cluster" in journal.distrust(2, 9)
    assert Journal().distrust(3, 0) == ""
