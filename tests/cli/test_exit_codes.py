"""Tests that an exit code means one thing, whichever command answers with it."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from certfs.cli import COMMANDS, failures, group
from certfs.cli.reference import collect, exit_codes
from certfs.errors import CertfsError, from_os_error
from certfs.identity.paths import HostPaths
from tests.support.identity import call_certfs
from tests.support.installed import PACKAGE
from tests.support.mounts import certfs_program, need_namespaces, need_program_for_all, need_root
from tests.support.openssl import Pair

READING: list[list[str]] = [
    ["certificate-show", "STORE/xensource/xapi-ssl.pem"],
    ["certificate-show", "STORE/xensource/not-there.pem"],
    ["check", "--store", "STORE"],
    ["host-get-server-certificate", "--store", "STORE"],
    ["list", "--store", "STORE"],
]
CHANGING: list[list[str]] = [
    ["host-refresh-server-certificate", "--store", "STORE"],
    ["host-refresh-server-certificate", "--finish", "--store", "STORE"],
    ["host-server-certificate-install", "--certificate", "C", "--private-key", "K", "--store", "STORE"],
    ["pool-install-ca-certificate", "C", "--store", "STORE"],
    ["pool-uninstall-ca-certificate", "there.pem", "--store", "STORE"],
    ["repair", "--store", "STORE"],
    ["reset-server-certificate", "--store", "STORE"],
    ["gencert", "STORE/xensource/new.pem", "default"],
    ["export", "STORE/stunnel/xapi-pool-ca-bundle.pem", "--output", "STORE/stunnel/out.pem"],
    ["install-units", "--directory", "STORE/units"],
]  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_wrong_command_line_is_2(name: str) -> None:
    """Every command answers 2 to an option that it does not have."""
    assert call_certfs(name, "--no-such-option").returncode == 2


@pytest.mark.parametrize("number", ["nan", "inf", "-1", "x"])
def test_what_is_no_number_of_seconds_is_a_wrong_command_line(number: str) -> None:
    """Every option that takes a number takes a finite one that is not negative: else 2, and no bug."""
    found = []
    for name in COMMANDS:
        command = group.get_command(click.Context(group), name)
        subcommands = (
            command.commands.items() if isinstance(command, click.Group) else [("", command)]
        )
        for below, one in subcommands:
            for option in one.params if one else ():
                if isinstance(option.type, click.types.FloatParamType):
                    done = call_certfs(name, *filter(None, [below]), option.opts[0], number)
                    assert done.returncode == 2, done.stderr
                    assert f"Invalid value for '{option.opts[0]}'" in done.stderr
                    found.append(option.name)
    assert len(found) >= 4


def test_every_error_s_code_is_in_the_reference() -> None:
    """No two kinds of errors share a code, and the documentation lists each."""
    collect(group)
    page = (Path(__file__).parents[2] / "docs/cli.md").read_text()
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    assert listed == {code.code for code in exit_codes()}


@pytest.mark.parametrize(
    "code,exit_code",
    [
        ("EACCES", 10),
        ("EPERM", 10),
        ("EROFS", 11),
        ("ENOSPC", 12),
        ("EDQUOT", 12),
        ("EIO", 13),
        ("EMFILE", 13),
        ("ENOTCONN", 9),
        ("ENOENT", 4),
        ("ELOOP", 4),
    ],
)
def test_condition_of_the_system_has_its_code(code: str, exit_code: int) -> None:
    """What the system answers decides the code, and the message names the file and says what to do."""
    import errno  # noqa: PLC0415 - for this table alone

    number = getattr(errno, code)
    error = from_os_error("/x/y", OSError(number, os.strerror(number)))
    assert (error.exit_code, error.message) == (exit_code, f"/x/y: {os.strerror(number)}")
    assert error.advice


def test_bug_is_70(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An unexpected exception is called a bug, with the place of its traceback, and has a code of its own."""

    @click.group()
    def broken() -> None:
        raise RuntimeError("boom")

    @broken.command()
    def list() -> None:  # noqa: A001 - the name on the command line
        pass

    monkeypatch.setattr("sys.argv", ["certfs", "list"])
    assert failures.run(broken) == 70
    said = capsys.readouterr().err
    assert said.startswith("certfs: a bug in certfs: RuntimeError: boom: please report it")
    file = re.search(r"traceback in (\S+\.txt)", said)
    assert file is not None
    assert "RuntimeError: boom" in Path(file[1]).read_text()
    Path(file[1]).unlink()


# --- the same condition, whichever command meets it ---------------------------------------------------------


@pytest.fixture
def given(host: HostPaths, server: Pair, authority: Pair) -> dict[str, str]:
    """Give what the placeholders stand for, readable by everybody; the host has something to mend."""
    assert host.root is not None
    shutil.copy(authority.certificate, host.certs / "there.pem")
    (host.xensource / "xapi-ssl.pem").chmod(0o644)
    for name, file in (("C", server.certificate), ("K", server.key)):
        shutil.copy(file, host.root / f"{name}.pem")
    return {
        "STORE": str(host.root),
        "C": str(host.root / "C.pem"),
        "K": str(host.root / "K.pem"),
    }


