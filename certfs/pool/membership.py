"""Who is in the pool: making one, admitting hosts, and what a host keeps of its membership.

Owns the engine's users and roles, the join file, and the state directory of a host. An engine lets a member write its
own ``hosts/`` entry and its status, a publisher ``dirs/`` and its audit entries as well.
"""

import os
import secrets
import stat
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec
import trio

from certfs.errors import StoreError, from_os_error
from certfs.pool import wire
from certfs.pool.approvals import Approved
from certfs.pool.engine import (
    Access,
    Engine,
    EngineRefusedError,
    EngineUnreachableError,
    pinned,
    reached,
)
from certfs.pool.journal import FILE as JOURNAL
from certfs.pool.journal import JournalFile
from certfs.pool.keys import FORMAT, Keys, MemberTable, PoolError, PoolTable, is_uuid, range_end
from certfs.safe_open import closing, open_trusted
from certfs.store.atomic import write_atomic

FILE: Final = b"membership.json"
_MOST_BYTES: Final = 1 << 20
_NO_AUTH: Final = "authentication is not enabled"
_CHANGE_SECONDS: Final = 15.0
"""Longer than the engine takes to say that it was too busy (7 s)."""
_PATIENCE_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 1.0


class JoinFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an admin carries to a host, and what the host keeps: where the engine is, its CA, and who the host is."""

    pool: str
    uuid: str
    endpoints: tuple[str, ...]
    ca: str
    user: str
    password: str

    @property
    def access(self) -> Access:
        """How this host reaches the engine."""
        return Access(self.endpoints, self.ca, self.user, self.password)

    @property
    def keys(self) -> Keys:
        """The keys of its pool."""
        return Keys(self.pool)


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """Where a host keeps its membership, the journal, and the files that were set aside."""

    path: str

    def open(self, *, create: bool = False) -> int:
        """Return a descriptor; PoolError where this host is in no pool, PrivilegeError where others could write it."""
        try:
            if create:
                os.makedirs(self.path, 0o700, exist_ok=True)
            descriptor = open_trusted(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            raise self._no_member() from None
        except OSError as error:
            raise from_os_error(self.path, error) from None
        status = os.fstat(descriptor)
        if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            os.close(descriptor)
            raise StoreError(
                f"{self.path} is not a directory that only you can write to",
                advice="chown and chmod 700 it, or name another with --state",
            )
        return descriptor

    def read(self) -> JoinFile:
        """Return the membership; PoolError where there is none."""
        directory = self.open()
        try:
            return read_join_file(FILE, f"{self.path}/{FILE.decode()}", at=directory)
        except FileNotFoundError:
            raise self._no_member() from None
        finally:
            os.close(directory)

    def approved(self) -> dict[str, Approved]:
        """Return the approvals that this host has seen."""
        with closing(self.open()) as directory:
            journal = JournalFile(directory, self.path).read()
        return journal.approved if journal else {}

    def write(self, membership: JoinFile) -> None:
        """Keep a membership."""
        directory = self.open(create=True)
        try:
            write_atomic(
                directory, FILE, msgspec.json.format(msgspec.json.encode(membership)), mode=0o600
            )
        except OSError as error:
            raise from_os_error(f"{self.path}/{FILE.decode()}", error) from None
        finally:
            os.close(directory)

    def forget(self) -> None:
        """Remove the membership and the journal; what was set aside stays."""
        self._remove(FILE, JOURNAL)

    def forget_journal(self) -> None:
        """Let the next process begin anew: the pool's certificates come, what is only here stays here."""
        self._remove(JOURNAL)

    def _remove(self, *names: bytes) -> None:
        with closing(self.open()) as directory:
            for name in names:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)

    def _no_member(self) -> PoolError:
        return PoolError(
            f"this host is in no pool ({self.path})",
            advice="certfs pool join FILE makes it a member",
        )


def read_join_file(name: bytes, shown: str, *, at: int | None = None) -> JoinFile:
    """Return a join file; FileNotFoundError, PoolError for what is none."""
    descriptor = open_trusted(name, os.O_RDONLY | os.O_NONBLOCK, at=at)
    with open(descriptor, "rb") as file:
        raw = file.read(_MOST_BYTES)
    try:
        found = msgspec.json.decode(raw, type=JoinFile)
    except (msgspec.DecodeError, ValueError) as error:
        raise PoolError(
            f"{shown} is no join file: {error}", advice="certfs pool admit prints one"
        ) from None
    Keys(found.pool)
    if found.ca:
        try:
            pinned(found.ca)
        except ValueError as error:
            raise PoolError(
                f"{shown} is no join file: its CA: {error}", advice="certfs pool admit prints one"
            ) from None
    if not is_uuid(found.uuid) or not found.endpoints:
        raise PoolError(f"{shown} is no join file", advice="certfs pool admit prints one")
    return found


