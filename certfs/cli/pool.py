"""``certfs pool``: hosts that share their certificates through etcd.

Owns the options and what is said; the work is done in ``certfs.pool``.
"""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import click
import msgspec
import trio

from certfs.cli import json_forms
from certfs.cli.answers import Seconds, json_option, say
from certfs.client import instances
from certfs.config import DEFAULT_FILE, PoolTable, load_config
from certfs.core.certificate import parse_source
from certfs.core.details import describe
from certfs.core.text import counted, printable
from certfs.errors import AlreadyRunningError, ConfigError, from_os_error
from certfs.identity.xapi import SOCKET as XAPI_SOCKET
from certfs.linux.waiting import waiting

try:
    from certfs.pool import commands, membership
    from certfs.pool.approvals import statement
    from certfs.pool.engine import Access, pinned
    from certfs.pool.keys import Keys, PoolError
    from certfs.pool.local import Answer, ControlSocket, Request, Told, set_aside
    from certfs.pool.membership import StateDirectory
    from certfs.pool.process import Member, Report
    from certfs.pool.ssh_signature import Signers, read_signers, sign
    from certfs.pool.store import Store
except ModuleNotFoundError as missing:
    if missing.name != "httpx":
        raise
    raise ConfigError(
        "certfs pool needs httpx, which is not installed", advice="pip install 'certfs[pool]'"
    ) from None
from certfs.moment import written
from certfs.pool import STATE, STATE_VARIABLE, state_directory
from certfs.safe_open import open_trusted
from certfs.store.source_reader import ignore_lease_breaks

_ROOT: Final = "root"
_MOST_SIGNERS_BYTES: Final = 1 << 20
_LOG_FORMAT: Final = "%(levelname)s %(message)s"

state_option = click.option(
    "--state",
    metavar="DIR",
    default=STATE,
    show_default=True,
    envvar=STATE_VARIABLE,
    callback=lambda _context, _option, value: StateDirectory(os.path.abspath(value)),
    help="Where this host keeps its membership and its journal.",
)


def _engine_options(function: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.option(
            "--root-password",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            required=True,
            help="A file with the password of the engine's user root.",
        ),
        click.option(
            "--ca",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            metavar="FILE",
            help="The CA that signed the engine's certificates (PEM); needed for https.",
        ),
        click.option(
            "--endpoint",
            "endpoints",
            multiple=True,
            required=True,
            metavar="URL",
            help="A member of the engine, such as https://10.0.0.1:2379; give all of them.",
        ),
    ):
        function = option(function)
    return function


@click.group(epilog="\b\nExample:\n  certfs pool status")
def pool() -> None:
    """Share certificates among the hosts of a pool, through etcd.

    For hosts without XAPI: what is copied into stunnel/certs on one host is trusted on all.
    """


@pool.command(
    "init",
    epilog="\b\nExample:\n  certfs pool init prod --endpoint https://10.0.0.1:2379 --ca etcd-ca.pem"
    " --root-password root.txt",
)
@click.argument("name")
@_engine_options
def init(*, name: str, endpoints: tuple[str, ...], ca: Path | None, root_password: Path) -> None:
    """Make the pool NAME in an engine, and turn the engine's authentication on if it is off."""
    access = _root_access(endpoints, ca, root_password)
    trio.run(membership.init_pool, access, Keys(name))
    say(
        f"made the pool {name}; to admit a host: certfs pool admit {name} UUID --endpoint URL --root-password FILE"
    )


