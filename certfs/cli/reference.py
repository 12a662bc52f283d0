"""The reference of the command line: docs/cli.md and the man page, and completion in the shell.

Owns turning the tree of commands into text, so that neither is written by hand. The committed files
are what this module gives, which a test checks; ``python -m certfs.cli.reference markdown`` (or
``man``) prints them.
"""

import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import click
from click.shell_completion import get_completion_class

from certfs.cli import manual
from certfs.errors import CertfsError

_PROGRAM = "certfs"
_RAW = "\b"
"""What click's texts begin a paragraph with that is not to be filled."""


@dataclass(frozen=True, slots=True)
class Option:
    """One option or argument: how it is written, and what it does."""

    written: str
    text: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One command, or the program itself, with everything that its help says."""

    name: str
    usage: str
    paragraphs: tuple[str, ...]
    options: tuple[Option, ...]
    examples: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ExitCode:
    """An exit code: ``name`` is the platform's name of the error where it has one."""

    code: int
    name: str
    meaning: str


def collect(group: click.Group) -> tuple[Entry, ...]:
    """Return the program and then its commands, sorted by name."""
    context = click.Context(group, info_name=_PROGRAM, **group.context_settings)
    entries = [_entry(group, context)]
    for name in sorted(group.list_commands(context)):
        command = group.get_command(context, name)
        if command is not None and not command.hidden:
            inner = click.Context(command, info_name=name, parent=context)
            entries.append(_entry(command, inner))
            if isinstance(command, click.Group):
                entries += _members(command, inner)
    return tuple(entries)


def _members(group: click.Group, context: click.Context) -> Iterator[Entry]:
    """Yield the commands of a group that is a command itself."""
    for name, command in sorted(group.commands.items()):
        inner = click.Context(command, info_name=name, parent=context)
        entry = _entry(command, inner)
        yield replace(entry, name=f"{context.info_name} {name}")


_OF_NO_ERROR = (
    ExitCode(0, "", "It worked."),
    ExitCode(1, "", "`check` and `repair`: there are warnings, and nothing is critical."),
    ExitCode(
        2,
        "",
        "The command line is wrong. `check` and `repair` with findings on standard output: something is critical.",
    ),
    ExitCode(
        127, "", "`detached`: the command cannot be run. Otherwise its exit code is the command's."
    ),
    ExitCode(130, "", "The command was interrupted (SIGINT)."),
)


