"""The steps of a member's process, in this process, on a real engine: what happens between two of them (I22)."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import secrets
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from certfs.pool import commands, reconcile, wire
from certfs.pool import engine as engine_module
from certfs.pool.approvals import ApprovalTable, Approved, statement
from certfs.pool.directory import Scan, SourceDirectory
from certfs.pool.engine import Engine
from certfs.pool.hosts import make_entry
from certfs.pool.journal import Intent, Journal, JournalFile
from certfs.pool.keys import DirectoryHead, MemberTable, decode
from certfs.pool.local import Told
from certfs.pool.membership import JoinFile
from certfs.pool.process import CERTS, Member
from certfs.pool.ssh_signature import Signers, read_signers, sign
from certfs.pool.store import Store
from tests.support import etcd, mounts, pki
from tests.support.relay import relayed

pytestmark = etcd.LEFT_BY_HTTPX
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
        self,
        directory: SourceDirectory | None = None,
        *,
        signers: Signers | None = None,
        publisher: bool = True,
    ) -> AsyncIterator[tuple[Member, Engine]]:
        """Run its process in the context, and give it with a connection of another publisher."""
        async with Engine(self.membership.access) as engine:
            await put(
                engine,
                {
                    self.keys.member(self.membership.uuid): msgspec.json.encode(
                        MemberTable(publisher=publisher, admitted=0)
                    )
                },
            )
            member = Member(
                self.membership,
                self.journal.directory,
                str(self.state),
                self.store,
                self.certs.parents[1],
                signers=signers,
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

    def approved(self, key: Path, name: str, pem: bytes, number: int) -> dict[bytes, bytes]:
        """Return the key of an approval of a name, or with no ``pem`` of its removal."""
        value = decode(pem)
        approved = Approved(number, value.digest if value else None)
        (signature,) = sign(key, [statement(self.membership.pool, name.encode(), approved)])
        table = ApprovalTable(number, approved.digest, signature)
        return {self.keys.approval(name.encode()): msgspec.json.encode(table)}

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


async def remove(engine: Engine, *keys: bytes) -> None:
    """Remove keys as one."""
    operations = tuple(
        wire.Operation(request_delete_range=wire.Delete(key=key, range_end=b"")) for key in keys
    )
    assert await engine.transact(wire.Transaction(compare=(), success=operations)) is not None


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


async def test_a_swap_that_was_left_over_holds_up_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changes beside a D.bk that nobody ends is published when its time is over (I10, I22)."""
    monkeypatch.setattr("certfs.pool.directory.SWAP_SECONDS", 0.5)
    async with host.running() as (member, engine):
        await until(lambda: member.report.state != "starting")
        host.certs.with_name("certs.bk").mkdir()
        (host.certs / "x.pem").write_bytes(pki.authority("x").pem)
        key = host.keys.name("0" * 16, b"x.pem")
        while await engine.get(key) is None:  # noqa: ASYNC110 - the other side is an engine
            await trio.sleep(0.01)
    assert host.certs.with_name("certs.bk").exists()


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


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the SSH key of a person who approves."""
    path = tmp_path_factory.mktemp("ssh") / "key"
    command = ["ssh-keygen", "-q", "-N", "", "-t", "ed25519", "-f", str(path)]
    subprocess.run(command, check=True, timeout=60)
    return path


@pytest.fixture
def signers(key: Path) -> Signers:
    """List that person."""
    return read_signers(f"admin {key.with_suffix('.pub').read_text()}")


async def test_what_nobody_has_approved_is_not_applied(
    host: Host, key: Path, signers: Signers
) -> None:
    """What a publisher or the engine brings, changes back or takes away counts when it is approved (I22)."""
    one, two = pki.authority("one").pem, pki.authority("two").pem
    file = host.certs / "x.pem"
    async with host.running(signers=signers) as (member, engine):

        async def settled(revision: int) -> None:
            await until(lambda: member.report.applied >= revision)

        def refusal() -> str:
            return member.report.refused.get("certs", {}).get("x.pem", "")

        await settled(await put(engine, host.head() | host.name("x.pem", one)))
        assert (file.exists(), refusal()) == (False, "it is not approved")
        await put(engine, host.approved(key, "x.pem", one, 1))
        await until(file.exists)
        await until(lambda: not refusal())
        await settled(await put(engine, host.name("x.pem", two)))
        assert file.read_bytes() == one
        await put(engine, host.approved(key, "x.pem", two, 2))
        await until(lambda: file.read_bytes() == two)
        older = host.name("x.pem", one) | host.approved(key, "x.pem", one, 1)
        await settled(await put(engine, older))
        assert file.read_bytes() == two
        assert "older" in refusal()
        await remove(engine, *older)
        await until(lambda: refusal() == "its removal is not approved")
        assert file.read_bytes() == two
    async with host.running(signers=signers) as (member, engine):
        await put(engine, older)
        await until(lambda: member.report.applied > 0)
        assert file.read_bytes() == two
        await remove(engine, *host.name("x.pem", one))
        await put(engine, host.approved(key, "x.pem", b"", 3))
        await until(lambda: not file.exists())


async def test_a_list_of_signers_that_changes_takes_nothing_away(
    host: Host, key: Path, signers: Signers
) -> None:
    """Without another approval a host keeps what it had before it asked, and what a former signer approved (I22)."""
    one, two = pki.authority("one").pem, pki.authority("two").pem
    file = host.certs / "x.pem"

    async def told(member: Member, revision: int) -> None:
        await until(lambda: member.report.applied >= revision)

    async with host.running() as (member, engine):
        await told(member, await put(engine, host.head() | host.name("x.pem", one)))
    async with Engine(host.membership.access) as engine:
        await remove(engine, *host.name("x.pem", one))
    async with host.running(signers=signers) as (member, engine):
        await until(lambda: "removal" in member.report.refused.get("certs", {}).get("x.pem", ""))
        assert file.read_bytes() == one
        await put(engine, host.approved(key, "x.pem", b"", 1))
        await until(lambda: not file.exists())
        approved = host.name("x.pem", two) | host.approved(key, "x.pem", two, 2)
        await told(member, await put(engine, approved))
    other = Ed25519PrivateKey.generate().public_key()
    listed = other.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    async with host.running(signers=read_signers(f"admin {listed}")) as (member, engine):
        unlisted = host.name("x.pem", one) | host.approved(key, "x.pem", one, 3)
        await told(member, await put(engine, unlisted))
        assert "list" in member.report.refused["certs"]["x.pem"]
        assert file.read_bytes() == two


async def test_a_sync_restores_what_is_believed_alone(
    host: Host, key: Path, signers: Signers
) -> None:
    """A file that was removed here stays away in a sync while the pool has another one that is not approved (I22)."""
    one, two = pki.authority("one").pem, pki.authority("two").pem
    async with host.running(signers=signers, publisher=False) as (member, engine):
        approved = host.approved(key, "x.pem", one, 1)
        await put(engine, host.head() | host.name("x.pem", one) | approved)
        await until((host.certs / "x.pem").exists)
        await put(engine, host.name("x.pem", two))
        await until(lambda: "x.pem" in member.report.refused.get("certs", {}))
        (host.certs / "x.pem").unlink()
        await until(lambda: member.report.drift.get("certs") == ["x.pem"])
        member.tell(Told(restore=True))
        await until(lambda: not member.is_pending)
        assert not (host.certs / "x.pem").exists()
        await put(engine, host.name("x.pem", one))
        await until(lambda: not member.report.refused)
        member.tell(Told(restore=True))
        await until((host.certs / "x.pem").exists)


@pytest.fixture
def full(host: Host) -> Iterator[Host]:
    """The host, with 256 KiB for its store, which another file fills."""
    mounts.need_root()
    store = host.certs.parents[1]
    os.close(host.store.trees[b""])
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", store], check=True)
    host.certs.mkdir(parents=True)
    host.store = Store({b"": os.open(store, os.O_PATH | os.O_DIRECTORY)})
    with contextlib.suppress(OSError), (store / "full").open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    yield host
    os.close(host.store.trees[b""])
    mounts.force_unmount(
        str(store)
    )  # a thread of the process that was cancelled may still look into it
    host.store = Store({b"": os.open(store, os.O_PATH | os.O_DIRECTORY)})


async def test_a_full_store_keeps_all_of_the_old(full: Host) -> None:
    """Where a swap does not fit into the store the state says so, no name is torn, it comes with room (I10, I22)."""
    pems = {f"{number}.pem": pki.authority(str(number)).pem * 20 for number in range(4)}
    names = [name for n, pem in pems.items() for name in full.name(n, pem).items()]
    async with full.running() as (member, engine):
        await until(lambda: member.report.state == "in sync")
        await put(engine, full.head() | dict(names))
        await until(lambda: member.report.state == "failing")
        assert "space" in member.report.reason
        assert all(path.read_bytes() == pems[path.name] for path in full.certs.glob("*.pem"))
        full.certs.parents[1].joinpath("full").unlink()
        await until(lambda: member.report.state == "in sync")
        assert {path.name: path.read_bytes() for path in full.certs.iterdir()} == pems
        assert not full.certs.with_name("certs.bk").exists()


class Alarm(msgspec.Struct):
    """A request to raise or end an alarm of the engine."""

    action: str
    alarm: str = "NOSPACE"
    memberID: int = 1  # noqa: N815 - etcd's name


async def test_an_engine_without_space_stops_nothing_for_good(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """While the engine has no space it refuses what is published; that comes when there is room (I22)."""
    key = host.keys.name("0" * 16, b"x.pem")
    pem = pki.authority("x").pem
    async with host.running() as (member, engine):
        await until(lambda: member.report.state == "in sync")
        await engine.ask("maintenance/alarm", Alarm("ACTIVATE"), wire.Plain)
        try:
            (host.certs / "x.pem").write_bytes(pem)
            await until(lambda: "database space exceeded" in caplog.text)
            assert await engine.get(key) is None
            assert (host.certs / "x.pem").read_bytes() == pem
        finally:
            await engine.ask("maintenance/alarm", Alarm("DEACTIVATE"), wire.Plain)
        await until(lambda: member._journal.sequence > 1)
        found = await engine.get(key)
        assert found is not None
        assert found.value == pem


def decoded(passed: bytes) -> bytes:
    """Return what passed, and what is in base64 in it, also in what that holds: the gateway and PEM use that."""
    found = last = passed
    while last:
        runs = re.findall(rb"[A-Za-z0-9+/]{4,}", re.sub(rb"\\n|\n", b"", last))
        whole = [run[:-1] if len(run) % 4 == 1 else run for run in runs]
        last = b"\0".join(base64.b64decode(run + b"=" * (-len(run) % 4)) for run in whole)
        found += last
    return found


async def test_a_host_goes_on_to_another_endpoint_when_the_network_falls_silent(
    cluster: etcd.Cluster, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing arrives and nothing ends, a heartbeat finds it, and the next endpoint is followed (I22)."""
    monkeypatch.setattr(engine_module, "HEARTBEAT_SECONDS", 1.0)
    pem = pki.authority("later").pem
    (server,) = cluster.members
    async with relayed(server.address, server.client) as relay:
        through = f"https://127.0.0.1:{relay.port}"
        async with Engine(host.membership.access) as other:
            host.membership = msgspec.structs.replace(
                host.membership, endpoints=(through, *cluster.endpoints)
            )
            async with host.running() as (member, _):
                await until(lambda: member._acknowledged.applied > 0)
                assert member.report.endpoint == through
                relay.lost = True
                began = trio.current_time()
                await put(other, host.head() | host.name("later.pem", pem))
                await until((host.certs / "later.pem").exists)
                assert trio.current_time() - began < 2 + 8, "two seconds, and for a busy machine"
                assert member.report.endpoint == server.endpoint


