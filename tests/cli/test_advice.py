"""Tests that each command which an error, a finding or a log line advises can be typed as it stands there."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from certfs.cli import COMMANDS, group
from certfs.cli.pool import pool
from certfs.identity.paths import HostPaths
from tests.support.identity import run_certfs
from tests.support.installed import PACKAGE
from tests.support.openssl import Pair

_WORD = r"--[a-z-]*|[A-Z][A-Z./_-]*|\{\w+\}|xapi:pool"
_NAME = "|".join([*(f"pool {name}" for name in pool.commands), *COMMANDS])
_COMMAND = re.compile(rf"certfs ((?:{_NAME})(?![\w-])(?: (?:{_WORD})(?!\w))*)")
"""A command and what follows of options and of words that stand for something; prose ends it."""


def _text(node: ast.AST) -> str:
    """Return what an expression says, with X for what it puts in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(map(_text, values))
        case ast.FormattedValue(value=ast.Call() as inner) if _of_command(inner):
            return _text(inner)
        case ast.Call(args=[_, words]) if _of_command(node):
            return f"certfs {_text(words)} --store X"
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
    return "X"


def _of_command(node: ast.AST) -> bool:
    """Whether it is a call of `certfs.identity.paths.command`."""
    return (
        isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "command"
    )


def _said(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Give every text of a module but docstrings, with its line."""
    inside: set[ast.AST] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            inside.add(body[0].value)
        if isinstance(node, ast.keyword) and node.arg == "epilog":
            inside.update(ast.walk(node))  # examples, with files of their own
        if isinstance(node, ast.Constant | ast.JoinedStr) or _of_command(node):
            if node not in inside and isinstance(node, ast.expr):
                yield node.lineno, _text(node)
            inside.update(ast.walk(node))


def _advised() -> list[tuple[str, str]]:
    found = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for line, text in _said(ast.parse(path.read_text())):
            for command in _COMMAND.findall(text):
                found.add((f"{path.relative_to(PACKAGE)}:{line}", command))
    return sorted(found)


@pytest.mark.parametrize("place,line", _advised())
def test_advised_command_is_taken(place: str, line: str) -> None:
    """Its options exist, it has every argument that it must have, and none that it does not take."""
    name, *words = shlex.split(line)
    command = group.get_command(click.Context(group), name)
    if isinstance(command, click.Group) and words:
        command = command.get_command(click.Context(command), words.pop(0))
    assert command is not None
    if not words or words == ["--help"]:
        return  # only named
    context = click.Context(command, info_name=line)
    try:
        given, left, _ = command.make_parser(context).parse_args(words)
    except click.UsageError as error:
        pytest.fail(f"{place}: certfs {line}: {error.format_message()}")
    missing = [one.name for one in command.params if one.required and not given.get(one.name or "")]
    assert (missing, left) == ([], []), f"{place}: certfs {line}"


def test_advice_is_found_where_it_is_given() -> None:
    """The extraction sees plain texts, composed ones and those of the host's own command line."""
    commands = {command for _, command in _advised()}
    assert {"pool leave", "repair --store X", "unmount"} <= commands
    assert len(commands) > 30


# --- advice that is put together while it is given


def _advised_by(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return the words of the command at the end of what was said."""
    words = shlex.split(done.stderr.strip().rpartition(": certfs ")[2])
    assert words, done.stderr
    return words


@pytest.mark.parametrize("options", [[], ["--purpose", "general"], ["--purpose", "p", "--pinned"]])
def test_what_is_advised_where_a_name_is_taken_makes_room(
    host: HostPaths, authority: Pair, options: list[str]
) -> None:
    """The command that removes it is of the same store, for the same purpose."""
    store = ["--store", str(host.root)]
    install = [
        "pool-install-ca-certificate",
        str(authority.certificate),
        "--name",
        "x.pem",
        *options,
        *store,
    ]
    assert run_certfs(*install).returncode == 0
    taken = run_certfs(*install)
    assert taken.returncode == 31
    assert run_certfs(*_advised_by(taken)).returncode == 0
    assert run_certfs(*install).returncode == 0


def test_findings_of_a_store_with_a_blank_in_its_name_advise_what_can_be_typed(
    tmp_path: Path,
) -> None:
    """Each command of each finding names the store as a shell needs it."""
    store = tmp_path / "my store"
    (store / "xensource").mkdir(parents=True)
    (store / "stunnel").mkdir()
    checked = run_certfs("check", "--store", str(store), "--json")
    mends = [each["mend"] for each in json.loads(checked.stdout)["findings"]]
    found = [
        command
        for mend in mends
        for command in re.findall(r"certfs [a-z-]+.*? --store '.*?'", mend)
    ]
    assert len(found) >= 4
    assert all(shlex.split(command)[-2:] == ["--store", str(store)] for command in found)


def test_answer_of_a_refresh_is_json_whatever_its_command_says(host: HostPaths) -> None:
    """What --reload's command writes on its output is beside the answer, not in it."""
    done = run_certfs(
        "host-refresh-server-certificate", "--reload", "echo reloaded", "--overlap", "0", "--json",
        "--store", str(host.root),
    )  # fmt: skip
    assert json.loads(done.stdout)["stage"] == "idle", done.stderr
    assert "reloaded\n" in done.stderr
