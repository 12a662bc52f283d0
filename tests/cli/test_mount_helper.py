"""What mount(8) and mount.fuse(8) call certfs with, and what certfs makes of it."""

from __future__ import annotations

import pytest

from certfs.cli.mount_helper import translated

HELPER = "/sbin/mount.fuse.certfs"


@pytest.mark.parametrize(
    "call,said",
    [
        ([HELPER, "/s", "/m", "-o", "rw,config=/c"], ["--quiet"]),
        ([HELPER, "/s", "/m", "-n", "-v", "-o", "rw,config=/c", "-t", "fuse.certfs"], []),
        ([HELPER, "-nvo", "rw,config=/c", "/s", "/m"], []),
        ([HELPER, "/s", "/m", "-o", "rw", "-o", "config=/c", "-N", "/proc/1/ns/mnt"], ["--quiet"]),
        (["certfs", "/s", "/m", "-o", "rw,config=/c"], ["--quiet"]),
    ],
)
def test_the_calls_of_mount(call: list[str], said: list[str]) -> None:
    """Two places and options, in whatever order, are a mount of a store; only -v has it say so."""
    assert translated(call) == ["mount", "--store", "/s", "-o", "rw,config=/c", *said, "--", "/m"]


def test_a_fake_and_sloppy_mount() -> None:
    """-f tries without mounting, -s forgives options that are not known (mount(8))."""
    expected = ["mount", "--store", "s", "--sloppy", "--fake", "--quiet", "--", "/m"]
    assert translated([HELPER, "s", "/m", "-sf"]) == expected


@pytest.mark.parametrize(
    "call",
    [
        ["certfs"],
        ["/usr/bin/certfs", "status", "/m"],
        ["certfs", "unmount", "/m", "-o"],
        ["certfs", "/only-one"],
        ["certfs", "--help"],
    ],
)
def test_any_other_call_is_a_command(call: list[str]) -> None:
    """The command line is what it always was."""
    assert translated(call) is None


def test_a_place_that_is_missing_is_left_to_the_command() -> None:
    """The helper is always a mount; what it lacks is said by `certfs mount`."""
    assert translated([HELPER, "/s"]) == ["mount", "--quiet", "--"]
    assert translated([HELPER, "/s", "/m", "more", "-o"]) == [
        "mount",
        "--store",
        "/s",
        "--quiet",
        "--",
        "/m",
        "more",
    ]
