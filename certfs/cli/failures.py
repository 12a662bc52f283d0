"""How a failed command is shown: a line on standard error, or with ``--json`` one object, and its exit code.

Owns telling a user's mistake, a condition of the machine and a bug of ours apart. Must not import what only some
commands need: a failure may be the first thing that a command does.
"""

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Any, Final

import click

from certfs.core.text import printable
from certfs.errors import (
    BugError,
    CertfsError,
    DeadlineError,
    MachineError,
    NoSpaceError,
    ReadOnlyError,
    StoreError,
    from_os_error,
)

USAGE: Final = 2
INTERRUPTED: Final = 130
"""What a shell answers for a command that SIGINT has ended."""
_USAGE_NAME: Final = "UsageError"


def own_arguments(words: Sequence[str]) -> Sequence[str]:
    """Return the words that are for certfs: what follows ``--`` is another command's."""
    return words[: words.index("--")] if "--" in words else words


def run(group: click.Group) -> int:
    """Run the command line; return its exit code, after having said what is wrong."""
    wants_json = _wants_json(group, own_arguments(sys.argv[1:]))
    try:
        # Not standalone: click would show its errors itself.
        code = group.main(prog_name="certfs", standalone_mode=False)
    except CertfsError as error:
        return _show(error, wants_json=wants_json)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return USAGE
    except click.ClickException as error:
        return _show_usage(error, wants_json=wants_json)
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  the last resort: say that it is a bug, not how Python sees it
        if "--debug" in sys.argv:
            traceback.print_exc()
        return _show(_condition(error) or _bug(error), wants_json=wants_json)
    return code if isinstance(code, int) else 0


def give_up(seconds: float) -> int:
    """Say that the command waits for a file system that does not answer; return its exit code."""
    words = own_arguments(sys.argv[1:])
    error = DeadlineError(
        f"certfs {' '.join(words)}: a file system does not answer, after {seconds:g} s",
        advice="findmnt lists what is mounted on the way to it; umount -l takes it away",
    )
    code = _show(error, wants_json="--json" in words)
    sys.stdout.flush()
    return code


def _wants_json(group: click.Group, words: Sequence[str]) -> bool:
    """Tell whether the command that was called has ``--json`` and got it."""
    if "--json" not in words:
        return False
    name = next((word for word in words if not word.startswith("-")), "")
    command = group.get_command(click.Context(group), name)
    # A command that does not exist was asked for JSON all the same.
    return command is None or any(one.name == "as_json" for one in command.params)


def _show(error: CertfsError, *, wants_json: bool) -> int:
    if wants_json:
        _say_json(error.to_json())
    else:
        click.echo(f"certfs: {_shown(str(error))}", err=True)
    return error.exit_code


def _shown(text: str) -> str:
    """Return a message with everything escaped that a terminal would act on: it may name any file."""
    return "\n".join(printable(line) for line in text.split("\n"))


def _show_usage(error: click.ClickException, *, wants_json: bool) -> int:
    if not wants_json:
        error.show()
        return error.exit_code
    context = error.ctx if isinstance(error, click.UsageError) else None
    path = context.command_path if context is not None else "certfs"
    _say_json(
        {
            "error": _USAGE_NAME,
            "exit_code": error.exit_code,
            "message": error.format_message(),
            "advice": f"{path} --help says what it takes",
        }
    )
    return error.exit_code


def _say_json(answer: dict[str, Any]) -> None:
    click.echo(json.dumps(answer, indent=2))


def _condition(error: Exception) -> CertfsError | None:
    """Return what is wrong with the machine, None if it is not that."""
    if not isinstance(error, OSError):
        return None
    if isinstance(error, FileNotFoundError) and error.filename is None:  # getcwd(2)
        return StoreError(
            "the current directory does not exist any more", advice="change to another"
        )
    if isinstance(error, FileNotFoundError) and str(error.filename).startswith("/proc/self/"):
        return MachineError(
            "/proc is not mounted, and certfs needs it", advice="mount -t proc proc /proc"
        )
    where = os.fsdecode(error.filename) if error.filename else "standard output"
    condition = from_os_error(where, error)
    return condition if isinstance(condition, ReadOnlyError | NoSpaceError | MachineError) else None


def _bug(error: Exception) -> BugError:
    return BugError(
        f"a bug in certfs: {type(error).__name__}: {error}",
        advice=f"please report it with the traceback in {_keep_traceback()}; --debug shows it",
    )


def _keep_traceback() -> str:
    """Write the current traceback to a file of the caller's and return its path."""
    try:
        fd, path = tempfile.mkstemp(prefix="certfs-bug-", suffix=".txt")
    except OSError:
        return os.devnull
    with open(fd, "w", encoding="utf-8", errors="backslashreplace") as stream:
        traceback.print_exc(file=stream)
    return path
