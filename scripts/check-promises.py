"""Check docs/promises.md against the tree.

Every promise that any file cites must be defined there. Every promise that is not *planned* must
list test files, and each of those must have a test that names it, in the test's docstring or in the
module's. Prints one line for each fault, and then exits with 1.

    scripts/check-promises.py           check
    scripts/check-promises.py --list    print every test file that names each promise
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROMISES = ROOT / "docs" / "promises.md"
CITATION = re.compile(r"\bI([1-9][0-9]?)\b")
HEADING = re.compile(r"^### I([1-9][0-9]?)\. ")
TEST_FILE = re.compile(r"\]\(\.\./(tests/[^)\s]+\.py)\)")
PLANNED = "*Planned*"
TEXT = {".py", ".sh", ".md", ".toml", ".1", ".service", ".in", ".txt", ".json", ""}


def defined() -> dict[int, str]:
    """Return what docs/promises.md says under each number."""
    sections: dict[int, list[str]] = {}
    current: list[str] | None = None
    for line in PROMISES.read_text(encoding="utf-8").splitlines():
        if heading := HEADING.match(line):
            current = sections.setdefault(int(heading[1]), [])
        elif current is not None:
            current.append(line)
    return {number: "\n".join(lines) for number, lines in sections.items()}


def cited() -> Iterator[tuple[str, int, int]]:
    """Yield file, line and number of every citation in the files that git tracks."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True)
    for name in listed.stdout.decode().split("\0"):
        path = ROOT / name
        if not name or path.suffix not in TEXT or not path.is_file():
            continue
        for number, line in enumerate(
            path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
        ):
            for citation in CITATION.findall(line):
                yield name, number, int(citation)


def named_by_tests(path: Path) -> set[int]:
    """Return the promises that the docstrings of the tests in ``path``, or its own, name."""
    module = ast.parse(path.read_bytes())
    tests = [
        node
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and node.name.lower().startswith("test")
    ]
    docstrings = (ast.get_docstring(node) or "" for node in (module, *tests))
    return (
        {int(number) for text in docstrings for number in CITATION.findall(text)}
        if tests
        else set()
    )


def faults() -> Iterator[str]:
    """Yield a line for everything that does not fit."""
    promises = defined()
    for name, line, number in cited():
        if number not in promises:
            yield f"{name}:{line}: I{number} is not defined in docs/promises.md"
    for number, text in promises.items():
        files = TEST_FILE.findall(text)
        if not files and PLANNED not in text:
            yield f"docs/promises.md: I{number} names no test file and is not planned"
        for file in files:
            path = ROOT / file
            if not path.is_file():
                yield f"docs/promises.md: I{number}: no such file: {file}"
            elif number not in named_by_tests(path):
                yield f"docs/promises.md: I{number}: no test in {file} names it"


def holders() -> Iterator[str]:
    """Yield a line for every promise and test file that names it."""
    named = {path: named_by_tests(path) for path in sorted(ROOT.glob("tests/**/test_*.py"))}
    for number in defined():
        for path, numbers in named.items():
            if number in numbers:
                yield f"I{number} {path.relative_to(ROOT)}"


def main() -> int:
    """Print every fault, or with --list every test file; return the exit status."""
    if sys.argv[1:] == ["--list"]:
        print("\n".join(holders()))
        return 0
    found = list(faults())
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