@pool.command(
    "admit",
    epilog="\b\nExample:\n  certfs pool admit prod 960abfff-6017-4d97-bd56-0a8f1a43e51a --publisher"
    " --endpoint https://10.0.0.1:2379 --ca etcd-ca.pem --root-password root.txt > host1.join",
)
@click.argument("name")
@click.argument("uuid")
@click.option("--publisher", is_flag=True, help="It may publish certificates for all hosts.")
@_engine_options
def admit(  # noqa: PLR0913 - one for each option
    *,
    name: str,
    uuid: str,
    publisher: bool,
    endpoints: tuple[str, ...],
    ca: Path | None,
    root_password: Path,
) -> None:
    """Admit the host UUID to the pool NAME, and print its join file, which holds a password.

    A host that is a member already gets a new password, and the rights that are given now.
    """
    access = _root_access(endpoints, ca, root_password)

    async def admitted() -> membership.JoinFile:
        return await membership.admit(access, Keys(name), uuid, publisher=publisher)

    click.echo(msgspec.json.format(msgspec.json.encode(trio.run(admitted))).decode())


@pool.command(
    "eject",
    epilog="\b\nExample:\n  certfs pool eject prod 960abfff-6017-4d97-bd56-0a8f1a43e51a"
    " --endpoint https://10.0.0.1:2379 --ca etcd-ca.pem --root-password root.txt",
)
@click.argument("name")
@click.argument("uuid")
@_engine_options
def eject(
    *, name: str, uuid: str, endpoints: tuple[str, ...], ca: Path | None, root_password: Path
) -> None:
    """Take the host UUID out of the pool NAME: its rights end, and no other host trusts its certificate any more."""
    access = _root_access(endpoints, ca, root_password)
    was_member = trio.run(membership.eject, access, Keys(name), uuid)
    say(f"{uuid} is no member any more" if was_member else f"{uuid} was no member")


@pool.command("join", epilog="\b\nExample:\n  certfs pool join host1.join")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@state_option
def join(*, file: str, state: StateDirectory) -> None:
    """Make this host a member by the FILE that certfs pool admit printed, or anew; its process must not run.

    The pool's certificates come; this host's own stay here until certfs pool publish.
    """
    try:
        found = membership.read_join_file(os.fsencode(file), file)
    except OSError as error:
        raise from_os_error(file, error) from None
    _need_stopped(state)
    state.write(found)
    state.forget_journal()
    say(f"this host is a member of {found.pool}; start certfs pool run (certfs-pool.service)")


@pool.command("leave", epilog="\b\nExample:\n  certfs pool leave")
@state_option
def leave(*, state: StateDirectory) -> None:
    """Forget the pool on this host, whose process must not run.

    Its certificates stay, and the pool keeps this host's until it is ejected.
    """
    found = state.read()
    _need_stopped(state)
    state.forget()
    say(
        f"this host has left; to be forgotten: certfs pool eject {found.pool} {found.uuid} "
        "--endpoint URL --root-password FILE"
    )


def _need_stopped(state: StateDirectory) -> None:
    trio.run(ControlSocket(state.path).need_silence)


@pool.command(
    "publish",
    epilog="\b\nExamples:\n  certfs pool publish company-root.pem\n"
    "  certfs pool publish --accept-deletions",
)
@click.argument("names", nargs=-1)
@click.option("--accept-deletions", is_flag=True, help="Publish also that most names are gone.")
@click.option("--timeout", type=Seconds(min=0), default=30, show_default=True)
@state_option
def publish(
    *, names: tuple[str, ...], accept_deletions: bool, timeout: float, state: StateDirectory
) -> None:
    """Publish NAMES of stunnel/certs that were here before this host joined.

    What changes after a host has joined is published by itself, where the host is a publisher.
    """
    if not names and not accept_deletions:
        raise click.UsageError("name files, or --accept-deletions")

    async def told() -> None:
        here = await commands.local((await commands.ask(state)).report["mountpoint"])
        missing = [name for name in names if os.fsencode(name) not in here]
        if missing:
            raise PoolError(
                f"no certificates in stunnel/certs: {', '.join(missing)}",
                advice="certfs pool status names what differs from the pool",
            )
        wish = Told(publish=names, accept_deletions=accept_deletions)
        report = await commands.carry_out(state, wish, timeout)
        left = [name for name in names if name in report.drift.get("certs", ())]
        if left:
            raise PoolError(
                f"not published: {', '.join(left)}",
                advice="is this host a publisher? certfs pool status",
            )

    trio.run(told)
    say("published")


