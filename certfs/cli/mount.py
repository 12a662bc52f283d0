"""The commands that mount, unmount, replace and stand aside.

Owns their arguments and what they say; what they do is `certfs.client`'s.
"""

import os
import sys
from typing import Final

import click

from certfs.client import instances
from certfs.client import mount as mounting
from certfs.client.detached import run_detached
from certfs.config import DEFAULT_FILE, load_config
from certfs.errors import NotMountedError

_CANNOT_RUN: Final = 127
"""What a shell answers for a command that cannot be run."""
_CONFIG = click.option(
    "--config",
    "config_file",
    metavar="FILE",
    help=f"Configuration (TOML). Default for the host's own directories: {DEFAULT_FILE}, if there.",
)


@click.command(
    epilog="\b\nExamples:\n"
    "  certfs mount --store ~/certificates ~/mnt\n"
    "  certfs mount --store /srv/tls /srv/tls --foreground\n"
    "  certfs mount                        (root) over /etc/xensource and /etc/stunnel"
)
@click.option("--store", metavar="DIR", help="The directory that holds the real files.")
@click.option("--foreground", is_flag=True, help="Stay; log to standard error.")
@_CONFIG
@click.option(
    "--allow-other/--no-allow-other",
    default=None,
    help="Let other users in. Default: yes for root, no otherwise.",
)
@click.option("--log", metavar="FILE", help="Where the daemon logs.")
@click.argument("mountpoint", required=False)
def mount(  # noqa: PLR0913  one for each option
    *,
    store: str | None,
    mountpoint: str | None,
    foreground: bool,
    config_file: str | None,
    allow_other: bool | None,
    log: str | None,
) -> None:
    """Mount a store at MOUNTPOINT, or without arguments the host's own directories over themselves.

    Returns when the tree is served. Both paths may be the same directory: then a crash leaves the plain files in view.
    """
    if (store is None) != (mountpoint is None):
        raise click.UsageError(
            "--store DIR and MOUNTPOINT go together (or give neither, as root on a host)"
        )
    optional = store is None and config_file is None
    config_file = os.path.abspath(config_file) if config_file else None
    config = load_config(
        DEFAULT_FILE if optional and os.path.lexists(DEFAULT_FILE) else config_file,
        host=store is None,
    )
    if store is not None and mountpoint is not None:
        places = mounting.standalone(store, mountpoint)
    else:
        places = mounting.dom0(config.dom0_trees)
    plan = mounting.Plan(
        mode="dom0" if store is None else "standalone",
        places=places,
        config_file=DEFAULT_FILE if optional else config_file,
        config_optional=optional,
        allow_other=os.geteuid() == 0 if allow_other is None else allow_other,
        log=os.path.abspath(log) if log else None,
    )
    if foreground:
        mounting.become_supervisor(plan)
    pid = mounting.launch(plan)
    where = " and ".join(place.target for place in places)
    click.echo(f"serving {where} (process {pid})")


@click.command(
    epilog="\b\nExamples:\n  certfs unmount ~/mnt\n  certfs unmount      (root) the host's own directories"
)
@click.option("--if-mounted", is_flag=True, help="Not being mounted is fine.")
@click.argument("mountpoint", required=False)
def unmount(*, mountpoint: str | None, if_mounted: bool) -> None:
    """End a mount, at once and also if files are open: they stay usable until they are closed."""
    try:
        said, stale = instances.unmount(mountpoint)
    except NotMountedError:
        if not if_mounted:
            raise
    else:
        click.echo(said)
        _warn(stale)


def _warn(stale: tuple[str, ...]) -> None:
    """Say which plain bundles are not what was served: a certificate may be trusted that was deleted."""
    for line in stale:
        click.echo(f"certfs: the plain copy is not current: {line}", err=True)


@click.command(
    epilog="\b\nExamples:\n  certfs restart        after an upgrade\n  certfs restart ~/mnt"
)
@click.argument("mountpoint", required=False)
def restart(*, mountpoint: str | None) -> None:
    """Replace the server by a new one, which reads the configuration again, without one failed open or read."""
    instances.restart(mountpoint)


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="\b\nExamples:\n"
    "  certfs detached -- tar --one-file-system -cf /backup/etc.tar /etc\n"
    "  certfs detached --mountpoint ~/mnt -- rsync -a --copy-unsafe-links ~/mnt/ backup/",
)
@click.option("--if-mounted", is_flag=True, help="Run COMMAND also if nothing is mounted.")
@click.option(
    "--mountpoint",
    metavar="MOUNTPOINT",
    help="Default: the host's own directories.",
)
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def detached(*, mountpoint: str | None, if_mounted: bool, command: tuple[str, ...]) -> None:
    """Run COMMAND so that it sees the plain directories; the exit code is COMMAND's.

    For root the mount stays: COMMAND runs in a mount namespace of its own, in which certfs is not mounted. For other
    users it is unmounted, and mounted again when COMMAND has ended. Changes that COMMAND makes are picked up.
    """
    try:
        status = run_detached(mountpoint, command, if_mounted=if_mounted, warn=_warn)
    except OSError as error:
        click.echo(f"certfs: cannot run {command[0]}: {error.strerror}", err=True)
        status = _CANNOT_RUN
    sys.exit(128 - status if status < 0 else status)
