"""Tests that docs/operations.md says of the program what is so, beside its recipes, which are run (test_recipes.py)."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from certfs import errors
from certfs.cli import mount_options
from certfs.cli.check import check
from certfs.cli.units import unit_text
from certfs.client.query import Reader, Status
from certfs.identity.certificate_sync import ERASES_ALL_SINCE
from certfs.protocol.report import BundleReport, EventReport
from certfs.protocol.summary import HOST_SUMMARY, BundleSummary, Summary

_DOCS = Path(__file__).parents[2] / "docs"
PAGE = (_DOCS / "operations.md").read_text()


def _names(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


def _section(title: str) -> str:
    found = re.search(rf"^#+ {title}\n(.*?)(?=^#|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, title
    return found[1]


def _table(header: str) -> dict[str, str]:
    """Return the rows of a table by the names in their first cells."""
    found = re.search(rf"^\| {header} \|[^|]*\|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found is not None, header
    rows = [line.strip("| ").split(" | ", 1) for line in found[1].splitlines()]
    return {name: row[1] for row in rows for name in re.findall(r"`([^`]+)`", row[0])}


@pytest.mark.parametrize(
    "header,kind",
    [("key of the summary", Summary), ("key", Status), ("key of a bundle", BundleReport)],
)
def test_every_key_of_the_status_is_explained(header: str, kind: type) -> None:
    """The page has a row for each key, and none for one that there is not."""
    assert set(_table(header)) == _names(kind)


@pytest.mark.parametrize(
    "header,row,kind",
    [
        ("key of the summary", "bundles", BundleSummary),
        ("key", "events", EventReport),
        ("key", "notify", Reader),
    ],
)
def test_every_key_below_a_row_is_named(header: str, row: str, kind: type) -> None:
    """What a row says of objects names each of their keys."""
    assert _names(kind) <= set(re.findall(r"`(\w+)`", _table(header)[row]))


def test_the_path_of_the_summary_is_the_program_s() -> None:
    """Programs read it there."""
    assert f"`{HOST_SUMMARY}` for the host's directories" in PAGE


def test_the_boot_order_is_the_unit_s() -> None:
    """The page names what the unit starts before, and how often systemd tries."""
    unit = unit_text("/usr/bin/certfs")
    order = _section("Boot order")
    named = re.findall(
        r"`([\w@.-]+\.(?:service|path))`", order.partition("`certfs install-units`")[0]
    )
    before = " ".join(re.findall(r"^Before=(.*)$", unit, re.MULTILINE)).split()
    assert sorted(named) == sorted(before)
    assert "after ten failed starts in two minutes" in order
    assert {"StartLimitIntervalSec=120", "StartLimitBurst=10"} <= set(unit.splitlines())


def test_what_is_not_tried_again_is_what_the_page_says() -> None:
    """A mistake of the configuration, a missing directory, another instance, lack of rights: nothing else."""
    assert "for its configuration or a missing directory is not tried again" in PAGE
    kinds = (
        errors.ConfigError,
        errors.StoreError,
        errors.MountpointError,
        errors.AlreadyRunningError,
        errors.PrivilegeError,
    )
    codes = {2, *(kind.exit_code for kind in kinds)}
    (found,) = re.findall(r"^RestartPreventExitStatus=(.*)$", unit_text("/x"), re.MULTILINE)
    assert set(map(int, found.split())) == codes


def test_every_mount_option_of_the_page_is_taken() -> None:
    """What the table names is understood, what it does not is an error there as well."""
    found = re.search(r"^\| option \| \|\n\|---\|---\|\n((?:\|.*\n)+)", PAGE, re.MULTILINE)
    assert found is not None
    words = [
        word
        for line in found[1].splitlines()
        for word in re.findall(r"`([^`]+)`", line.split("|")[1])
    ]
    assert len(words) > 15
    for word in words:
        mount_options.parse(word.replace("…", "x").replace("=FILE", "=x"))
    with pytest.raises(mount_options.MountOptionError):
        mount_options.parse("no_such_word")


def test_exit_codes_of_the_monitoring_recipe_are_those_of_check() -> None:
    """The words beside the command are those of its own help."""
    assert "exit code 0 fine, 1 warning, 2 critical" in _section("Monitoring")
    said = check.help or ""
    assert all(
        part in said for part in ("0: fine.", "1: something was left out", "2: the host's own")
    )


def test_the_release_that_replaces_directories_is_the_one_that_the_program_knows() -> None:
    """What the table of releases says of a sync is what pool-certificate-sync decides by."""
    releases = _section("Which release of the platform has what")
    since = ".".join(map(str, ERASES_ALL_SINCE))
    (row,) = [line for line in releases.splitlines() if "replaces every directory" in line]
    assert f"{since} and later" in row
    (before,) = [
        line for line in releases.splitlines() if "copies CAs and revocation lists by name" in line
    ]
    assert f"to {ERASES_ALL_SINCE[0]}.{ERASES_ALL_SINCE[1] - 1} " in before
