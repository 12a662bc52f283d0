"""The command ``certfs``: one group of commands, and how their errors are shown.

A command's module is imported when the command is used, so that ``certfs mount`` does not wait for a parser of
certificates; the short help is therefore kept here.
"""

# ruff: noqa: E402 - the first statement is about the imports that follow

import signal

_handler = signal.getsignal(signal.SIGINT)
if _handler is signal.default_int_handler:
    # ^C while the modules are imported, a good part of a short command, ends it without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import functools
import os
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Final, NamedTuple, NoReturn

import click

from certfs import __version__
from certfs.cli import xe
from certfs.cli.failures import give_up, own_arguments, run
from certfs.cli.mount_helper import translated
from certfs.cli.silence import End, watched
from certfs.errors import from_os_error
from certfs.linux.processes import leave
from certfs.protocol import timeouts

if _handler is signal.default_int_handler:
    signal.signal(signal.SIGINT, _handler)  # from now on `run` answers it


class _Entry(NamedTuple):
    module: str
    short_help: str
    patience: float | None = timeouts.COMMAND
    """Seconds for which one call on a file system may wait; None where the command is not watched for that."""


_AUTHORITIES: Final = "certfs.cli.authorities"
_CRLS: Final = "certfs.cli.crls"
_CERTIFICATES: Final = "certfs.cli.certificates"
_MOUNT: Final = "certfs.cli.mount"

COMMANDS: Final = {
    "certificate-show": _Entry(_AUTHORITIES, "Show one certificate in full."),
    "check": _Entry("certfs.cli.check", "Judge bundles and host certificates, for monitoring."),
    "completion": _Entry(
        "certfs.cli.reference", "Print what makes a shell complete.", patience=None
    ),
    "detached": _Entry(_MOUNT, "Run a command while the plain directories are in view."),
    "export": _Entry(
        "certfs.cli.export", "Write a bundle in another form: for Java, for a CApath."
    ),
    "gencert": _Entry(
        "certfs.cli.gencert", "Generate a host certificate at boot, if there is none."
    ),
    "host-get-server-certificate": _Entry(_CERTIFICATES, "Print this host's public certificate."),
    "host-refresh-server-certificate": _Entry(_CERTIFICATES, "Renew the pool certificate."),
    "host-server-certificate-install": _Entry(_CERTIFICATES, "Install a host certificate."),
    "install-units": _Entry("certfs.cli.units", "Put the systemd unit in place.", patience=None),
    "list": _Entry(
        "certfs.cli.inspect", "List the certificates of each bundle, and what was left out."
    ),
    "mount": _Entry(
        _MOUNT, "Mount, and return when the tree is served.", patience=timeouts.COMMAND_THAT_STARTS
    ),
    "pool": _Entry(
        "certfs.cli.pool", "Share certificates among hosts, through etcd.", patience=None
    ),
    "pool-certificate-list": _Entry(_AUTHORITIES, "List the installed CA certificates."),
    "pool-certificate-sync": _Entry(
        "certfs.cli.pool_sync", "Have XAPI synchronise the pool.", patience=None
    ),
    "pool-crl-list": _Entry(_CRLS, "List the installed revocation lists."),
    "pool-install-ca-certificate": _Entry(_AUTHORITIES, "Install a CA certificate."),
    "pool-install-crl": _Entry(_CRLS, "Install a revocation list."),
    "pool-uninstall-ca-certificate": _Entry(_AUTHORITIES, "Remove a CA certificate."),
    "pool-uninstall-crl": _Entry(_CRLS, "Remove a revocation list."),
    "repair": _Entry("certfs.cli.health", "Mend what can be mended without a decision."),
    "reset-server-certificate": _Entry(_CERTIFICATES, "Make a new self-signed host certificate."),
    "restart": _Entry(
        _MOUNT, "Replace the server without one failed open.", patience=timeouts.COMMAND_THAT_STARTS
    ),
    "schema": _Entry(
        "certfs.cli.schemas", "Print the JSON Schema of a command's answer.", patience=None
    ),
    "status": _Entry("certfs.cli.status", "Show what is mounted, and how it is."),
    "unmount": _Entry(
        _MOUNT,
        "End a mount; the host is an ordinary one again.",
        patience=timeouts.COMMAND_THAT_STARTS,
    ),
}
"""A command is the function of its module with its name, hyphens as underscores; ``list`` is ``list_``."""


