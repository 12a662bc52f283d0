"""Tests of the reference: what is written about the command line is what the command line says."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from certfs.cli import COMMANDS, group, manual
from certfs.cli.reference import collect, exit_codes, man_page, markdown
from certfs.config import known_keys
from certfs.identity.paths import HostPaths
from tests.support.identity import run_certfs
from tests.support.installed import PACKAGE
from tests.support.mounts import certfs_program, missing
from tests.support.openssl import Pair

_DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_committed_reference_is_the_real_one() -> None:
    """The committed files are what the commands say of themselves now."""
    manual_page = man_page(group, (_DOCS / "config.md").read_text())
    for name, form, text in (
        ("cli.md", "markdown", markdown(group)),
        ("certfs.1", "man", manual_page),
    ):
        advice = f"run: python -m certfs.cli.reference {form} > docs/{name}"
        assert (_DOCS / name).read_text() == text, advice


def test_every_command_says_what_it_does_and_has_an_example() -> None:
    """Each command of the program has a sentence and an example, and each option a text."""
    for entry in collect(group):
        assert entry.paragraphs, entry.name
        assert entry.examples, entry.name
        assert all(option.text for option in entry.options), entry.name


def test_man_page_is_without_faults() -> None:
    """The formatter of manual pages has nothing to complain of."""
    if shutil.which("groff") is None:
        missing("the program groff")
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", _DOCS / "certfs.1"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == b""
    assert b"does not belong to the certificate" in done.stdout


def test_exit_codes_are_of_one_meaning() -> None:
    """No two kinds of errors share an exit code, and every one has a sentence."""
    codes = exit_codes()
    assert len({code.code for code in codes}) == len(codes)
    assert all(code.meaning.endswith(".") for code in codes)


def _complete(*words: str) -> list[str]:
    done = subprocess.run(
        [certfs_program()],
        check=False,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "_CERTFS_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(("certfs", *words)),
            "COMP_CWORD": str(len(words)),
        },
        timeout=60,
    )
    return re.findall(r"^plain,(.*)$", done.stdout, re.MULTILINE)


def test_shell_completes_commands_and_names(host: HostPaths, server: Pair) -> None:
    """Commands, options and the names of installed certificates are completed."""
    shutil.copy(server.certificate, host.certs / "root.pem")
    assert _complete("pool-uninstall-ca") == ["pool-uninstall-ca-certificate"]
    assert "--dry-run" in _complete("reset-server-certificate", "--d")
    store = ("--store", str(host.root))
    assert _complete("pool-uninstall-ca-certificate", *store, "ro") == ["root.pem"]


def test_completion_script_is_accepted_by_the_shell() -> None:
    """What is printed for bash is a script that bash can read."""
    script = run_certfs("completion", "bash").stdout
    assert "_CERTFS_COMPLETE" in script
    done = subprocess.run(["bash", "-n"], input=script, check=False, text=True, timeout=60)
    assert done.returncode == 0


# --- the documentation and the program ---------------------------------------------------------------


def test_every_key_of_the_configuration_is_documented() -> None:
    """docs/config.md has a row for each key that the program takes, and for no other; the man page has them all."""
    keys = {key.name for key in manual.configuration_keys((_DOCS / "config.md").read_text())}
    assert keys == known_keys()
    page = (_DOCS / "certfs.1").read_text().replace("\\-", "-")
    assert all(f".B {key}\n" in page for key in keys)


def test_every_variable_of_the_environment_is_documented() -> None:
    """Each variable that the program reads is in the man page."""
    named = " ".join(name for name, _ in manual.ENVIRONMENT)
    sources = "".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    read = set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", sources))
    read |= set(re.findall(r"\"([A-Z_]+)\" in os\.environ", sources))
    assert "NOTIFY_SOCKET" in read
    assert read <= set(re.split("[, ]+", named)) | {"PATH"}


def _documented_lines() -> list[tuple[str, str]]:
    """Give every line in a code block of the documentation that begins with certfs, with its page."""
    pages = [_DOCS.parent / "README.md", *sorted(_DOCS.glob("*.md"))]
    found = []
    for page in pages:
        blocks = re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        for line in "\n".join(blocks).splitlines():
            command = re.match(r"\s*(?:\$ )?(certfs .*)", line)
            if command:
                found.append((page.name, command[1]))
    return found


@pytest.mark.parametrize("page,line", _documented_lines())
def test_command_lines_of_the_documentation_are_understood(page: str, line: str) -> None:
    """Each line of the documentation that calls certfs names a command and options that there are."""
    assert page
    # What follows is a comment, a pipe, another command or its input.
    words = shlex.split(re.split(r" {2,}|\s[|>#;]|\s&&|…|\\$", line)[0])
    name, rest = words[1], words[2:]
    if name.startswith(("-", "[")):
        return
    context = click.Context(group, info_name="certfs")
    command = group.get_command(context, name)
    assert command is not None, line
    if isinstance(command, click.Group) and rest and re.match("[a-z]", rest[0]):
        command = command.get_command(context, rest[0])
        assert command is not None, line
    rest = rest[: rest.index("--")] if "--" in rest else rest
    options = {
        option
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    used = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert used <= options | {"--help"}, line


def test_commands_named_in_the_documentation_exist() -> None:
    """No page names a command that the program does not have."""
    known = set(COMMANDS)
    for page in [_DOCS.parent / "README.md", *_DOCS.glob("*.md")]:
        for name in re.findall(r"`certfs ([a-z][a-z-]+)", page.read_text()):
            assert name in known, f"{page.name}: certfs {name}"


def test_findings_and_exit_codes_of_the_documentation_are_the_real_ones() -> None:
    """Each name of a finding that the code gives is in the documentation."""
    pages = "".join(path.read_text() for path in _DOCS.glob("*.md"))
    sources = "".join(
        path.read_text()
        for folder in ("identity", "cli")
        for path in (PACKAGE / folder).glob("*.py")
    )
    names = set(re.findall(r"Finding\(\s*[\w.\"]+,\s*\"([A-Z_]+)\"", sources))
    assert len(names) > 15
    missing_names = {
        name for name in names if name not in pages and not _is_abbreviated(name, pages)
    }
    assert missing_names == set()


def _is_abbreviated(name: str, pages: str) -> bool:
    """Whether a table names the finding together with others: `POOL_CERTIFICATE_MISSING`, `_EMPTY`."""
    stem, _, last = name.rpartition("_")
    return f"`_{last}`" in pages and stem in pages
