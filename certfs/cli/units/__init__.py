"""``certfs install-units``: the systemd unit, with the path of this very installation.

Owns where units go and which systemd they are for; what they say is `certfs.cli.units.render`'s.
"""

import os
import re
import shutil
import subprocess
from importlib import resources
from typing import Final

import click

from certfs.cli.units import render
from certfs.cli.units.render import Standalone
from certfs.errors import SystemdError, from_os_error
from certfs.linux import installation

UNIT: Final = "certfs.service"
_DIRECTORY: Final = "/etc/systemd/system"
_PACKAGED_PROGRAM: Final = "/usr/bin/certfs"
_MODULES: Final = "# certfs is a FUSE file system.\nfuse\n"


@click.command(
    epilog="\b\nExamples:\n"
    "  certfs install-units\n"
    "  certfs install-units --enable                 start it at every boot\n"
    "  certfs install-units --store /srv/tls --config /srv/tls.toml /srv/tls\n"
    "  certfs install-units --user --store ~/tls ~/tls\n"
    "  certfs install-units --directory ./root/etc/systemd/system --systemd 219"
)
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(file_okay=False),
    help=f"Where units are. Default: {_DIRECTORY}, with --user ~/.config/systemd/user.",
)
@click.option(
    "--systemd",
    "version",
    metavar="VERSION",
    type=click.IntRange(min=219),
    help="The version of systemd that is to read it. Default: this host's.",
)
@click.option("--enable", is_flag=True, help="Enable the unit as well; it is not started.")
@click.option("--user", is_flag=True, help="A unit of your own, for systemctl --user.")
@click.option("--store", metavar="DIR", help="The store of a standalone mount.")
@click.option("--config", metavar="FILE", help="Its configuration (TOML).")
@click.argument("mountpoint", required=False)
def install_units(  # noqa: PLR0913  one for each option
    *,
    directory: str | None,
    version: int | None,
    enable: bool,
    user: bool,
    store: str | None,
    config: str | None,
    mountpoint: str | None,
) -> None:
    """Put a unit in place: for the host's own directories from early boot on, or for a store at MOUNTPOINT."""
    mount = _standalone(store, mountpoint, config)
    if user and mount is None:
        raise click.UsageError("--user is for a store of yours: --store DIR MOUNTPOINT")
    if enable and directory not in {None, _DIRECTORY}:
        raise click.UsageError(
            "--enable is for units of this host; elsewhere: systemctl --root DIR enable certfs"
        )
    directory = directory or (_user_directory() if user else _DIRECTORY)
    name = render.unit_name(mount)
    text = render.unit_text(
        template(), _program(), systemd=version or systemd_version(), mount=mount, user=user
    )
    _write(os.path.join(directory, name), text)
    click.echo(f"installed {os.path.join(directory, name)}")
    modules = None if user else modules_directory(directory)
    if modules:
        _write(os.path.join(modules, "certfs.conf"), _MODULES)
    manager = ("--user",) if user else ()
    if _systemd_runs():
        _systemctl(*manager, "daemon-reload")
    if enable:
        _systemctl(*manager, "enable", name)
    else:
        words = ("systemctl", *manager, "enable", "--now", name.removesuffix(".service"))
        click.echo(f"start it now and at every boot with: {' '.join(words)}")
    if user:
        click.echo("to have it without being logged in: loginctl enable-linger")


def template() -> str:
    """Return the template of the units."""
    return resources.files(__package__).joinpath("service.in").read_text(encoding="utf-8")


def unit_text(program: str) -> str:
    """Return the unit of the host's own directories for the newest systemd."""
    return render.unit_text(template(), program)


def systemd_version() -> int:
    """Return the version of this host's systemd; where it cannot be known, the newest that the template is for."""
    try:
        said = subprocess.run(
            ("systemctl", "--version"), check=False, capture_output=True, text=True, timeout=10
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return render.NEWEST
    found = re.match(r"systemd (\d+)", said)
    return int(found[1]) if found else render.NEWEST


def modules_directory(units: str) -> str | None:
    """Return the modules-load.d(5) that goes with a directory of units; None where that is a place of its own."""
    above, name = os.path.split(units.rstrip("/"))
    if name == "system" and os.path.basename(above) == "systemd":
        return os.path.join(os.path.dirname(above), "modules-load.d")
    return None


def _standalone(store: str | None, mountpoint: str | None, config: str | None) -> Standalone | None:
    if store is None and mountpoint is None and config is None:
        return None
    if store is None or mountpoint is None:
        raise click.UsageError("--store DIR and MOUNTPOINT go together")
    options = ("--config", os.path.abspath(config)) if config else ()
    return Standalone(
        store=os.path.abspath(store), mountpoint=os.path.abspath(mountpoint), options=options
    )


def _user_directory() -> str:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "systemd/user")


def _write(path: str, text: str) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(f"{path}.new", "w", encoding="utf-8") as stream:
            stream.write(text)
        os.chmod(f"{path}.new", 0o644)
        os.rename(f"{path}.new", path)
    except OSError as error:
        raise from_os_error(f"cannot write {path}", error) from error


def _program() -> str:
    return installation.program() or shutil.which("certfs") or _PACKAGED_PROGRAM


def _systemd_runs() -> bool:
    return os.path.isdir("/run/systemd/system")  # sd_booted(3)


def _systemctl(*arguments: str) -> None:
    try:
        result = subprocess.run(
            ("systemctl", *arguments), check=False, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise SystemdError(
            "systemctl is not installed", advice="enable the unit by hand"
        ) from error
    if result.returncode != 0:
        raise SystemdError(
            f"systemctl {' '.join(arguments)} failed: {result.stderr.strip()}",
            advice="see systemctl status certfs",
        )