class LazyGroup(click.Group):
    """A group that imports a command's module when the command is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return every name, sorted."""
        del ctx
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, None if there is none of that name."""
        del ctx
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        module = import_module(entry.module)
        attribute = cmd_name.replace("-", "_")
        command = getattr(module, attribute, None) or getattr(module, attribute + "_")
        if not isinstance(command, click.Command):
            raise TypeError(f"{entry.module}.{attribute} is not a command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; who calls it as xe is called is told how certfs is."""
        known = xe.COMMANDS.get(args[0])
        if known is not None:
            raise click.UsageError(f"{args[0]!r} is called {known!r} here.", ctx)
        found = xe.hint(args[0], args[1:])
        if found:
            raise click.UsageError(found, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the table of commands without importing one of them."""
        del ctx
        rows = [(name, COMMANDS[name].short_help) for name in sorted(COMMANDS)]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="\b\nExamples:\n"
    "  certfs mount --store ~/certificates ~/mnt   a store of your own, no root needed\n"
    "  certfs mount                                /etc/xensource and /etc/stunnel, as root\n"
    "  certfs status                               what is mounted, and how it is\n"
    "  certfs unmount ~/mnt",
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=lambda ctx, _, wanted: _show_version(ctx) if wanted else None,
    help="Show the version and exit; with --verbose also of all that it consists of.",
)
@click.option("--verbose", is_flag=True, hidden=True, expose_value=False)
@click.option("--debug", is_flag=True, help="Show the traceback of an unexpected error.")
@click.pass_context
def group(ctx: click.Context, *, debug: bool) -> None:
    """TLS CA bundles that are always the certificates in their directories now.

    Copy a PEM in, and the next TLS connection trusts it; remove it, and the next one does not.
    """
    ctx.obj = debug
    if "" in own_arguments(sys.argv[1:]) and ctx.invoked_subcommand != "detached":
        # An unset variable of a script: the operating system would take it for the current directory.
        raise click.UsageError("an empty argument names nothing")


def _show_version(ctx: click.Context) -> NoReturn:
    click.echo(f"certfs {__version__}")
    if "--verbose" in own_arguments(sys.argv[1:]):
        for name, version in import_module("certfs.cli.version").components():
            click.echo(f"  {name} {version}")
    ctx.exit()


def main() -> NoReturn:
    """Run the command line and exit; docs/cli.md lists the codes.

    An error is one clear line on standard error, or with ``--json`` one object on standard output.
    """
    _open_standard_streams()
    if not sys.warnoptions:
        # A library's warning about an odd certificate is for the calling program, not for its user.
        warnings.simplefilter("ignore")
    call = translated(sys.argv)
    if call is not None:  # by mount(8)
        sys.argv[1:] = call
    end = _watched(own_arguments(sys.argv[1:]))
    try:
        code = _run()
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:  # of what was to be said
        code = from_os_error("standard output", error).exit_code
    end(code)


def _run() -> int:
    try:
        return run(group)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0


def _watched(words: Sequence[str]) -> End:
    """Return what ends the command, which is ended itself if it waits for a file system for too long."""
    entry = COMMANDS.get(next((word for word in words if not word.startswith("-")), ""))
    # One that stays in the foreground becomes the supervisor, in the process that was started.
    if entry is None or entry.patience is None or "--foreground" in words:
        return leave
    return watched(entry.patience, functools.partial(give_up, entry.patience))


def _open_standard_streams() -> None:
    """Give a caller who closed 0, 1 or 2 the null device there, or the next file opened would be taken for it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - until the end
