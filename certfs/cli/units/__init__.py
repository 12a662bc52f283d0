"""``certfs install-units``: the systemd unit, with the path of this very installation.

Owns where units go and which systemd they are for; what they say is `certfs.cli.units.render`'s.
"""

import difflib
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Final

import click

from certfs.cli.answers import say
from certfs.cli.units import render
from certfs.cli.units.render import Standalone
from certfs.config import load_config
from certfs.core.text import printable
from certfs.errors import ConfigError, SystemdError, from_os_error
from certfs.identity.paths import open_directory
from certfs.linux import installation
from certfs.store.atomic import write_atomic

UNIT: Final = "certfs.service"
_DIRECTORY: Final = "/etc/systemd/system"
_PACKAGED_PROGRAM: Final = "/usr/bin/certfs"
_MARK: Final = "# Written by certfs install-units; edited if this is not its SHA-256: "
_MODULES: Final = "# certfs is a FUSE file system.\nfuse\n"


@click.command(
    epilog="\b\nExamples:\n"
    "  certfs install-units\n"
    "  certfs install-units --enable                 start it at every boot\n"
    "  certfs install-units --store /srv/tls --config /srv/tls.toml /srv/tls\n"
    "  certfs install-units --pool --enable\n"
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
@click.option("--force", is_flag=True, help="Overwrite a unit that was edited.")
@click.option("--dry-run", is_flag=True, help="Say what would change, change nothing.")
@click.option("--user", is_flag=True, help="A unit of your own, for systemctl --user.")
@click.option("--pool", is_flag=True, help="Also the unit of certfs pool run, for that mount.")
@click.option("--store", metavar="DIR", help="The store of a standalone mount.")
@click.option("--config", metavar="FILE", help="Its configuration (TOML).")
@click.argument("mountpoint", required=False)
def install_units(  # noqa: PLR0913  one for each option
    *,
    directory: str | None,
    version: int | None,
    enable: bool,
    force: bool,
    dry_run: bool,
    user: bool,
    pool: bool,
    store: str | None,
    config: str | None,
    mountpoint: str | None,
) -> None:
    """Put a unit in place: for the host's own directories from early boot on, or for a store at MOUNTPOINT.

    A unit that was edited is kept, and what would be overwritten is shown; drop-ins (systemctl edit) stay and count.
    """
    mount = _standalone(store, mountpoint, config)
    if user and mount is None:
        raise click.UsageError("--user is for a store of yours: --store DIR MOUNTPOINT")
    if pool and user:
        raise click.UsageError("--pool is for root's mounts")
    if directory in {None, _DIRECTORY}:
        _warn_of_missing(mount, config)
    elif enable:
        raise click.UsageError(
            "--enable is for units of this host; elsewhere: systemctl --root DIR enable certfs"
        )
    directory = directory or (_user_directory() if user else _DIRECTORY)
    systemd = version or systemd_version()
    units = _units(mount, systemd, user=user, pool=pool)
    there = [
        name
        for name, text in units.items()
        if _install(os.path.join(directory, name), text, force=force, dry_run=dry_run)
    ]
    if not there or dry_run:
        return
    modules = None if user else modules_directory(directory)
    if modules:
        _write(os.path.join(modules, "certfs.conf"), _MODULES)
    manager = ("--user",) if user else ()
    if _systemd_runs():
        _systemctl(*manager, "daemon-reload")
    if enable:
        _systemctl(*manager, "enable", *there)
    else:
        _say_how_to_start(manager, there)
    if user:
        click.echo("to have it without being logged in: loginctl enable-linger")


def _say_how_to_start(manager: tuple[str, ...], units: list[str]) -> None:
    names = (shlex.quote(name.removesuffix(".service")) for name in units)
    words = ("systemctl", *manager, "enable", "--now", *names)
    click.echo(f"start it now and at every boot with: {' '.join(words)}")


def _units(mount: Standalone | None, systemd: int, *, user: bool, pool: bool) -> dict[str, str]:
    """Return what each unit says, by its name."""
    text = render.unit_text(template(), _program(), systemd=systemd, mount=mount, user=user)
    units = {render.unit_name(mount): text}
    if pool:
        pools = render.pool_unit_text(template("pool.in"), _program(), mount, systemd=systemd)
        units[render.POOL_UNIT] = pools
    return units


def template(name: str = "service.in") -> str:
    """Return the template of the units of mounts, or another one."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


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
    for path in (store, mountpoint, config or ""):
        try:
            os.path.abspath(path).encode()
        except UnicodeEncodeError:
            raise click.UsageError(
                f"systemd takes only paths in UTF-8: {printable(path)}"
            ) from None
    options = ("--config", os.path.abspath(config)) if config else ()
    return Standalone(
        store=os.path.abspath(store), mountpoint=os.path.abspath(mountpoint), options=options
    )


def _warn_of_missing(mount: Standalone | None, config: str | None) -> None:
    """Say what of this host the unit needs and does not find; it may come later, with another file system."""
    needed = [("store", mount.store), ("mountpoint", mount.mountpoint)] if mount else []
    said = [
        f"the {what} {path} is no directory" for what, path in needed if not os.path.isdir(path)
    ]
    if config is not None:
        try:
            load_config(config)
        except ConfigError as error:
            said.append(str(error))
    for line in said:
        say(f"certfs: warning: {line}; the unit cannot start until that is mended", err=True)


def _user_directory() -> str:
    base = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return os.path.join(base, "systemd/user")


def _install(path: str, text: str, *, force: bool, dry_run: bool) -> bool:
    """Put a unit in place unless an admin's own would be lost; tell whether it is there now."""
    found = _read(path)
    text = marked(text)
    if found == text:
        click.echo(f"{path} is up to date")
        return True
    if found is not None and not force and not is_ours(found):
        click.echo(f"{path} was edited, or is another program's: it is kept", err=True)
        for line in _difference(path, found, text):
            click.echo(f"  {printable(line)}", err=True)
        click.echo(
            f"  to overwrite it: --force; to keep changes beside it: systemctl edit {os.path.basename(path)}",
            err=True,
        )
        return False
    if dry_run:
        click.echo(f"{path} would be {'installed' if found is None else 'replaced'}")
        for line in _difference(path, found, text) if found is not None else ():
            click.echo(f"  {printable(line)}")
        return True
    _write(path, text)
    click.echo(f"{'installed' if found is None else 'replaced'} {path}")
    drop_ins = f"{path}.d"
    if os.path.isdir(drop_ins):
        click.echo(f"what is in {drop_ins} stays and counts")
    return True


def marked(text: str) -> str:
    """Return a unit with a last line that tells whether it was edited since."""
    return f"{text}{_MARK}{hashlib.sha256(text.encode()).hexdigest()}\n"


def is_ours(found: str) -> bool:
    """Tell whether a unit is as an install-units wrote it, of whatever version."""
    text, mark, digest = found.rpartition(_MARK)
    return bool(mark) and digest == f"{hashlib.sha256(text.encode()).hexdigest()}\n"


def _read(path: str) -> str | None:
    """Return what is there, None if nothing is; a link, as of a masked unit, is nothing that certfs wrote."""
    try:
        if os.path.islink(path):
            return f"a link to {os.readlink(path)}\n"
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise from_os_error(f"cannot read {path}", error) from error


def _difference(path: str, found: str, text: str) -> Iterator[str]:
    lines = difflib.unified_diff(
        found.splitlines(), text.splitlines(), path, "what would be written", lineterm="", n=1
    )
    return (line for line in lines if not line[1:].startswith(_MARK))


def _write(path: str, text: str) -> None:
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open_directory(Path(os.path.dirname(path))) as directory:
            write_atomic(directory, os.fsencode(os.path.basename(path)), text.encode(), mode=0o644)
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
        words = f"systemctl {' '.join(arguments)}"
        own = f"the unit is there; log in as this user and run it again: {words}"
        raise SystemdError(
            f"{words} failed: {result.stderr.strip()}",
            advice=own if "--user" in arguments else "see systemctl status certfs",
        )