@pool.command(
    "approve",
    epilog="\b\nExamples:\n  certfs pool approve company-root.pem --key ~/.ssh/id_ed25519\n"
    "  certfs pool approve --all --key ~/.ssh/id_ed25519.pub    signed by the ssh-agent",
)
@click.argument("names", nargs=-1)
@click.option(
    "--all", "every", is_flag=True, help="Every file that has changed since its approval."
)
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    required=True,
    help="The SSH key to sign with; of a public one the ssh-agent has the private part.",
)
@state_option
def approve(*, names: tuple[str, ...], every: bool, key: Path, state: StateDirectory) -> None:
    """Approve NAMES of stunnel/certs, or that they are removed, for hosts that ask for signatures.

    What is approved is what this host has, if the pool has the same; this host must be a publisher. Signing is done by
    ssh-keygen, which asks for a passphrase where the key has one. See pool.require_signature in docs/config.md.
    """
    if bool(names) == every:
        raise click.UsageError("name files, or --all")
    found = state.read()
    wanted = trio.run(commands.to_approve, state, found, names)
    for each in wanted:
        content = parse_source(each.value.pem).certificates if each.value else ()
        say(f"{each.name}: {'' if content else 'removed'}".rstrip())
        for certificate in content:
            subject = describe(certificate).subject or "(no subject)"
            say(f"  {subject}  SHA-256 {certificate.fingerprint.hex()}")
    texts = [statement(found.pool, each.name.encode("ascii"), each.approval) for each in wanted]
    signatures = sign(key, texts)
    trio.run(commands.approve, found, tuple(zip(wanted, signatures, strict=True)))
    say(f"approved {counted(len(wanted), 'file')}")


@pool.command("status", epilog="\b\nExample:\n  certfs pool status --json")
@state_option
@json_option
def status(*, state: StateDirectory, as_json: bool) -> None:
    """Show how this host is in its pool, and which members are behind.

    Without the engine it shows this host, and ends with exit code 51.
    """
    found = state.read()
    # What a process of an older release does not say has its default.
    report = asdict(msgspec.convert(trio.run(commands.ask, state).report, Report))
    since = report["disconnected_since"]
    aside = set_aside(state.path)
    if not as_json:
        when = f" since {written(since)}:" if since else ""
        here = f"{report['state']}{when} {report['reason']}".rstrip()
        say(f"pool {found.pool}, host {found.uuid}: {here}")
        for name, drift in report["drift"].items():
            for each in drift:
                say(f"  {name}/{each}: {_difference(report['only_here'].get(name, {}).get(each))}")
        for name, refused in report["refused"].items():
            for each, why in refused.items():
                say(f"  {name}/{each}: not believed: {why}")
        for path in aside:
            say(f"  {printable(path)}: set aside, since the pool has overruled it")
    whole = trio.run(commands.pool_state, found)
    if as_json:
        said = {"pool": found.pool, "uuid": found.uuid, **report, **asdict(whole)}
        said["set_aside"] = [printable(path) for path in aside]
        said["disconnected_since"] = written(since) if since else None
        json_forms.answer(msgspec.convert(said, json_forms.PoolStatus))
        return
    for host in whole.hosts:
        role = "publisher" if host.publisher else "member"
        behind = f", behind: {host.applied} of {whole.changed}" if host.behind else ""
        refuses = f", does not believe {', '.join(host.refused)}" if host.refused else ""
        say(f"  {host.uuid}  {role}, {host.state}{behind}{refuses}")


def _difference(only_here: str | None) -> str:
    """Say how a name differs, by why it cannot be in a pool where that has it not, and None where that has it."""
    if only_here is None:
        return "differs from the pool, and stays here"
    return f"only on this host: {only_here}" if only_here else "only on this host"


