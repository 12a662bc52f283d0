"""The process of a member: what the pool has comes into the directories, what changes there goes to the pool.

Owns the order of steps. One task reconciles; the others only tell it that something has changed. Whatever ends this
process at whatever point, the next one goes on by the journal.
"""

import hashlib
import logging
import os
import random
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec
import trio

from certfs.core.text import counted, printable
from certfs.errors import CertfsError, from_os_error
from certfs.pool import outbound, wire
from certfs.pool.approvals import Approvals
from certfs.pool.directory import Scan, SourceDirectory
from certfs.pool.engine import CompactedError, Engine, EngineRefusedError, EngineUnreachableError
from certfs.pool.hosts import HostEntry, make_entry
from certfs.pool.journal import Intent, Journal, JournalFile, Sending, content, settled
from certfs.pool.keys import (
    MOST_NAME_BYTES,
    MOST_REFUSED,
    MOST_VALUE_BYTES,
    Digest,
    Status,
    Value,
    digest_of,
)
from certfs.pool.local import ASIDE, Told, Watcher, read_pem
from certfs.pool.membership import JoinFile
from certfs.pool.reconcile import Patience, Plan, reconcile, restored
from certfs.pool.ssh_signature import Signers
from certfs.pool.store import Store
from certfs.pool.view import Remote, View, lost_head

LOG: Final = logging.getLogger("certfs.pool")

CERTS: Final = (b"stunnel", b"certs")
CERTS_POOL: Final = (b"stunnel", b"certs-pool")
BUNDLES: Final = {
    "certs": ("stunnel", "xapi-stunnel-ca-bundle.pem"),
    "certs-pool": ("stunnel", "xapi-pool-ca-bundle.pem"),
}
_LEASE_SECONDS: Final = 30
_KEEP_SECONDS: Final = 10.0
_LONGEST_BACKOFF: Final = 60.0
_RETRY_SECONDS: Final = 0.2
_HOSTS_SECONDS: Final = 1.0
"""How often files of ``certs-pool`` change at most: every member may change its own entry as often as it likes."""
_LONGEST_PAUSE: Final = 1.0
_SCAN_SECONDS: Final = 30.0
"""A look at the directories without an event: inotify may have dropped one."""


@dataclass(slots=True)
class Report:
    """How this host is in its pool; for ``certfs pool status``. ``drift`` differs from the pool and stays here.

    ``only_here`` has those names of ``drift`` that the pool has not: why they cannot be in one, empty where they can.
    ``disconnected_since`` is in seconds since the epoch, None while it is connected.
    """

    mountpoint: str = ""
    state: str = "starting"
    reason: str = ""
    disconnected_since: float | None = None
    endpoint: str = ""
    applied: int = 0
    revision: int = 0
    held: dict[str, str] = field(default_factory=dict)
    drift: dict[str, list[str]] = field(default_factory=dict)
    only_here: dict[str, dict[str, str]] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Hosts:
    """What hosts have published of themselves: ``certs-pool``, and by host the keys to believe its next entry by."""

    remote: Remote
    keys: dict[str, tuple[str, ...]]


