"""The steps of a member's process, in this process, on a real engine: what happens between two of them (I22)."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio

from certfs.pool import reconcile, wire
from certfs.pool.directory import Scan, SourceDirectory
from certfs.pool.engine import Engine
from certfs.pool.journal import Intent, Journal, JournalFile
from certfs.pool.keys import DirectoryHead, MemberTable
from certfs.pool.membership import JoinFile
from certfs.pool.process import CERTS, Member
from certfs.pool.store import Store
from tests.support import etcd, mounts, pki

_SECONDS = 30.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[etcd.Cluster]:
    """Run one etcd on the loopback, for all tests of this module."""
    with etcd.cluster() as made:
        yield made


class Host:
    """A publisher in a pool of its own, without a mount: its bundles show what is in the directory at once."""

    def __init__(self, cluster: etcd.Cluster, base: Path) -> None:
        pool = f"p{secrets.token_hex(8)}"
        self.membership = JoinFile(
            pool, str(uuid.uuid4()), cluster.endpoints, cluster.ca.read_text(), "", ""
        )
        self.keys = self.membership.keys
        self.certs = base / "store/stunnel/certs"
        self.state = base / "state"
        self.certs.mkdir(parents=True)
        self.state.mkdir()
        self.store = Store({b"": os.open(base / "store", os.O_PATH | os.O_DIRECTORY)})
        self.open_state()

    def open_state(self) -> None:
        """Open the state directory, as a process does when it starts."""
        self.journal = JournalFile(os.open(self.state, os.O_RDONLY), str(self.state))

    def close(self) -> None:
        """Close its descriptors."""
        os.close(self.store.trees[b""])
        os.close(self.journal.directory)

    @asynccontextmanager
    async def running(
        self, directory: SourceDirectory | None = None
    ) -> AsyncIterator[tuple[Member, Engine]]:
        """Run its process in the context, and give it with a connection of another publisher."""
        async with Engine(self.membership.access) as engine:
            await put(
                engine,
                {
                    self.keys.member(self.membership.uuid): msgspec.json.encode(
                        MemberTable(publisher=True, admitted=0)
                    )
                },
            )
            member = Member(
                self.membership,
                self.journal.directory,
                str(self.state),
                self.store,
                self.certs.parents[1],
            )
            if directory is not None:
                member._directories["certs"] = directory
            with trio.fail_after(_SECONDS):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(member.run)
                    yield member, engine
                    nursery.cancel_scope.cancel()

    def head(self) -> dict[bytes, bytes]:
        """Return the key that every publication writes."""
        return {self.keys.head: msgspec.json.encode(DirectoryHead("0" * 16))}

    def name(self, name: str, pem: bytes) -> dict[bytes, bytes]:
        """Return the key of a name with its value."""
        return {self.keys.name("0" * 16, name.encode()): pem}


@pytest.fixture
def host(cluster: etcd.Cluster, tmp_path: Path) -> Iterator[Host]:
    """Make a host."""
    made = Host(cluster, tmp_path)
    yield made
    made.close()


async def put(engine: Engine, values: dict[bytes, bytes]) -> int:
    """Write keys as one and return the revision."""
    operations = tuple(
        wire.Operation(request_put=wire.Put(key=key, value=value)) for key, value in values.items()
    )
    done = await engine.transact(wire.Transaction(compare=(), success=operations))
    assert done is not None
    return done


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something holds; `Host.running` has the deadline."""
    while not condition():  # noqa: ASYNC110 - of what the process changes without saying so
        await trio.sleep(0.01)


class Interrupted(SourceDirectory):
    """A directory in which ``work`` happens after it was read and before what was read is used."""

    work: Callable[[Scan], None] | None = None

    def scan(self) -> Scan:
        """Read it, and have something else happen."""
        found = super().scan()
        if self.work is not None:
            self.work(found)
        return found


async def test_what_the_pool_changes_during_a_step_is_not_overwritten(host: Host) -> None:
    """A name that another host publishes while this host compares keeps that value; the local one is aside (I22)."""
    ours, theirs = pki.authority("ours").pem, pki.authority("theirs").pem
    directory = Interrupted(host.store, CERTS)
    async with host.running(directory) as (member, engine):
        await until(lambda: member.report.state != "starting")

        async def other() -> None:
            revision = await put(engine, host.head() | host.name("x.pem", theirs))
            await until(lambda: member._view is not None and member._view.revision >= revision)

        def at_once(found: Scan) -> None:
            if found.values:
                directory.work = None
                trio.from_thread.run(other)

        directory.work = at_once
        (host.certs / "x.pem").write_bytes(ours)
        await until(lambda: (host.certs / "x.pem").read_bytes() == theirs)
        found = await engine.get(host.keys.name("0" * 16, b"x.pem"))
        assert found is not None
        assert found.value == theirs
    assert (host.state / "aside/certs/x.pem").read_bytes() == ours


