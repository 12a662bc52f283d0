"""``certfs install-units``: the systemd unit, with the path of this very installation.

Owns where the unit goes; what it says is in ``certfs.service`` beside this file.
"""

import os
import shutil
import subprocess
import sys
from importlib import resources
from typing import Final

import click

from certfs.errors import CertfsError, PrivilegeError

UNIT: Final = "certfs.service"
_DIRECTORY: Final = "/etc/systemd/system"
_PACKAGED_PROGRAM: Final = "/usr/bin/certfs"


@click.command(
    epilog="\b\nExamples:\n"
    "  certfs install-units\n"
    "  certfs install-units --enable                 start it at every boot\n"
    "  certfs install-units --directory ./root/etc/systemd/system"
)
@click.option(
    "--directory",
    metavar="DIR",
    type=click.Path(file_okay=False),
    default=_DIRECTORY,
    show_default=True,
    help="Where units are.",
)
@click.option("--enable", is_flag=True, help="Enable the unit as well; it is not started.")
def install_units(*, directory: str, enable: bool) -> None:
    """Put certfs.service in place, for the host's own directories from early boot on."""
    if enable and directory != _DIRECTORY:
        raise click.UsageError(
            "--enable is for units of this host; elsewhere: systemctl --root DIR enable certfs"
        )
    path = os.path.join(directory, UNIT)
    try:
        os.makedirs(directory, exist_ok=True)
        with open(f"{path}.new", "w", encoding="utf-8") as stream:
            stream.write(unit_text(_program()))
        os.chmod(f"{path}.new", 0o644)
        os.rename(f"{path}.new", path)
    except PermissionError as error:
        raise PrivilegeError(
            f"cannot write {path}: {error.strerror}", advice="become root"
        ) from error
    except OSError as error:
        raise CertfsError(
            f"cannot write {path}: {error.strerror}", advice="name another --directory"
        ) from error
    click.echo(f"installed {path}")
    if _systemd_runs():
        _systemctl("daemon-reload")
    if enable:
        _systemctl("enable", UNIT)
    else:
        click.echo("start it now and at every boot with: systemctl enable --now certfs")


def unit_text(program: str) -> str:
    """Return the unit for a certfs that is installed as ``program``."""
    text = resources.files(__package__).joinpath(UNIT).read_text(encoding="utf-8")
    return text.replace(_PACKAGED_PROGRAM, program.replace("%", "%%"))


def _program() -> str:
    beside = os.path.join(os.path.dirname(sys.executable), "certfs")
    if os.access(beside, os.X_OK):
        return beside
    return shutil.which("certfs") or _PACKAGED_PROGRAM


def _systemd_runs() -> bool:
    return os.path.isdir("/run/systemd/system")  # sd_booted(3)


def _systemctl(*arguments: str) -> None:
    try:
        result = subprocess.run(
            ("systemctl", *arguments), check=False, capture_output=True, text=True
        )
    except FileNotFoundError as error:
        raise CertfsError("systemctl is not installed", advice="enable the unit by hand") from error
    if result.returncode != 0:
        raise CertfsError(
            f"systemctl {' '.join(arguments)} failed: {result.stderr.strip()}",
            advice="see systemctl status certfs",
        )
