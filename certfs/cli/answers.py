"""How the certificate commands answer: text for people, or one JSON object for programs.

Owns the options that these commands share and the two forms of an answer. Must not know what the
commands do.
"""

import math
import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import ParamSpec

import click
from click.shell_completion import CompletionItem

from certfs.cli.json_forms import Certificate as CertificateForm
from certfs.cli.places import host_paths
from certfs.core.text import printable
from certfs.errors import StoreError, from_os_error
from certfs.identity.describe import Description, with_colons
from certfs.identity.paths import DOM0, READ_LIMIT, HostPaths, file_errors, names_if_any
from certfs.identity.validate import STANDARD_INPUT, Document, iso
from certfs.linux.waiting import waiting

P = ParamSpec("P")
_UNKNOWN = "unknown: it cannot be read"


class ExistingPath(click.Path):
    """A path at which there is something: what keeps this user from looking is no wrong command line, but said."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """Return the path; CertfsError where it cannot be looked at."""
        try:
            os.stat(value)
        except FileNotFoundError:
            pass  # what that means is the base class's
        except OSError as error:
            raise from_os_error(os.fspath(value), error) from None
        return super().convert(value, param, ctx)


class Seconds(click.FloatRange):
    """So many seconds; what float() takes besides (nan, inf) are none."""

    def convert(
        self, value: float, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number of seconds", param, ctx)
        return number


class InputFile(ExistingPath):
    """A file to read, ``-`` for standard input; or a pipe, so that a key is in no file."""

    def __init__(self) -> None:
        """Make the parameter type."""
        super().__init__(
            exists=True, dir_okay=False, readable=False, allow_dash=True, path_type=Path
        )


def read_document(path: Path) -> Document:
    """Return what an admin gave a command to read."""
    if str(path) == "-":
        with waiting():
            document = Document(STANDARD_INPUT, sys.stdin.buffer.read(READ_LIMIT + 1))
    else:
        # A pipe or a terminal is filled by somebody.
        with file_errors(path), nullcontext() if path.is_file() else waiting():
            document = Document(path, _read(path))
    if len(document.data) > READ_LIMIT:
        raise StoreError(
            f"{document.path} is larger than {READ_LIMIT} bytes",
            advice="give a file of certificates and nothing else, or several smaller ones",
        )
    return document


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(READ_LIMIT + 1)


def store_option(function: Callable[P, None]) -> Callable[P, None]:
    """Add ``--store``; the command's argument ``paths`` is the host's directories."""
    return click.option(
        "--store",
        "paths",
        metavar="DIR",
        type=ExistingPath(exists=True, file_okay=False, readable=False, path_type=Path),
        callback=_host_paths,
        help="Work on the store or mount DIR (its xensource and stunnel) "
        "instead of /etc/xensource and /etc/stunnel.",
    )(function)


def _host_paths(context: click.Context, _option: click.Parameter, value: Path | None) -> HostPaths:
    if context.resilient_parsing:  # for completion in the shell, which is not to wait for a mount
        return DOM0 if value is None else HostPaths.of_store(Path(os.path.abspath(value)))
    return host_paths(value)


def names_beginning(directory: Path, incomplete: str) -> list[CompletionItem]:
    """Return the files that completion in the shell offers."""
    names = names_if_any(directory)
    return [CompletionItem(n) for n in names if n.startswith(incomplete) and n.endswith(".pem")]


def dry_run_option(function: Callable[P, None]) -> Callable[P, None]:
    """Add ``--dry-run``."""
    return click.option(
        "--dry-run", is_flag=True, help="Check everything, say what would change, change nothing."
    )(function)


def json_option(function: Callable[P, None]) -> Callable[P, None]:
    """Add ``--json``; the argument is ``as_json``. Errors have their JSON form from ``certfs.cli.main``."""
    return click.option("--json", "as_json", is_flag=True, help="Answer with one JSON object.")(
        function
    )


def certificate_form(said: Description) -> CertificateForm:
    """Return what a program is told of a certificate."""
    return CertificateForm(
        subject=said.subject,
        issuer=said.issuer,
        serial_number=said.serial_number,
        not_before=iso(said.not_before) if said.not_before else None,
        not_after=iso(said.not_after) if said.not_after else None,
        key=said.key,
        signature=said.signature,
        names=said.names,
        is_ca=said.is_ca,
        sha256=said.sha256,
        sha1=said.sha1,
    )


def moment_text(moment: datetime | None) -> str:
    """Return a date of a certificate for people."""
    return _UNKNOWN if moment is None else iso(moment)


def certificate_lines(said: Description) -> str:
    """Return what people want to see of a certificate that was just installed or removed."""
    return (
        f"  subject   {said.subject}\n"
        f"  valid     {moment_text(said.not_before)} to {moment_text(said.not_after)}\n"
        f"  SHA-256   {said.sha256}"
    )


def description_lines(said: Description) -> str:
    """Return everything that can be said of a certificate."""
    rows = (
        ("subject", said.subject),
        ("issuer", said.issuer),
        ("serial number", said.serial_number),
        ("valid from", moment_text(said.not_before)),
        ("valid until", moment_text(said.not_after)),
        ("key", said.key or _UNKNOWN),
        ("signature", said.signature or _UNKNOWN),
        ("names", _UNKNOWN if said.names is None else ", ".join(said.names) or "none"),
        ("CA", {True: "yes", False: "no", None: _UNKNOWN}[said.is_ca]),
        ("SHA-256", said.sha256),
        ("", with_colons(said.sha256)),
        ("SHA-1", said.sha1),
        ("", with_colons(said.sha1)),
    )
    return "\n".join(f"{label:<14}{text}" for label, text in rows)


def say(text: str, *, err: bool = False) -> None:
    """Write lines for people; what a terminal would act on is escaped, file names included."""
    click.echo("\n".join(printable(line) for line in text.split("\n")), err=err)


def warn(*sentences: str) -> None:
    """Say something on standard error, which leaves standard output to the answer."""
    for sentence in sentences:
        say(sentence, err=True)
