"""What the janitor's shell makes of the kernel's tables, which hold what any user likes."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from certfs.procfs import Entry, parse_mounts
from certfs.supervisor.janitor import _script

_SCRIPT = _script().decode()
SHELLS = [
    pytest.param(
        shell, marks=pytest.mark.skipif(not shutil.which(shell[0]), reason="not installed")
    )
    for shell in (["dash"], ["bash"], ["busybox", "sh"])
]
STRANGE = bytes(byte for byte in range(1, 256) if byte not in b" \t\n\\/")
"""Every byte that the mount table shows as it is."""
TABLE = b"".join(
    (
        b"30 27 0:40 / /run/mount-1 rw - fuse.certfs certfs rw,user_id=4711,group_id=0\n",
        b"31 27 0:40 /a /" + STRANGE + b" rw shared:1 - fuse.certfs  rw,user_id=0\n",
        b"32 27 0:40 /a /b\\040c\\134\\011\\012%s-e rw - fuse.certfs x rw,user_id=4711,allow_other\n",
        b"33 27 0:41 / /somebody rw - fuse.certfs user_id=4711\\054,user_id=0,x rw,user_id=4712\n",
        b"34 27 0:41 / /r\r30 27 0:40 / /x rw - fuse.\xff\xc2\xa0 x rw,user_id=4712\n",
        b"35 27 254:0 / /plain rw - ext4 /dev/vda rw,user_id=4711\n",
        b"36 27 0:42 / /other rw - fuse.certfs certfs rw,user_id=4711\n",
    )
)


def janitor(shell: list[str], directory: Path, *, said: bytes, before: bytes = b"") -> list[bytes]:
    """Run the janitor's script as user 4711 with `TABLE` as the mount table; return what it unmounted."""
    (directory / "table").write_bytes(before + TABLE)
    program = directory / "unmount"
    program.write_text(f'#!/bin/sh\nprintf "%s\\0" "$1" >>{directory}/unmounted; exit 1\n')
    program.chmod(0o755)
    script = _SCRIPT.replace("/proc/self/mountinfo", str(directory / "table"))
    life = os.open(os.devnull, os.O_RDONLY)
    subprocess.run(
        [*shell, "-c", script, "janitor", program, str(life), "4711"],
        input=said,
        check=True,
        timeout=30,
        pass_fds=(life,),
    )
    os.close(life)
    return (directory / "unmounted").read_bytes().split(b"\0")[:-1]


def is_theirs(entry: Entry, devices: set[str]) -> bool:
    """Whether user 4711, or root, mounted a certfs with one of these device numbers."""
    return entry.device in devices and entry.is_certfs and entry.owner in {0, 4711}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_janitor_reads_the_table_as_the_supervisor_does(
    shell: list[str], tmp_path: Path
) -> None:
    """Whatever shell a host has: what the janitor detaches are the mounts of its devices, under their names."""
    unmounted = janitor(shell, tmp_path, said=b"watch fuse.certfs 0:0 - 0:40 0:41\nfinish\n")
    expected = [entry for entry in parse_mounts(TABLE) if is_theirs(entry, {"0:40", "0:41"})]
    assert len(expected) == 3
    assert [os.fsdecode(point) for point in unmounted] == [entry.point for entry in expected]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_long_line_holds_the_janitor_up_for_nothing(shell: list[str], tmp_path: Path) -> None:
    """I14: plain files come into view although another user's mount has a path of many megabytes."""
    theirs = b"50 27 0:40 / /srv/%s rw - fuse.certfs x rw,user_id=65534\n" % (b"a\\040" * (2 << 20))
    began = time.monotonic()
    unmounted = janitor(
        shell, tmp_path, said=b"watch fuse.certfs 0:0 - 0:40 0:41\nfinish\n", before=theirs
    )
    assert len(unmounted) == 3
    assert time.monotonic() - began < 5


STATE_OF = _SCRIPT[_SCRIPT.index("state_of() {") : _SCRIPT.index("# Whether a server can")]


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("name", [b"a) Z 1", b"a\n1 (b) T 1", b"\xff\r *", b"python"])
def test_the_janitor_knows_the_state_of_a_process(
    shell: list[str], name: bytes, tmp_path: Path
) -> None:
    """A process is what the kernel says of it, whatever it calls itself, and nobody with another start."""
    fields = b" ".join(b"%d" % number for number in range(4, 53))
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_bytes(b"7 (%s) R %s\n" % (name, fields))
    script = STATE_OF.replace("/proc", str(tmp_path))
    for started, state in (("22", b"R"), ("21", b"")):
        command = [*shell, "-c", f"{script}\nstate_of 7 {started}; printf '%s' \"$state\""]
        assert subprocess.run(command, capture_output=True, check=False).stdout == state