def _filled(words: list[str], given: dict[str, str]) -> list[str]:
    return [re.sub(r"\b(STORE|C|K)\b", lambda m: given[m[1]], word) for word in words]


def _code(done: subprocess.CompletedProcess[str]) -> int:
    """Return the exit code of what ended with one clear line."""
    assert "Traceback" not in done.stderr, done.stderr
    assert "bug" not in done.stderr, done.stderr
    assert done.stderr.startswith("certfs: "), done.stderr
    return done.returncode


@pytest.mark.parametrize("words", [*READING, *CHANGING], ids=" ".join)
def test_lack_of_rights_is_10(given: dict[str, str], words: list[str]) -> None:
    """A user who may not read or write the files is told so, and not that they are broken."""
    need_root()
    need_program_for_all()
    store = Path(given["STORE"])
    place = Path("/tmp") / f"certfs-test-rights-{os.getpid()}"
    shutil.copytree(store, place, symlinks=True)
    try:
        place.chmod(0o755)
        (place / "K.pem").chmod(0o644)
        for directory in ("xensource", "stunnel"):
            (place / directory).chmod(0o700)
        moved = {name: value.replace(str(store), str(place)) for name, value in given.items()}
        done = subprocess.run(
            [
                "setpriv",
                "--reuid=65534",
                "--clear-groups",
                certfs_program(),
                *_filled(words, moved),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        shutil.rmtree(place)
    assert _code(done) == 10, done.stderr


def _on(
    options: str, words: list[str], given: dict[str, str], prepare: str
) -> subprocess.CompletedProcess[str]:
    """Run a command on a copy of the store in a small file system of its own."""
    need_root()
    need_namespaces()
    script = (
        f'set -e; cp -a "$1" "$1.copy"; mount -t tmpfs -o {options} none "$1"; cp -a "$1.copy/." "$1"; '
        f'{prepare}; store=$1; shift; exec "$@"'
    )
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", given["STORE"], certfs_program(), *_filled(words, given)],
        check=False, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("words", [w for w in CHANGING if "--finish" not in w], ids=" ".join)
def test_read_only_file_system_is_11(given: dict[str, str], words: list[str]) -> None:
    """A command that has to write says that the file system is read-only, and nothing of corruption or rights."""
    done = _on("size=1m", words, given, 'mount -o remount,ro "$1"')
    assert _code(done) == 11, done.stderr


@pytest.mark.parametrize(
    "words",
    [w for w in CHANGING if not {"--finish", "pool-uninstall-ca-certificate"} & set(w)],
    ids=" ".join,
)
def test_full_file_system_is_12(given: dict[str, str], words: list[str]) -> None:
    """A command that finds no room says so."""
    fill = 'cat /dev/zero > "$1/fill" 2>/dev/null || :'
    done = _on("size=256k", words, given, fill)
    assert _code(done) == 12, done.stderr


def test_json_has_the_exit_code(given: dict[str, str]) -> None:
    """What a program reads in the object is the code that the command ends with."""
    done = call_certfs(
        "pool-uninstall-ca-certificate", "none.pem", "--json", "--store", given["STORE"]
    )
    assert json.loads(done.stdout)["exit_code"] == done.returncode == 32


def test_kinds_of_errors_have_codes_of_their_own() -> None:
    """No error that is raised is without a code of its own."""
    collect(group)
    assert [kind.__name__ for kind in _leaves(CertfsError) if kind.exit_code == 70] == ["BugError"]


def _leaves(kind: type[CertfsError]) -> Iterator[type[CertfsError]]:
    derived = kind.__subclasses__()
    if not derived:
        yield kind
    for one in derived:
        yield from _leaves(one)


def _raised(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Give each error for people that a module makes."""
    kinds = {kind.__name__ for kind in _leaves(CertfsError)}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in kinds:
            yield node.func.id, node


def test_every_error_says_what_to_do() -> None:
    """No error for people is made anywhere without the one thing to do about it."""
    collect(group)
    found = [(path, *raised) for path in PACKAGE.rglob("*.py") for raised in _raised(path)]
    assert len(found) > 50
    silent = [
        f"{path.relative_to(PACKAGE)}:{call.lineno} {name}"
        for path, name, call in found
        if not any(word.arg in {"advice", None} for word in call.keywords)
    ]
    assert silent == []


def test_interrupt_while_the_program_is_loaded_is_no_traceback(tmp_path: Path) -> None:
    """^C before a command has begun ends it as SIGINT ends any program."""
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    # As the command is started, also where it is isolated from PYTHONPATH.
    program = "import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); del sys.argv[0]; "
    program += "runpy.run_path(sys.argv[0], run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path, certfs_program(), "status"],
        check=False,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
