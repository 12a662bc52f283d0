"""Tests of the JSON that commands answer with: each by its schema, and one form for each kind of value."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest

from certfs.cli import COMMANDS, group
from certfs.cli.json_forms import FORMS, schema
from certfs.cli.pool import pool
from certfs.identity.paths import HostPaths
from tests.support.identity import call_certfs
from tests.support.openssl import Pair

_LONG_HEXADECIMAL = re.compile(r"(?i)\b[0-9a-f]{40,}\b|\b(?:[0-9a-f]{2}:){19,}[0-9a-f]{2}\b")
_TIME = re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?\S*")
_PATH_KEYS = {"path", "file", "bundle", "source", "duplicate_of", "output"}


def _has_json(name: str) -> bool:
    of_pool = name.startswith("pool ")
    command = pool.commands[name[5:]] if of_pool else group.get_command(click.Context(group), name)
    assert command is not None
    return any(parameter.name == "as_json" for parameter in command.params)


ANSWERING = sorted(name for name in COMMANDS if _has_json(name))
EXAMPLES: dict[str, list[str]] = {
    "certificate-show": ["SERVER"],
    "check": ["--store", "STORE"],
    "host-get-server-certificate": ["--store", "STORE"],
    "host-refresh-server-certificate": ["--store", "STORE"],
    "host-server-certificate-install": [
        *("--certificate", "SERVER", "--private-key", "KEY"),
        *("--store", "STORE"),
    ],
    "list": ["--store", "STORE"],
    "pool-certificate-list": ["--store", "STORE"],
    "pool-install-ca-certificate": ["AUTHORITY", "--name", "new.pem", "--store", "STORE"],
    "pool-uninstall-ca-certificate": ["there.pem", "--store", "STORE"],
    "repair": ["--store", "STORE"],
    "reset-server-certificate": ["--store", "STORE"],
    "export": ["STORE/stunnel/xapi-pool-ca-bundle.pem", "--output", "STORE/out.pem"],
}
"""What each command is called with here; those that need a mount or XAPI are tried where these are."""
OF_POOLS = {f"pool-{name}" for name in pool.commands if _has_json(f"pool {name}")}
"""Tried where there is a pool."""
ELSEWHERE = {
    "pool-certificate-sync",
    "pool-crl-list",
    "pool-install-crl",
    "pool-uninstall-crl",
    "status",
}


def test_every_command_that_answers_json_has_a_schema() -> None:
    """There is a form for each command with --json, and this module or another one tries it."""
    assert set(FORMS) == {*ANSWERING, *OF_POOLS, "error", "summary"}
    assert {*EXAMPLES, *ELSEWHERE} == set(ANSWERING)


@pytest.mark.parametrize("name", FORMS)
def test_committed_schema_is_the_real_one(name: str) -> None:
    """The schema files in the package are what the types give, and the command prints them."""
    advice = "run: python -m certfs.cli.schemas certfs/cli/schemas"
    file = resources.files("certfs.cli.schemas").joinpath(f"{name}.json")
    assert json.loads(file.read_text()) == schema(name), advice
    assert json.loads(call_certfs("schema", name).stdout) == schema(name)


@pytest.fixture
def words(host: HostPaths, server: Pair, authority: Pair) -> dict[str, str]:
    """Give what the placeholders of the examples stand for; the host has things to list and to find fault with."""
    shutil.copy(authority.certificate, host.certs / "there.pem")
    shutil.copy(authority.certificate, host.certs / "twice.pem")
    (host.certs / "broken.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nx\n")
    (host.certs_pool / "other.new.pem").write_bytes(server.certificate.read_bytes())
    return {
        "STORE": str(host.root),
        "SERVER": str(server.certificate),
        "KEY": str(server.key),
        "AUTHORITY": str(authority.certificate),
    }


def _run(name: str, words: dict[str, str]) -> subprocess.CompletedProcess[str]:
    given = [
        re.sub("STORE|SERVER|KEY|AUTHORITY", lambda m: words[m[0]], one) for one in EXAMPLES[name]
    ]
    return call_certfs(name, *given, "--json")


@pytest.mark.parametrize("name", EXAMPLES)
def test_answer_is_as_its_schema_has_it(name: str, words: dict[str, str]) -> None:
    """What a command answers has every key, no other, and each value in its form; nothing else is on the output."""
    done = _run(name, words)
    answer = json.loads(done.stdout)
    form = FORMS["error"] if isinstance(answer, dict) and "error" in answer else FORMS[name]
    msgspec.convert(answer, form, strict=True)
    assert form is FORMS[name] or name == "host-refresh-server-certificate"
    for key, value in _values(answer):
        if key in _PATH_KEYS and value is not None:
            assert value.startswith("/"), key
        for found in () if key == "serial_number" else _LONG_HEXADECIMAL.findall(str(value)):
            assert re.fullmatch("[0-9a-f]+", found), key
        if key != "pem":
            for found in _TIME.findall(str(value)):
                assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found.rstrip(".,;:)")), key


@pytest.mark.parametrize("name", EXAMPLES)
def test_text_has_the_same_forms(name: str, words: dict[str, str]) -> None:
    """Fingerprints and times are written in text as in JSON; certificate-show has the platform's form beside it."""
    given = [
        re.sub("STORE|SERVER|KEY|AUTHORITY", lambda m: words[m[0]], one) for one in EXAMPLES[name]
    ]
    done = call_certfs(name, *given)
    said = re.sub("-----BEGIN.*?-----END[^\n]*", "", done.stdout + done.stderr, flags=re.DOTALL)
    for found in _LONG_HEXADECIMAL.findall(said):
        assert re.fullmatch("[0-9a-f]+", found) or name == "certificate-show"
    for found in _TIME.findall(said):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found.rstrip(".,;:)"))


def _values(answer: Any, key: str = "") -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - any JSON
    if isinstance(answer, dict):
        for name, value in answer.items():
            yield from _values(value, name)
    elif isinstance(answer, list):
        for value in answer:
            yield from _values(value, key)
    else:
        yield key, answer


@pytest.mark.parametrize("name", ANSWERING)
@pytest.mark.parametrize("mistake", [["--no-such-option"], ["too", "many", "arguments", "here"]])
def test_usage_error_is_json_where_json_was_asked_for(name: str, mistake: list[str]) -> None:
    """A program that asked for JSON gets an object also for a wrong command line, and nothing beside it."""
    done = call_certfs(name, "--json", *mistake)
    answer = msgspec.convert(json.loads(done.stdout), FORMS["error"], strict=True)
    assert (answer.error, answer.exit_code, done.returncode) == ("UsageError", 2, 2)
    assert done.stderr == ""
    assert f"certfs {name} --help" in answer.advice


@pytest.mark.parametrize(
    "words", [["no-such-command", "--json"], ["--no-such-option", "list", "--json"]]
)
def test_unknown_command_is_json_where_json_was_asked_for(words: list[str]) -> None:
    """Also what is no command at all is answered in JSON."""
    done = call_certfs(*words)
    assert json.loads(done.stdout)["exit_code"] == done.returncode == 2


def test_argument_of_another_program_asks_for_nothing(tmp_path: Path) -> None:
    """A --json that belongs to the command of ``detached`` does not make certfs answer JSON."""
    done = call_certfs("detached", "--mountpoint", tmp_path, "--", "tool", "--json")
    assert done.stdout == ""
    assert done.stderr.startswith("certfs: ")