@pytest.mark.parametrize(
    "status",
    [
        b'{"applied":9,"x":' + b"[" * 100_000,
        b'{"applied":9,"state":"in sync\\n  another  publisher, in sync"}',
        msgspec.json.encode({"applied": 9, "refused": ["x.pem"] * 1000}),
        b'{"applied":9,"state":"%s"}' % (b"x" * 10_000),
        b'{"applied":-1}',
        b'{"applied":"9"}',
        b"\xff",
    ],
    ids=["nested", "two lines", "many names", "long", "negative", "text", "no text"],
)
async def test_what_a_member_says_of_itself_is_judged(host: Host, status: bytes) -> None:
    """A status that no host of certfs writes counts as none: commands end neither by it nor after it (I22)."""
    membership, keys = host.membership, host.keys
    table = msgspec.json.encode(MemberTable(publisher=False, admitted=0))
    async with Engine(membership.access) as engine:
        await put(
            engine,
            {
                keys.member(membership.uuid): table,
                keys.status(membership.uuid): status,
                keys.status("") + b"\xff": status,
            },
        )
    (found,) = (await commands.pool_state(membership)).hosts
    assert (found.applied, found.state, found.refused) == (None, "not connected", ())


async def test_a_directory_that_is_not_understood_is_not_empty(host: Host) -> None:
    """Where the key that says what the pool has is gone or of another release, every file stays as it is (I22)."""
    pem = pki.authority("x").pem
    async with host.running() as (member, engine):
        await put(engine, host.head() | host.name("x.pem", pem))
        await until(lambda: member.report.state == "in sync" and member.report.applied > 0)
        assert (host.certs / "x.pem").read_bytes() == pem
        await put(engine, {host.keys.head: b'{"generation":"0000000000000000","new":1}'})
        await until(lambda: member.report.state == "failing")
        await remove(engine, host.keys.head)
        (host.certs / "y.pem").write_bytes(pki.authority("y").pem)
        await until(lambda: host.keys.head not in member._view._all if member._view else False)
        await until(lambda: "not there any more" in member.report.reason)
        assert (host.certs / "x.pem").read_bytes() == pem
        assert await engine.get(host.keys.name("0" * 16, b"y.pem")) is None
        await put(engine, host.head())
        await until(lambda: member.report.state == "in sync")
        assert (host.certs / "x.pem").read_bytes() == pem