@pool.command(
    "audit",
    epilog="\b\nExamples:\n  certfs pool audit\n  certfs pool audit company-root.pem --json",
)
@click.argument("names", nargs=-1)
@state_option
@json_option
def audit(*, names: tuple[str, ...], state: StateDirectory, as_json: bool) -> None:
    """Show which host has changed what in the pool's stunnel/certs, of NAMES only if they are given.

    The engine keeps the last 1,000 publications of each host. Times are by the clock of that host; the log of its mount
    says which user it was.
    """
    found = state.read()
    entries = [
        json_forms.PoolAuditEntry(
            at=written(each.at), uuid=each.uuid, revision=each.revision, changes=changes
        )
        for each in trio.run(commands.audit_trail, found)
        if (changes := {k: v for k, v in each.changes.items() if not names or k in names})
    ]
    if as_json:
        json_forms.answer(json_forms.PoolAudit(pool=found.pool, entries=tuple(entries)))
        return
    for entry in entries:
        for name, digest in entry.changes.items():
            what = f"sha256:{digest}" if digest else "removed"
            say(f"{entry.at}  {entry.uuid}  {entry.revision}  {name}  {what}")


@pool.command("sync", epilog="\b\nExample:\n  certfs pool sync --timeout 60")
@click.option("--timeout", type=Seconds(min=0), default=30, show_default=True)
@state_option
@json_option
def sync(*, timeout: float, state: StateDirectory, as_json: bool) -> None:
    """Make this host's directories what the pool has, and wait until every live member has acknowledged it.

    What was removed here and not published comes back; a file that differs is put aside. What only this host has stays.
    """
    synchronise(timeout, as_json=as_json, state=state)


def synchronise(timeout: float, *, as_json: bool, state: StateDirectory | None = None) -> None:
    """Do as ``certfs pool sync``, also for the platform's command of that kind."""
    state = state or StateDirectory(state_directory())
    found = state.read()

    async def synchronised() -> commands.PoolState:
        await commands.carry_out(state, Told(restore=True), timeout)
        return await commands.wait_for_all(found, timeout)

    whole = trio.run(synchronised)
    if as_json:
        said = {"pool": found.pool, "uuid": found.uuid, **asdict(whole)}
        json_forms.answer(msgspec.convert(said, json_forms.PoolSynchronised))
    else:
        _tell_reached(whole, err=False)


def waiter(seconds: float) -> Callable[[Path], None]:
    """Return what waits until every live member has what happened to a file of ``stunnel/certs``.

    PoolError where there is no pool, or nothing would be published.
    """
    state = StateDirectory(state_directory())
    found = state.read()
    with waiting():
        trio.run(commands.check_publishing, state, found)

    def wait(path: Path) -> None:
        with waiting():
            whole = trio.run(commands.published_everywhere, state, found, path, seconds)
        _tell_reached(whole, err=True)

    return wait


def _tell_reached(whole: commands.PoolState, *, err: bool) -> None:
    away = [host.uuid for host in whole.hosts if host.applied is None]
    reached = len(whole.hosts) - len(away)
    say(f"revision {whole.changed} is in the bundles of {counted(reached, 'host')}", err=err)
    for each in away:
        say(f"not connected: {each}", err=True)
    for host in whole.hosts:
        if host.refused:
            say(f"{host.uuid} does not believe {', '.join(host.refused)}", err=True)