async def test_a_file_that_stays_open_holds_up_the_others_once(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is published waits for a file that is being written, but not without end (I22)."""
    monkeypatch.setattr(reconcile, "PATIENCE_SECONDS", 0.3)
    async with host.running() as (member, engine):
        await until(lambda: member.report.state != "starting")
        with (host.certs / "slow.pem").open("wb", buffering=0) as slow:
            slow.write(b"-----BEGIN")
            (host.certs / "x.pem").write_bytes(pki.authority("x").pem)
            key = host.keys.name("0" * 16, b"x.pem")
            while await engine.get(key) is None:  # noqa: ASYNC110 - the other side is an engine
                await trio.sleep(0.01)


async def test_what_the_pool_changed_as_one_waits_for_a_file_that_is_open(host: Host) -> None:
    """Of two names that the pool changed as one, none is applied while one of them is being written here (I10, I22)."""
    old = {name: pki.authority(f"old {name}").pem for name in ("a.pem", "b.pem")}
    new = {name: pki.authority(f"new {name}").pem for name in old}
    for name, pem in old.items():
        (host.certs / name).write_bytes(pem)
    async with host.running() as (member, engine):
        await put(
            engine,
            host.head() | host.name("a.pem", old["a.pem"]) | host.name("b.pem", old["b.pem"]),
        )
        await until(lambda: member.report.state == "in sync" and member.report.applied > 0)
        with (host.certs / "b.pem").open("r+b", buffering=0) as slow:
            slow.write(old["b.pem"])
            revision = await put(
                engine,
                host.head() | host.name("a.pem", new["a.pem"]) | host.name("b.pem", new["b.pem"]),
            )
            await until(lambda: member.report.revision >= revision)
            await trio.sleep(0.5)  # more than two steps
            assert (host.certs / "a.pem").read_bytes() == old["a.pem"]
        await until(lambda: all((host.certs / n).read_bytes() == pem for n, pem in new.items()))


async def test_a_swap_belongs_to_the_intent_until_its_end(host: Host) -> None:
    """Killed between the last file and the end of the D.bk, the next process ends that without waiting (I10, I22)."""
    pems = {name: pki.authority(name).pem for name in ("a.pem", "b.pem")}

    class Killed(SourceDirectory):
        def end_swap(self) -> None:
            raise KeyboardInterrupt

    values = host.name("a.pem", pems["a.pem"]) | host.name("b.pem", pems["b.pem"])

    async def killed() -> None:
        async with host.running(Killed(host.store, CERTS)) as (_, engine):
            await put(engine, host.head() | values)
            await trio.sleep_forever()

    with pytest.raises(BaseExceptionGroup):
        await killed()
    beside = host.certs.with_name("certs.bk")
    assert beside.exists()
    async with host.running() as (member, _):
        await until(lambda: member.report.applied > 0)
    assert not beside.exists()


async def test_an_interrupted_application_comes_before_others(host: Host) -> None:
    """The intent of one directory is not lost when the pool has changed another one meanwhile (I22)."""
    pool = host.certs.with_name("certs-pool")
    pool.mkdir()
    pool.with_name("certs-pool.bk").mkdir()
    host.journal.write(
        Journal(kept_local={}, intent=Intent("certs-pool", {"x.pem": None}, swap=True))
    )
    pem = pki.authority("a").pem
    async with host.running() as (member, engine):
        await put(engine, host.head() | host.name("a.pem", pem))
        await until((host.certs / "a.pem").exists)
        assert not pool.with_name("certs-pool.bk").exists()
        await until(lambda: member.report.applied > 0)


@pytest.fixture
def small(host: Host) -> Iterator[Host]:
    """The host, with 64 KiB for what it has to remember."""
    mounts.need_root()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", host.state], check=True)
    os.close(host.journal.directory)
    host.open_state()
    yield host
    os.close(host.journal.directory)
    subprocess.run(["umount", host.state], check=True)
    host.open_state()


async def test_a_full_disk_stops_nothing_for_good(small: Host) -> None:
    """Where the journal cannot be written nothing is applied; when there is room again, everything is (I22)."""
    pem = pki.authority("a").pem
    full = small.state / "full"
    async with small.running() as (member, engine):
        await until(lambda: member.report.state == "in sync")
        with contextlib.suppress(OSError), full.open("wb", buffering=0) as file:
            while file.write(b"x" * 4096):
                pass
        await put(engine, small.head() | small.name("a.pem", pem))
        await until(lambda: member.report.state == "failing")
        assert "space" in member.report.reason
        assert not (small.certs / "a.pem").exists()
        full.unlink()
        await until(lambda: member.report.state == "in sync")
        assert (small.certs / "a.pem").read_bytes() == pem