async def test_a_member_that_changes_its_own_entry_without_end_costs_little(
    host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    """However often a member changes what it may, others change no more than a file a second, and go on (I18, I22)."""
    other = uuid.uuid4()
    key = host.keys.host(str(other))
    table = msgspec.json.encode(MemberTable(publisher=False, admitted=0))
    identities = [pki.pool_certificate(other, key=pki.ec_key(1)) for _ in range(2)]
    entries = [
        msgspec.json.encode(make_entry(host.membership.pool, str(other), one.host_pem, b"", b""))
        for one in identities
    ] + [b"{}", b"x" * 100_000]
    pem = pki.authority("meanwhile").pem
    async with host.running() as (member, engine):
        await put(engine, {host.keys.member(str(other)): table, key: entries[0]})
        await until((host.certs.with_name("certs-pool") / f"{other}.pem").exists)
        caplog.clear()
        began = trio.current_time()
        for number in range(24):
            await put(engine, {key: entries[number % 4]})
            if number == 12:
                published = trio.current_time()
                await put(engine, host.head() | host.name("x.pem", pem))
                await until((host.certs / "x.pem").exists)
                assert trio.current_time() - published < 10, "of a busy machine"
        seconds = int(trio.current_time() - began) + 1
        lines = [one for one in caplog.messages if str(other) in one]
        assert len(lines) <= 2 * (seconds + 1), "a file that changes, or two that are refused"
        revision = await put(engine, {key: entries[1]})
        await until(lambda: member.report.applied >= revision)
        assert (host.certs.with_name("certs-pool") / f"{other}.pem").read_bytes() == identities[
            1
        ].pem


@pytest.fixture
def unencrypted() -> Iterator[etcd.Cluster]:
    """Run one etcd whose traffic can be read."""
    with etcd.cluster(plain=True) as made:
        yield made


async def test_no_private_key_is_in_the_traffic(unencrypted: etcd.Cluster, tmp_path: Path) -> None:
    """Of the keys in a source and in a host's own PEM no byte passes to the engine, in whatever encoding (I4, I22)."""
    careless, own_key = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    (engine,) = unencrypted.members
    host = Host(unencrypted, tmp_path)
    own = pki.pool_certificate(uuid.UUID(host.membership.uuid), key=own_key)
    (host.certs.parents[1] / "xensource").mkdir()
    (host.certs.parents[1] / "xensource/xapi-pool-tls.pem").write_bytes(own.host_pem)
    source = pki.authority("careless", key=careless)
    (host.certs / "careless.pem").write_bytes(source.key_pem + source.pem)
    async with relayed(engine.address, engine.client) as relay:
        host.membership = msgspec.structs.replace(
            host.membership, endpoints=(f"http://127.0.0.1:{relay.port}",), ca=""
        )
        async with host.running() as (member, _):
            await until(lambda: member.report.state == "in sync")
            (host.certs / "later.pem").write_bytes(source.pem + source.key_pem)
            await until(lambda: member._acknowledged.applied > 0 and member._journal.sequence > 1)
    host.close()
    passed = decoded(bytes(relay.passed))
    for identity in (own, source):
        assert identity.der in passed, "what is looked for would be found"
        assert unencrypted.data_holds(identity.pem.splitlines()[1])
    for key in (careless, own_key):
        number = key.private_numbers().private_value
        secret = number.to_bytes(32, "big")
        for form in (secret, secret.hex().encode(), str(number).encode()):
            assert form not in passed
            assert not unencrypted.data_holds(form)
    for identity in (own, source):
        for line in identity.key_pem.splitlines()[1:-1]:
            assert line not in passed
            assert not unencrypted.data_holds(line)
