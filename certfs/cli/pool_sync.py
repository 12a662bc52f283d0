"""``certfs pool-certificate-sync``: the platform's sync, with what it would lose looked for first.

Owns the options and what is said; the work is done in ``certfs.identity.certificate_sync``.
"""

import sys
from importlib import import_module
from pathlib import Path

import click
import msgspec

from certfs.cli.answers import Seconds, json_option, say, store_option, warn
from certfs.cli.json_forms import Objection as ObjectionForm
from certfs.cli.json_forms import Pool as PoolForm
from certfs.cli.json_forms import Synchronised, answer
from certfs.core.text import counted
from certfs.identity import certificate_sync
from certfs.identity.certificate_sync import SyncRefusedError
from certfs.identity.listing import installed, need_host_uuid
from certfs.identity.paths import HostPaths
from certfs.identity.xapi import SOCKET, Session
from certfs.pool import state_directory


@click.command(
    "pool-certificate-sync",
    epilog="\b\nExamples:\n  certfs pool-certificate-sync --dry-run\n  certfs pool-certificate-sync",
)
@click.option("--force", is_flag=True, help="Synchronise although something speaks against it.")
@click.option("--dry-run", is_flag=True, help="Check, say what would be done, and change nothing.")
@click.option(
    "--timeout",
    type=Seconds(min=1),
    default=600,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait; the sync goes on in XAPI.",
)
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    default=SOCKET,
    show_default=True,
    help="Where XAPI listens.",
)
@store_option
@json_option
def pool_certificate_sync(  # noqa: PLR0913 - one argument for each option
    *, force: bool, dry_run: bool, timeout: float, socket: Path, paths: HostPaths, as_json: bool
) -> None:
    """Have XAPI give every host of the pool the coordinator's certificates, after a look at what that would lose.

    It is refused while a host is offline, while a host is renewing its certificate, and while the
    coordinator lacks the certificate of a host: hosts that lack one another's certificates do not
    reach one another. What can only be seen on the coordinator is checked there.

    Where XAPI is not, and this host is in a pool of certfs, it is certfs pool sync.
    """
    state = Path(state_directory())
    if not socket.exists() and state.joinpath("membership.json").exists():
        if force or dry_run:
            raise click.UsageError("without XAPI there is no --force and no --dry-run")
        # Only now: it needs httpx, which not every host has.
        import_module("certfs.cli.pool").synchronise(timeout, as_json=as_json)
        return
    here = certificate_sync.facts(need_host_uuid(paths), installed(paths))
    with Session(socket) as session:
        pool = certificate_sync.read_pool(session)
        objections = tuple(certificate_sync.objections(pool, here))
        covers = certificate_sync.covered(pool.release)
        refusing = [one.sentence for one in objections if one.refuses]
        if refusing and not force and not dry_run:
            raise SyncRefusedError(
                "no sync now: " + "; ".join(refusing),
                advice="mend that first, or use --force to lose it",
            )
        if not as_json:
            say(covers)
            warn(*(one.sentence for one in objections))
        if not dry_run:
            certificate_sync.run(session, seconds=timeout, progress=_Progress(quiet=as_json))
    if as_json:
        answer(
            Synchronised(
                synchronised=not dry_run,
                covers=covers,
                pool=msgspec.convert(pool, PoolForm, from_attributes=True),
                objections=msgspec.convert(
                    objections, tuple[ObjectionForm, ...], from_attributes=True
                ),
            )
        )
    elif dry_run:
        say("nothing was changed" + ("; it would be refused" if refusing and not force else ""))
    else:
        hosts = counted(len(pool.hosts), "host")
        say(f"synchronised {hosts} with the coordinator {pool.coordinator}")


class _Progress:
    """Says on standard error how far a sync is: a line for each tenth, so that a log stays short."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._said = 0

    def __call__(self, share: float) -> None:
        tenth = int(share * 10)
        if tenth > self._said and not self._quiet:
            self._said = tenth
            click.echo(f"{tenth * 10} %", file=sys.stderr)