def exit_codes() -> tuple[ExitCode, ...]:
    """Return every exit code of the modules that are imported; ``ValueError`` if one has two meanings."""
    codes = {code.code: code for code in _OF_NO_ERROR}
    owners: dict[int, type[CertfsError]] = {}
    for kind in _kinds(CertfsError):
        if "exit_code" not in vars(kind):
            continue  # it shares the meaning of what it is derived from
        if kind.exit_code in codes:
            raise ValueError(f"{kind} has the exit code of {owners.get(kind.exit_code)}")
        owners[kind.exit_code] = kind
        meaning = inspect.cleandoc(kind.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        codes[kind.exit_code] = ExitCode(kind.exit_code, vars(kind).get("name", ""), meaning)
    return tuple(codes[code] for code in sorted(codes))


def markdown(group: click.Group) -> str:
    """Return docs/cli.md."""
    program, *commands = collect(group)
    lines = [
        "# The command line",
        "",
        "<!-- Generated: python -m certfs.cli.reference markdown -->",
        "",
    ]
    lines += [*_joined(program.paragraphs), "", "```", program.usage, "```", ""]
    lines += ["| command | |", "|---|---|"]
    lines += [
        f"| [`{one.name}`](#certfs-{one.name.replace(' ', '-')}) | {_cell(one.paragraphs[0])} |"
        for one in commands
    ]
    lines += ["", *_options_table(program)]
    lines += ["", "```", *program.examples, "```"]
    for one in commands:
        lines += ["", f"## certfs {one.name}", "", *_joined(one.paragraphs)]
        lines += ["", "```", one.usage, "```", "", *_options_table(one)]
        if one.examples:
            lines += ["", "```", *one.examples, "```"]
    lines += ["", "## Exit codes", "", _EXIT_CODES_SAID, ""]
    lines += ["| code | name | meaning |", "|---|---|---|"]
    lines += [
        f"| {one.code} | {f'`{one.name}`' if one.name else ''} | {_cell(one.meaning)} |"
        for one in exit_codes()
    ]
    lines += ["", "## Completion", "", _COMPLETION_SAID]
    return "\n".join(lines) + "\n"


def man_page(group: click.Group, configuration: str) -> str:
    """Return certfs(1) in man(7); ``configuration`` is the text of docs/config.md, which has the keys."""
    program, *commands = collect(group)
    lines = [
        '.\\" Generated: python -m certfs.cli.reference man',
        f'.TH {_PROGRAM.upper()} 1 "" "{_PROGRAM}" "User Commands"',
        ".SH NAME",
        f"{_PROGRAM} \\- {_roff(program.paragraphs[0].rstrip('.'))}",
        ".SH SYNOPSIS",
        f".B {_roff(program.usage)}",
        ".SH DESCRIPTION",
    ]
    for paragraph in program.paragraphs:
        lines += [".PP", _roff(paragraph)]
    lines += [".SH OPTIONS", *_roff_options(program), ".SH COMMANDS"]
    for one in commands:
        lines += [f".SS {one.name}", f".B {_roff(one.usage)}"]
        for paragraph in one.paragraphs:
            lines += [".PP", _roff(paragraph)]
        lines += _roff_options(one)
        if one.examples:
            lines += [".PP", ".nf", *(_roff(example) for example in one.examples), ".fi"]
    lines += [".SH EXIT STATUS", _roff(_EXIT_CODES_SAID)]
    for code in exit_codes():
        label = f"{code.code} {code.name}".strip()
        lines += [".TP", f".B {_roff(label)}", _roff(code.meaning.replace("`", ""))]
    lines += [".SH CONFIGURATION", _roff(_CONFIGURATION_SAID)]
    for key in manual.configuration_keys(configuration):
        default = f" Default: {key.default}." if key.default else ""
        text = f"{key.meaning[:1].upper()}{key.meaning[1:]}. Allowed: {key.allowed}.{default}"
        lines += [".TP", f".B {_roff(key.name)}", _roff(text)]
    for title, rows in (("FILES", manual.FILES), ("ENVIRONMENT", manual.ENVIRONMENT)):
        lines.append(f".SH {title}")
        for name, meaning in rows:
            lines += [".TP", f".B {_roff(name)}", _roff(meaning)]
    lines += [".SH EXAMPLES", ".nf", *(_roff(example) for example in program.examples), ".fi"]
    return "\n".join(lines) + "\n"


@click.command(epilog='\b\nExample:\n  eval "$(certfs completion bash)"    in ~/.bashrc')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(*, shell: str) -> None:
    """Print what makes SHELL complete commands, options, and names of certificates."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"there is no completion for {shell}")
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, _PROGRAM, "_CERTFS_COMPLETE").source())


_EXIT_CODES_SAID = (
    "An exit code keeps its meaning for good. An error is one line on standard error; with `--json` it is one"
    " object on standard output instead, with `error` (a name), `exit_code`, `message` and `advice`."
)
_CONFIGURATION_SAID = (
    "A TOML file, read at a mount and at certfs restart. bundle and notify are arrays of tables ([[bundle]],"
    " [[notify]]), dom0 is a table."
)
_COMPLETION_SAID = (
    'For bash put `eval "$(certfs completion bash)"` into `~/.bashrc`; '
    "zsh and fish have their own words for it, see `certfs completion`."
)


def _entry(command: click.Command, context: click.Context) -> Entry:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    records = [parameter.get_help_record(context) for parameter in command.get_params(context)]
    # An argument that the text speaks of has no help of its own; that there is --help everywhere is
    # said once.
    options = tuple(
        Option(*record)
        for record in records
        if record is not None
        and record[1]
        and (context.parent is None or "--help" not in record[0])
    )
    paragraphs, _ = _texts(command.help or "")
    _, examples = _texts(command.epilog or "")
    return Entry(command.name or "", usage, paragraphs, options, examples)


def _texts(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a help text's filled paragraphs, and the lines of those that are not to be filled."""
    filled, raw = [], []
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        if paragraph.startswith(_RAW):
            lines = paragraph.removeprefix(_RAW).strip("\n").splitlines()
            raw += [
                line.removeprefix("  ") for line in lines if not re.fullmatch(r"Examples?:", line)
            ]
        elif paragraph:
            filled.append(" ".join(paragraph.split()))
    return tuple(filled), tuple(raw)


def _kinds(kind: type[CertfsError]) -> Iterator[type[CertfsError]]:
    for derived in kind.__subclasses__():
        yield derived
        yield from _kinds(derived)


def _joined(paragraphs: tuple[str, ...]) -> list[str]:
    return "\n\n".join(paragraphs).splitlines()


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _options_table(entry: Entry) -> list[str]:
    rows = [f"| `{_cell(one.written)}` | {_cell(one.text)} |" for one in entry.options]
    return ["| option | |", "|---|---|", *rows] if rows else []


def _roff(text: str) -> str:
    """Escape a line for man(7)."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{escaped}" if escaped.startswith((".", "'")) else escaped


def _roff_options(entry: Entry) -> list[str]:
    lines = []
    for one in entry.options:
        lines += [".TP", f".B {_roff(one.written)}", _roff(one.text)]
    return lines


if __name__ == "__main__":
    from certfs.cli import group as _group

    if sys.argv[1:] == ["man"]:
        with open("docs/config.md", encoding="utf-8") as _page:
            sys.stdout.write(man_page(_group, _page.read()))
    else:
        sys.stdout.write(markdown(_group))
