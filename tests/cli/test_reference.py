"""Tests of the reference: what is written about the command line is what the command line says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from certfs.cli import group
from certfs.cli.reference import collect, exit_codes, man_page, markdown
from certfs.identity.paths import HostPaths
from tests.support.identity import run_certfs
from tests.support.mounts import certfs_program, missing
from tests.support.openssl import Pair

_DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    "name,form,render", [("cli.md", "markdown", markdown), ("certfs.1", "man", man_page)]
)
def test_committed_reference_is_the_real_one(name: str, form: str, render: object) -> None:
    """The committed files are what the commands say of themselves now."""
    assert callable(render)
    advice = f"run: python -m certfs.cli.reference {form} > docs/{name}"
    assert (_DOCS / name).read_text() == render(group), advice


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