@pool.command(
    "run",
    epilog="\b\nExamples:\n"
    "  certfs pool run                                     the host's own directories\n"
    "  certfs pool run --store /srv/certificates /srv/tls",
)
@click.option(
    "--store",
    metavar="DIR",
    help="The store of a standalone mount. Default: what is beneath the mount now.",
)
@click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help=f"Configuration (TOML). Default for the host's own directories: {DEFAULT_FILE}, if there.",
)
@click.argument("mountpoint", required=False)
@state_option
def run(
    *, store: str | None, mountpoint: str | None, config_file: str | None, state: StateDirectory
) -> None:
    """Keep a store and its pool together, in the foreground.

    MOUNTPOINT is where the store is presented; without it the host's own /etc/xensource and /etc/stunnel are meant.
    It refuses to run where XAPI is, which distributes certificates itself.
    """
    if os.path.exists(XAPI_SOCKET):
        raise AlreadyRunningError(
            f"{XAPI_SOCKET}: XAPI distributes this host's certificates",
            advice="use certfs pool-certificate-sync",
        )
    found = state.read()
    signers = _signers(config_file, host=mountpoint is None)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format=_LOG_FORMAT)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    ignore_lease_breaks()
    directory = state.open()
    member = Member(
        found,
        directory,
        state.path,
        _store(store, mountpoint),
        Path(os.path.realpath(mountpoint or "/etc")),
        signers=signers,
    )
    trio.run(_serve, member, state.path)


def _signers(config_file: str | None, *, host: bool) -> Signers | None:
    """Return who may approve, None where no approval is asked for; ConfigError."""
    if config_file is None and host and os.path.lexists(DEFAULT_FILE):
        config_file = DEFAULT_FILE
    table = load_config(config_file, host=host).pool if config_file else PoolTable()
    if not table.require_signature:
        return None
    try:
        with open(open_trusted(table.signers, os.O_RDONLY | os.O_NONBLOCK), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in {0, os.geteuid()} or status.st_mode & 0o022:
                raise ConfigError(
                    f"{table.signers}: another user can write to it, and so decide who approves",
                    advice=f"chown root: {table.signers}; chmod 644 {table.signers}",
                )
            return read_signers(file.read(_MOST_SIGNERS_BYTES).decode())
    except OSError as error:
        raise from_os_error(table.signers, error) from None
    except ValueError as error:
        raise ConfigError(
            f"{table.signers}: {error}", advice="see ALLOWED SIGNERS in ssh-keygen(1)"
        ) from None


def _store(store: str | None, mountpoint: str | None) -> Store:
    """Return the store: by its path, or as the supervisor of the mount has it."""
    if store is None:
        return Store(instances.store_of(instances.find(mountpoint)))
    if mountpoint is None:
        raise click.UsageError("--store DIR and MOUNTPOINT go together")
    try:
        return Store({b"": open_trusted(store, os.O_PATH | os.O_DIRECTORY)})
    except OSError as error:
        raise from_os_error(store, error) from None


async def _serve(member: Member, path: str) -> None:
    async def answer(request: Request) -> Answer:
        if request.told is not None:
            member.tell(request.told)
        return commands.answer_of(member)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ControlSocket(path).serve, answer)
            nursery.start_soon(member.run)
    except BaseExceptionGroup as group:
        raise _first(group) from None


def _first(error: BaseException) -> BaseException:
    """Return what went wrong first of what several tasks ended with."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _root_access(endpoints: tuple[str, ...], ca: Path | None, root_password: Path) -> Access:
    password = _text(root_password).strip()
    if not password:
        raise click.UsageError(f"--root-password {root_password}: the file is empty")
    authority = _text(ca) if ca else ""
    if ca:
        try:
            pinned(authority)
        except ValueError as error:
            raise click.UsageError(f"--ca {ca}: {error}") from None
    for endpoint in endpoints:
        if not endpoint.startswith(("https://", "http://127.0.0.1:")):
            raise click.UsageError(f"{endpoint}: use https://, or http:// on 127.0.0.1")
    if not ca and any(endpoint.startswith("https") for endpoint in endpoints):
        raise click.UsageError("--ca: https needs the CA that signed the engine's certificates")
    return Access(tuple(one.rstrip("/") for one in endpoints), authority, _ROOT, password)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise from_os_error(str(file), error) from None
    except UnicodeDecodeError:
        raise click.UsageError(f"{file}: is no text in UTF-8") from None