class Member:
    """This host in its pool: its ``store``, and the directory where that is ``shown``.

    With ``signers`` nothing of ``certs`` is believed that none of them has approved.
    """

    def __init__(  # noqa: PLR0913 - where everything of a host is
        self,
        membership: JoinFile,
        state: int,
        path: str,
        store: Store,
        shown: Path,
        *,
        signers: Signers | None = None,
    ) -> None:
        self._membership = membership
        self._approvals = None if signers is None else Approvals.of(membership.pool, signers)
        self._keys = membership.keys
        self._state = state
        self._journal_file = JournalFile(state, path)
        self._store = store
        self._shown = shown
        self._directories = {
            directory.name: directory
            for directory in (SourceDirectory(store, CERTS), SourceDirectory(store, CERTS_POOL))
        }
        self._journal = Journal()
        self._engine = Engine(membership.access)
        self._view: View | None = None
        self._wake = trio.Event()
        self._least = 0
        """The revision of our last publication: an older view must not be taken for what the pool has."""
        self._told = Told()
        self._gone: set[bytes] = set()
        """Certificates that were removed and that the bundles may still show."""
        self._acknowledged = Status(-1)
        self._lease = 0
        self._own_seen = b""
        self._own_entry: HostEntry | None = None
        """What this host's PEM files, whose digest was ``seen``, make: signed once, not at every change of any key."""
        self._watcher = Watcher(store, self._wake_up)
        self._patience = {name: Patience() for name in self._directories}
        self._hosts: Hosts | None = None
        """What hosts have published of themselves, as it was looked at last."""
        self._hosts_until = 0.0
        """Until when that stays, in seconds of trio's clock."""
        self.report = Report(str(shown))

    async def run(self) -> None:
        """Work until cancelled. CertfsError for what an admin has to mend."""
        self._journal = self._journal_file.read() or Journal()
        with self._watcher:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._stay_connected)
                nursery.start_soon(self._watcher.listen)
                await self._work()

    @property
    def is_pending(self) -> bool:
        """Whether a request of a command has not been carried out yet."""
        return self._told != Told()

    def tell(self, told: Told) -> None:
        """Take a request of a command; the next step carries it out."""
        self._told = self._told.then(told)
        self._wake_up()

    def _wake_up(self) -> None:
        self._wake.set()

    # --- the engine ---------------------------------------------------------

    async def _stay_connected(self) -> None:
        failures = 0
        async with self._engine as engine:
            while True:
                began = trio.current_time()
                try:
                    await self._follow(engine)
                except CompactedError:
                    LOG.info("the engine has compacted what was missed: everything is read again")
                except (EngineUnreachableError, EngineRefusedError) as error:
                    if self.report.state != "disconnected":
                        LOG.warning("disconnected: %s", printable(error.message))
                        self.report.disconnected_since = time.time()
                    self.report.state, self.report.reason = "disconnected", error.message
                self._view = None
                engine.rotate()
                failures = 0 if trio.current_time() - began > _LEASE_SECONDS else failures + 1
                longest = backoff(failures)
                await trio.sleep(random.uniform(longest / 2, longest))  # noqa: S311 - so that hosts do not come at once

    async def _follow(self, engine: Engine) -> None:
        start, end = self._keys.watched
        view = View(self._keys, await engine.snapshot(start, end))
        self._hosts = None  # it may be another cluster's
        self._lease = await engine.lease(_LEASE_SECONDS)
        self._acknowledged = Status(-1)
        self.report.endpoint = engine.endpoint
        async with (
            engine.watch(start, end, view.revision + 1) as changes,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._keep_lease, engine)
            self._view = view
            self._wake.set()
            async for change in changes:
                self._view = view = view.after(change)
                self._wake.set()

    async def _keep_lease(self, engine: Engine) -> None:
        while True:
            await trio.sleep(_KEEP_SECONDS)
            with suppress(EngineUnreachableError, EngineRefusedError):
                if not await engine.keep(self._lease):
                    self._lease = await engine.lease(_LEASE_SECONDS)
                    self._acknowledged = Status(-1)
                    self._wake.set()

    # --- reconciling --------------------------------------------------------

    async def _work(self) -> None:
        again = _SCAN_SECONDS
        while True:
            with trio.move_on_after(again):
                await self._wake.wait()
            self._wake = trio.Event()
            view = self._view
            if view is None:
                again = _SCAN_SECONDS
                continue
            self._watcher.watch()
            began = time.process_time()
            try:
                again = _SCAN_SECONDS if await self._step(view) else _RETRY_SECONDS
            except EngineUnreachableError as error:
                LOG.info("a publication is in doubt: %s", printable(error.message))
                again = _RETRY_SECONDS
            except OSError as error:
                failed = from_os_error("the store", error)
                self._is("failing", failed.message)
                again = 1.0
            except CertfsError as error:
                self._is("failing", error.message)
                again = 1.0
            # A pool, or a directory, that changes without end has half of a processor at most.
            await trio.sleep(min(time.process_time() - began, _LONGEST_PAUSE))

    def _is(self, state: str, reason: str = "") -> None:
        if (state, reason) != (self.report.state, self.report.reason):
            LOG.log(logging.INFO if state == "in sync" else logging.WARNING, "%s %s", state, reason)
        self.report.state, self.report.reason = state, reason
        self.report.disconnected_since = None

    async def _step(self, view: View) -> bool:
        """Bring directories and pool together; False if there is more to do soon."""
        self.report.revision = view.revision
        reason = self._journal.distrust(view.cluster, view.revision)
        if reason:
            self._is("held", reason)
            return True
        own = view.member(self._membership.uuid)
        if own is None:
            self._is("ejected", "this host is no member: its directories stay as they are")
            return True
        if view.revision < self._least:
            return True
        told = self._told
        revision = view.revision
        hosts, calm = self._hosts_of(view)
        remotes = self._remotes(view, hosts.remote)
        for directory in self._interrupted_first():
            may_publish = own.publisher and directory.name == "certs"
            calm &= await self._bring_together(
                view, directory, remotes[directory.name], told, may_publish=may_publish
            )
            if self._journal.intent is not None:  # it is complete before another one begins
                return False
        calm &= await self._publish_own_entry(view)
        if calm and (hosts.keys != self._journal.keys or revision > self._journal.applied):
            self._write(
                msgspec.structs.replace(
                    self._journal, keys=hosts.keys, applied=revision, cluster=view.cluster
                )
            )
        if not calm:
            return False
        if self._told is told:  # what came meanwhile is for the next step
            self._told = Told()
        self.report.applied = self._journal.applied
        if self.report.held:
            self._is("held", "; ".join(self.report.held.values()))
        else:
            self._is("in sync")
        return await self._acknowledge(remotes)

    def _interrupted_first(self) -> list[SourceDirectory]:
        """Return the directories, first the one in which an application was interrupted: there is one intent."""
        intent = self._journal.intent
        return sorted(
            self._directories.values(),
            key=lambda each: intent is not None and each.name != intent.directory,
        )

    def _hosts_of(self, view: View) -> tuple[Hosts, bool]:
        """Return what hosts have published of themselves, and whether that is the latest."""
        latest = Hosts(*view.certs_pool(self._membership.uuid, self._journal.keys))
        now = trio.current_time()
        if self._hosts is not None and latest.remote != self._hosts.remote:
            if now < self._hosts_until:
                return self._hosts, False
            self._hosts_until = now + _HOSTS_SECONDS
        self._hosts = latest
        return latest, True

    def _remotes(self, view: View, pool: Remote) -> dict[str, Remote]:
        """Return what there is to believe in each directory; OSError, CertfsError."""
        if view.head is None and self._journal.base.get("certs"):
            raise lost_head(self._keys)
        certs = view.certs()
        if self._approvals is not None:
            known = self._journal.approved
            base = self._journal.perhaps_agreed("certs")
            certs, approved = self._approvals.judge(certs, view.approvals(), known, base)
            if approved != known:  # remembered before anything is done by it
                self._write(msgspec.structs.replace(self._journal, approved=approved))
        remotes = {"certs": certs, "certs-pool": pool}
        before = self.report.refused
        self.report.refused = {
            name: {_shown(key): why for key, why in remote.refused.items()}
            for name, remote in remotes.items()
            if remote.refused
        }
        for name, refused in self.report.refused.items():
            for each, why in refused.items():
                if before.get(name, {}).get(each) != why:
                    LOG.warning("%s/%s is not believed: %s", name, each, why)
        return remotes

    async def _bring_together(
        self,
        view: View,
        directory: SourceDirectory,
        remote: Remote,
        told: Told,
        *,
        may_publish: bool,
    ) -> bool:
        scan = await self._watcher.scan(directory)
        if scan.swapping and self._journal.intent is None:
            return False
        local = self._without_own(scan.content)
        if local is not None:
            self._journal = settled(self._journal, directory.name, local)
        await self._settle_sending(directory.name)
        if directory.name == "certs" and self._journal.kept_local is None:
            before = {} if local is None else self._foreign(local, remote)
            self._write(msgspec.structs.replace(self._journal, kept_local=before))
        base = self._journal.agreed(directory.name)
        plan = reconcile(
            base,
            local,
            _believed(remote, base),
            may_publish=may_publish,
            kept_local=self._kept_local(told),
            unsettled=scan.unsettled | frozenset(scan.local_only),
            accept_deletions=told.accept_deletions,
            was_held=directory.name in self._journal.held,
        )
        theirs = _believed(remote, base)
        apply = restored(plan, _believed(remote, {})) if told.restore else plan.apply
        self._note(directory.name, plan, scan, theirs)
        changed = {name for name in scan.unsettled if base.get(name) != theirs.get(name)}
        missed = scan.unsettled if plan.publish else changed if apply else frozenset()
        if self._patience[directory.name].waits(missed, scan.unsettled, trio.current_time()):
            return False
        if plan.agreed:
            self._write(
                self._journal.with_names(directory.name, plan.agreed).after(self.report.revision)
            )
        if apply:
            await self._apply(directory, remote, scan, apply, plan, told)
        elif self._journal.intent is not None:
            self._end(directory, self._journal)
        if plan.publish and not told.restore:
            return await self._publish(view, directory.name, scan, plan)
        return not changed

    def _without_own(self, local: dict[bytes, Digest] | None) -> dict[bytes, Digest] | None:
        """Leave out this host's own certificates: its entry in the pool is made of its keys, not of these files."""
        own = self._membership.uuid.encode()
        mine = {own + b".pem", own + b".new.pem"}
        return None if local is None else {k: v for k, v in local.items() if k not in mine}

    @staticmethod
    def _foreign(local: Mapping[bytes, Digest], remote: Remote) -> dict[str, str]:
        return {k.decode("ascii"): v for k, v in local.items() if k not in remote.values}

    def _kept_local(self, told: Told) -> dict[bytes, Digest]:
        kept = content(self._journal.kept_local or {})
        return {k: v for k, v in kept.items() if k.decode("ascii") not in told.publish}

    def _note(self, name: str, plan: Plan, scan: Scan, theirs: Mapping[bytes, Digest]) -> None:
        """Note for the status what differs and stays, and remember what is held."""
        only_here = {**dict.fromkeys(plan.drift - theirs.keys(), ""), **scan.local_only}
        self.report.drift = {
            **self.report.drift,
            name: sorted(_shown(each) for each in plan.drift | only_here.keys()),
        }
        self.report.only_here = {
            **self.report.only_here,
            name: {_shown(each): why for each, why in sorted(only_here.items())},
        }
        self.report.held.pop(name, None)
        if plan.held:
            self.report.held[name] = f"{name}: {plan.held}"
        if bool(plan.held) != (name in self._journal.held):
            held = {*self._journal.held, name} if plan.held else {*self._journal.held} - {name}
            self._write(msgspec.structs.replace(self._journal, held=tuple(sorted(held))))

    async def _apply(  # noqa: PLR0913, PLR0917 - what was found, and what follows
        self,
        directory: SourceDirectory,
        remote: Remote,
        scan: Scan,
        apply: Mapping[bytes, Digest | None],
        plan: Plan,
        told: Told,
    ) -> None:
        """Bring what the pool has into the directory: intent, files, journal, in this order."""
        swap = len(apply) > 1
        before = self._journal.intent
        finish = before is not None and before.swap
        names: dict[str, str | None] = {
            name.decode("ascii"): digest for name, digest in apply.items()
        }
        here = scan.values or {}
        both = _both(here, remote.values, apply) if swap or finish else {}
        self._write(
            msgspec.structs.replace(
                self._journal.after(self.report.revision),
                intent=Intent(
                    directory.name,
                    names,
                    {name.decode("ascii"): value.digest for name, value in both.items()},
                    swap or finish,
                ),
            )
        )
        values = {name: remote.values[name] if digest else None for name, digest in apply.items()}
        aside = plan.aside | (
            plan.drift & apply.keys() & here.keys() if told.restore else frozenset()
        )
        keep = self._aside(directory.name) if aside else -1
        try:
            await trio.to_thread.run_sync(
                lambda: directory.apply(
                    values, both=both, finish_swap=finish, aside=dict.fromkeys(aside, keep)
                )
            )
        finally:
            if keep >= 0:
                os.close(keep)
        for name in apply:
            if name in here:
                self._gone.update(_blocks(here[name].pem))
        after = self._journal.with_names(directory.name, dict(apply))
        if swap or finish:
            self._end(directory, after)
        else:  # written with the revision; until then the intent says the same
            self._journal = msgspec.structs.replace(after, intent=None)
        for name, digest in apply.items():
            LOG.info(
                "%s/%s %s", directory.name, name.decode("ascii"), "applied" if digest else "removed"
            )

    def _end(self, directory: SourceDirectory, journal: Journal) -> None:
        """End a swap that is complete: killed before its D.bk is gone, the next process knows whose that is."""
        self._write(msgspec.structs.replace(journal, intent=Intent(directory.name, {}, swap=True)))
        directory.end_swap()
        self._journal = msgspec.structs.replace(self._journal, intent=None)

    def _aside(self, name: str) -> int:
        path = f"{self._journal_file.path}/{ASIDE}/{name}"
        os.makedirs(path, 0o700, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    async def _publish(self, view: View, name: str, scan: Scan, plan: Plan) -> bool:
        here = scan.values or {}
        changes = {each: here[each] if digest else None for each, digest in plan.publish.items()}
        sequence = self._journal.sequence
        sent: dict[str, str | None] = {
            each.decode("ascii"): digest for each, digest in plan.publish.items()
        }
        self._write(msgspec.structs.replace(self._journal, sending=Sending(sequence, sent)))
        publication = outbound.Publication(
            self._keys, self._membership.uuid, sequence, view, changes
        )
        revision = await outbound.publish(self._engine, publication)
        if revision is None:
            await self._settle_sending(name)
            return False  # another publication came first; the watch brings it
        self._least = revision
        self._committed(name, plan.publish, revision)
        LOG.info("published %s of %s at revision %d", counted(len(changes), "name"), name, revision)
        return True

    async def _settle_sending(self, name: str) -> None:
        """Find out what became of a publication whose outcome is not known."""
        sending = self._journal.sending
        if sending is None or name != "certs":
            return
        found = await outbound.committed(
            self._engine, self._keys, self._membership.uuid, sending.sequence
        )
        if found is None:
            return
        entry, revision = found
        self._committed(
            name,
            {k.encode("ascii"): Digest(v) if v else None for k, v in entry.changes.items()},
            revision,
        )

    def _committed(self, name: str, changes: Mapping[bytes, Digest | None], revision: int) -> None:
        journal = self._journal.with_names(name, dict(changes)).after(revision)
        kept = {
            k: v for k, v in (journal.kept_local or {}).items() if k.encode("ascii") not in changes
        }
        self._write(
            msgspec.structs.replace(
                journal, sequence=journal.sequence + 1, sending=None, kept_local=kept
            )
        )

    def _write(self, journal: Journal) -> None:
        self._journal_file.write(journal)
        self._journal = journal

    # --- this host ----------------------------------------------------------

    async def _publish_own_entry(self, view: View) -> bool:
        """Publish this host's certificates if what the pool has differs."""
        pems = [
            read_pem(self._store, name)
            for name in ("xapi-pool-tls.pem", "xapi-pool-tls.new", "xapi-pool-tls.bak")
        ]
        if not pems[0]:
            return True
        uuid = self._membership.uuid
        seen = hashlib.sha256(b"\0".join(pems)).digest()
        if seen != self._own_seen:
            self._own_seen, self._own_entry = seen, self._made_entry(pems)
        entry = self._own_entry
        if entry is None:
            return True
        there = wire.decoded(view.host_entry(uuid), HostEntry, strict=True)
        if there and (there.certificate, there.next) == (entry.certificate, entry.next):
            return True
        put = wire.Put(key=self._keys.host(uuid), value=msgspec.json.encode(entry))
        await self._engine.transact(
            wire.Transaction(compare=(), success=(wire.Operation(request_put=put),))
        )
        LOG.info("published this host's certificates")
        return True

    def _made_entry(self, pems: list[bytes]) -> HostEntry | None:
        try:
            return make_entry(self._membership.pool, self._membership.uuid, *pems)
        except ValueError as error:
            LOG.warning("xensource/xapi-pool-tls.pem is not published: %s", printable(str(error)))
            return None

    async def _acknowledge(self, remotes: Mapping[str, Remote]) -> bool:
        """Tell the pool up to which revision the bundles show it; False if they do not yet."""
        status = Status(
            self._journal.applied,
            socket.gethostname(),
            self.report.state,
            sum(map(len, self.report.drift.values())),
            tuple(
                name[:MOST_NAME_BYTES]
                for name in sorted(self.report.refused.get("certs", ()))[:MOST_REFUSED]
            ),
        )
        if status == self._acknowledged:
            return True
        shown = True
        if status.applied != self._acknowledged.applied:
            shown = await trio.to_thread.run_sync(
                lambda: self._bundles_show(remotes), abandon_on_cancel=True
            )
        if not shown:
            self.report.state = "not shown yet"
            return False
        self._gone.clear()
        put = wire.Put(
            key=self._keys.status(self._membership.uuid),
            value=msgspec.json.encode(status),
            lease=self._lease,
        )
        try:
            await self._engine.transact(
                wire.Transaction(compare=(), success=(wire.Operation(request_put=put),))
            )
        except EngineRefusedError:  # the lease has expired: it is renewed
            self._lease = await self._engine.lease(_LEASE_SECONDS)
            return False
        self._acknowledged = status
        return True

    def _bundles_show(self, remotes: Mapping[str, Remote]) -> bool:
        for name, remote in remotes.items():
            base = self._journal.agreed(name)
            wanted = {
                block
                for each, value in remote.values.items()
                if base.get(each) == value.digest
                for block in _blocks(value.pem)
            }
            here = self._directories[name].scan().values or {}
            local = {block for value in here.values() for block in _blocks(value.pem)}
            wanted &= local
            try:
                bundle = self._shown.joinpath(*BUNDLES[name]).read_bytes()
            except FileNotFoundError:
                bundle = b""
            except OSError:
                return False
            found = set(_blocks(bundle))
            if not wanted <= found or (self._gone - local) & found:
                return False
        return True


def backoff(failures: int) -> float:
    """Return how many seconds at most to wait after so many failures to reach the engine, one after the other."""
    return min(_LONGEST_BACKOFF, 0.1 * 2.0 ** min(failures, 16))


def _shown(name: bytes) -> str:
    return printable(name.decode(errors="replace"))


def _believed(remote: Remote, base: Mapping[bytes, Digest]) -> dict[bytes, Digest]:
    """Return the digests of what the pool has; what is refused counts as it was agreed last."""
    digests = {name: value.digest for name, value in remote.values.items()}
    return digests | {name: base[name] for name in remote.refused if name in base}


def _both(
    here: Mapping[bytes, Value], there: Mapping[bytes, Value], apply: Mapping[bytes, Digest | None]
) -> dict[bytes, Value]:
    """Return the old and the new certificates of each name that is to hold others; not of what would be too large."""
    found = {}
    for name, digest in apply.items():
        if digest is not None and name in here:
            pem = here[name].pem + there[name].pem
            if len(pem) <= MOST_VALUE_BYTES:
                found[name] = Value(pem, digest_of(pem))
    return found


def _blocks(pem: bytes) -> list[bytes]:
    """Return the blocks of canonical PEM."""
    end = b"-----END CERTIFICATE-----\n"
    return [block + end for block in pem.split(end)[:-1]]