async def init_pool(access: Access, keys: Keys) -> None:
    """Turn on the engine's authentication if it is off, with ``access`` as its root, and make the pool."""
    try:
        async with reached(access) as engine:
            await engine.get(keys.format_key)
    except EngineRefusedError as error:
        if _NO_AUTH not in error.message:
            raise
        await _enable(access)
    async with reached(access) as engine:
        table = wire.Put(key=keys.format_key, value=msgspec.json.encode(PoolTable(FORMAT)))
        made = await engine.transact(
            wire.Transaction(
                compare=(wire.Compare(key=keys.format_key, target="CREATE", create_revision=0),),
                success=(wire.Operation(request_put=table),),
            )
        )
        if made is None:
            raise PoolError(
                f"there is a pool {keys.pool} already",
                advice=f"to admit a host to it: certfs pool admit {keys.pool} UUID "
                "--endpoint URL --root-password FILE",
            )


async def _enable(access: Access) -> None:
    open_to_all = Access(access.endpoints, access.ca, "", "")
    async with reached(open_to_all) as engine:
        await _unless_there(
            engine, "auth/user/add", wire.UserAdd(name=access.user, password=access.password)
        )
        await _unless_there(engine, "auth/role/add", wire.RoleName(name="root"))
        await _change(engine, "auth/user/grant", wire.UserRole(user=access.user, role="root"))
        await _change(engine, "auth/enable", wire.Nothing())


async def _patiently(engine: Engine, work: Callable[[], Awaitable[None]]) -> None:
    """Do what may be done twice, again from its beginning while a busy engine leaves it unknown what has happened."""
    deadline = trio.current_time() + _PATIENCE_SECONDS
    while True:
        try:
            return await work()
        except EngineUnreachableError:
            if trio.current_time() > deadline:
                raise
        await trio.sleep(_PAUSE_SECONDS)
        await engine.find()


async def _change(engine: Engine, method: str, request: msgspec.Struct) -> None:
    """Change users or roles, which every member of the engine does one after the other."""
    await engine.ask(method, request, wire.Plain, _CHANGE_SECONDS)


async def _unless_there(engine: Engine, method: str, request: msgspec.Struct) -> None:
    try:
        await _change(engine, method, request)
    except EngineRefusedError as error:
        if "already exists" not in error.message:
            raise


async def admit(access: Access, keys: Keys, uuid: str, *, publisher: bool) -> JoinFile:
    """Make a host a member, with a new password; return what it needs to join. Also changes a membership."""
    if not is_uuid(uuid):
        raise PoolError(
            f"{uuid!r} is no UUID in lower case",
            advice="it is the name of the host's file in stunnel/certs-pool",
        )
    name = keys.user(uuid)
    password = secrets.token_urlsafe(32)
    async with reached(access) as engine:
        if await engine.get(keys.format_key) is None:
            raise PoolError(
                f"there is no pool {keys.pool}",
                advice=f"to make it: certfs pool init {keys.pool} --endpoint URL --root-password FILE",
            )

        async def admitted() -> None:
            await _remove_user(engine, name)
            await _unless_there(engine, "auth/role/add", wire.RoleName(name=name))
            for permission in _permissions(keys, uuid, publisher=publisher):
                await _change(engine, "auth/role/grant", wire.RoleGrant(name=name, perm=permission))
            await _unless_there(engine, "auth/user/add", wire.UserAdd(name=name, password=password))
            await _change(engine, "auth/user/grant", wire.UserRole(user=name, role=name))
            table = msgspec.json.encode(MemberTable(publisher, time.time()))
            put = wire.Operation(request_put=wire.Put(key=keys.member(uuid), value=table))
            await engine.transact(wire.Transaction(compare=(), success=(put,)))

        await _patiently(engine, admitted)
    return JoinFile(keys.pool, uuid, access.endpoints, access.ca, name, password)


async def eject(access: Access, keys: Keys, uuid: str) -> bool:
    """Take a host's rights, its membership and its certificates away; tell whether it was a member."""
    if not is_uuid(uuid):
        raise PoolError(
            f"{uuid!r} is no UUID in lower case", advice="certfs pool status lists the members"
        )
    async with reached(access) as engine:
        member = await engine.get(keys.member(uuid))
        removals = tuple(
            wire.Operation(request_delete_range=wire.Delete(key=key))
            for key in (keys.member(uuid), keys.host(uuid), keys.status(uuid))
        )

        async def ejected() -> None:
            await _remove_user(engine, keys.user(uuid))
            await engine.transact(wire.Transaction(compare=(), success=removals))

        await _patiently(engine, ejected)
    return member is not None


def _permissions(keys: Keys, uuid: str, *, publisher: bool) -> list[wire.Permission]:
    found = [
        wire.Permission(permType="READ", key=keys.prefix, range_end=range_end(keys.prefix)),
        wire.Permission(permType="READWRITE", key=keys.host(uuid)),
        wire.Permission(permType="READWRITE", key=keys.status(uuid)),
    ]
    if publisher:
        found += [
            wire.Permission(permType="READWRITE", key=key, range_end=range_end(key))
            for key in (keys.directories, keys.audit(uuid))
        ]
    return found


async def _remove_user(engine: Engine, name: str) -> None:
    for method, request in (
        ("auth/user/delete", wire.UserName(name=name)),
        ("auth/role/delete", wire.RoleOf(role=name)),
    ):
        try:
            await _change(engine, method, request)
        except EngineRefusedError as error:
            if "not found" not in error.message:
                raise
