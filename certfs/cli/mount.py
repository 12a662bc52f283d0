"""The commands that mount, unmount, replace and stand aside.

Owns their arguments and what they say; what they do is `certfs.client`'s.
"""

import os
import sys
from collections.abc import Callable
from typing import Final

import click

from certfs.cli.mount_options import MountOptionError, MountOptions, parse
from certfs.client import instances
from certfs.client import mount as mounting
from certfs.client.detached import run_detached
from certfs.config import DEFAULT_FILE, load_config
from certfs.errors import CertfsError, NotMountedError
from certfs.protocol import state_file

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
    "  certfs mount -o remount,ro /srv/tls\n"
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
@click.option(
    "-o",
    "words",
    metavar="OPTIONS",
    multiple=True,
    help="As for mount(8): ro, noatime, nosuid, nodev, noexec, remount, config=FILE, allow_other, log=FILE.",
)
@click.option("--sloppy", is_flag=True, hidden=True)
@click.option("--fake", is_flag=True, hidden=True)
@click.option("--quiet", is_flag=True, hidden=True)
@click.argument("mountpoint", required=False)
def mount(  # noqa: PLR0913  one for each option
    *,
    store: str | None,
    mountpoint: str | None,
    foreground: bool,
    config_file: str | None,
    allow_other: bool | None,
    log: str | None,
    words: tuple[str, ...],
    sloppy: bool,
    fake: bool,
    quiet: bool,
) -> None:
    """Mount a store at MOUNTPOINT, or without arguments the host's own directories over themselves.

    Returns when the tree is served. Both paths may be the same directory: then a crash leaves the plain files in view.
    """
    options = _options(words, sloppy=sloppy)
    config_file = config_file or options.config
    log = log or options.log
    allow_other = options.allow_other if allow_other is None else allow_other
    if options.remount:
        instances.remount(
            instances.find(mountpoint), set_flags=options.set_flags, clear_flags=options.clear_flags
        )
        return
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
    plan = mounting.MountRequest(
        mode="dom0" if store is None else "standalone",
        places=places,
        later=config.dom0_later if store is None else (),
        config_file=DEFAULT_FILE if optional else config_file,
        config_optional=optional,
        allow_other=os.geteuid() == 0 if allow_other is None else allow_other,
        flags=options.set_flags,
        log=os.path.abspath(log) if log else None,
    )
    if fake:
        return
    if foreground:
        mounting.become_supervisor(plan)
    pid = mounting.launch(plan)
    if not quiet:
        where = " and ".join(place.target for place in places)
        click.echo(f"serving {where} (process {pid})")


def _options(words: tuple[str, ...], *, sloppy: bool) -> MountOptions:
    try:
        return parse(",".join(words), sloppy=sloppy)
    except MountOptionError as error:
        raise click.UsageError(str(error)) from None


_ALL = click.option("--all", "every", is_flag=True, help="Every mount of this user.")


def _chosen(mountpoint: str | None, *, every: bool) -> tuple[str, ...]:
    """Return the directories of the instances that a command is about."""
    if every and mountpoint is not None:
        raise click.UsageError("--all is for every mount: name no MOUNTPOINT with it")
    return instances.every() if every else (instances.find(mountpoint),)


def _each(directories: tuple[str, ...], action: Callable[[str], None]) -> None:
    """Do it to each instance, also after one has failed; then raise the first failure."""
    failures = []
    for directory in directories:
        try:
            action(directory)
        except CertfsError as error:
            failures.append(error)
    for failure in failures[1:]:
        click.echo(f"certfs: {failure}", err=True)
    if failures:
        raise failures[0]


@click.command(
    epilog="\b\nExamples:\n"
    "  certfs unmount ~/mnt\n"
    "  certfs unmount         (root) the host's own directories\n"
    "  certfs unmount --all   before certfs is removed"
)
@click.option("--if-mounted", is_flag=True, help="Not being mounted is fine.")
@click.option(
    "--own-unit",
    is_flag=True,
    help="In a systemd unit: leave alone what was not mounted by this unit.",
)
@_ALL
@click.argument("mountpoint", required=False)
def unmount(*, mountpoint: str | None, if_mounted: bool, own_unit: bool, every: bool) -> None:
    """End a mount, at once and also if files are open: they stay usable until they are closed."""
    try:
        chosen = _chosen(mountpoint, every=every)
    except NotMountedError:
        if not if_mounted:
            raise
    else:
        own = (each for each in chosen if not own_unit or instances.is_of_this_unit(each))
        _each(tuple(own), _unmount)


def _unmount(directory: str) -> None:
    said, stale = instances.unmount(directory)
    click.echo(said)
    _warn(stale)


def _warn(stale: tuple[str, ...]) -> None:
    """Say which plain bundles are not what was served: a certificate may be trusted that was deleted."""
    for line in stale:
        click.echo(f"certfs: the plain copy is not current: {line}", err=True)


@click.command(
    epilog="\b\nExamples:\n"
    "  certfs restart ~/mnt\n"
    "  certfs restart                     (root) the host's own directories\n"
    "  certfs restart --all --outdated    after an upgrade"
)
@_ALL
@click.option("--outdated", is_flag=True, help="Only what runs from another installation.")
@click.argument("mountpoint", required=False)
def restart(*, mountpoint: str | None, every: bool, outdated: bool) -> None:
    """Replace the server by a new one, which reads the configuration again, without one failed open or read."""
    chosen = _chosen(mountpoint, every=every)
    _each(tuple(one for one in chosen if not outdated or instances.outdated(one)), _restart)


def _restart(directory: str) -> None:
    instances.restart(directory)
    state = state_file.read_state(directory)
    if state is None or state.mode != "dom0":
        return
    wanted = {
        place.target
        for place in mounting.dom0(load_config(state.config_file, host=True).dom0_trees)
    }
    if wanted != set(state.targets):
        click.echo(
            f"certfs: warning: the configuration presents {' and '.join(sorted(wanted))}, and a restart keeps "
            f"{' and '.join(sorted(state.targets))}: certfs unmount and certfs mount change that",
            err=True,
        )


@click.command(
    context_settings={"ignore_unknown_options": True},
    epilog="\b\nExamples:\n"
    "  certfs detached -- tar --one-file-system -cf /backup/etc.tar /etc\n"
    "  certfs detached -- tar -xf /backup/etc.tar -C /\n"
    "  certfs detached --mountpoint ~/mnt -- rsync -a --copy-unsafe-links ~/mnt/ backup/",
)
@click.option("--if-mounted", is_flag=True, help="Run COMMAND also if nothing is mounted.")
@click.option("--mountpoint", metavar="MOUNTPOINT", help="Default: the host's own directories.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def detached(*, mountpoint: str | None, if_mounted: bool, command: tuple[str, ...]) -> None:
    """Run COMMAND so that it sees the plain directories; the exit code is COMMAND's.

    For root the mount stays: COMMAND runs in a mount namespace of its own, in which certfs is not mounted. For other
    users it is unmounted, and mounted again when COMMAND has ended. Changes that COMMAND makes are picked up.

    A backup that is restored into the live directories must leave out the bundles, which are read-only
    there; with this command it is restored as a whole, and each bundle is made anew from its sources.
    """
    if command[0].startswith("-"):
        raise click.UsageError(f"No such option {command[0]!r}.")
    try:
        status = run_detached(mountpoint, command, if_mounted=if_mounted, warn=_warn)
    except OSError as error:
        click.echo(f"certfs: cannot run {command[0]}: {error.strerror}", err=True)
        status = _CANNOT_RUN
    sys.exit(128 - status if status < 0 else status)
