"""How the tests are laid out: what a reader relies on to find one."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterator
from pathlib import Path

from tests.support.installed import PACKAGE

TESTS = Path(__file__).parent


def imports(module: Path) -> Iterator[str]:
    """Give the dotted name of everything that a module imports."""
    package = ".".join(("tests", *module.relative_to(TESTS).parent.parts))
    for node in ast.walk(ast.parse(module.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def test_no_test_module_imports_another() -> None:
    """What two test modules need is in a module of its own, so that each can be read and run alone."""
    wrong = [
        f"{module.relative_to(TESTS)} imports {name}"
        for module in TESTS.rglob("*.py")
        for name in imports(module)
        if name.startswith("tests.")
        and any(part.startswith("test_") or part == "conftest" for part in name.split("."))
    ]
    assert wrong == []


def test_each_package_has_a_folder_of_tests() -> None:
    """The tests of `certfs/NAME/` are in `tests/NAME/`."""
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    folders = {path.parent.name for path in TESTS.glob("*/test_*.py")}
    assert packages
    assert packages - folders == set()
