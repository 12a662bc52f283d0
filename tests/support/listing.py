"""What `certfs list` and `certfs check` say, as values.

Owns running the two commands and reading their JSON.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.support.forked import run_forked
from tests.support.tree import Tree


@dataclass(frozen=True, slots=True)
class Row:
    """One certificate, file or block of `certfs list --json`."""

    bundle: str
    source: str
    sha256: str | None
    included: bool
    reason: str | None


def rows(*arguments: str) -> list[Row]:
    """Run `certfs list --json` with these arguments."""
    return [
        Row(
            bundle=entry["bundle"],
            source=entry["source"],
            sha256=entry["sha256"],
            included=entry["included"],
            reason=entry["reason"],
        )
        for entry in json.loads(_run("list", "--json", *arguments))
    ]


def rows_of(tree: Tree) -> list[Row]:
    """List a mount."""
    return rows(str(tree.root))


def text_of(tree: Tree) -> str:
    """Give what a person sees."""
    return _run("list", str(tree.root))


def check(tree: Tree) -> tuple[int, Any]:
    """Run `certfs check --json`; give its exit code and its JSON."""
    ended = run_forked(["check", "--json", tree.root])
    return ended.returncode, json.loads(ended.stdout)


def _run(command: str, *arguments: str) -> str:
    ended = run_forked([command, *arguments], timeout=120)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
