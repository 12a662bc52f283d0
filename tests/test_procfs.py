"""The kernel's tables, whatever their users put into them."""

from __future__ import annotations

import os
import resource
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from certfs import procfs
from certfs.procfs import Entry, is_ours, parse_mounts, parse_stat, top_at

NUMBERS = st.integers(0, 2**31)
BYTES = st.binary(min_size=1, max_size=60).filter(lambda name: b"\0" not in name)
SEPARATORS = [b"\r", b"\x0b", b"\x0c", b"\x1c", b"\x85", b"\xc2\x85", b"\xc2\xa0", b"\xe2\x80\xa8"]
"""What a lenient reader takes for the end of a line or of a field."""
NAMES = st.one_of(
    BYTES, st.lists(st.sampled_from([*SEPARATORS, b" - ", b"1", b"\xff", b"/"])).map(b"".join)
).filter(bool)
DEVICES = st.tuples(st.integers(0, 4095), st.integers(0, 2**20)).map(
    lambda pair: f"{pair[0]}:{pair[1]}"
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    """Mounts as any user can make them."""
    kind = "fuse." + os.fsdecode(draw(NAMES))
    place = "/" + os.fsdecode(draw(NAMES))
    root = "/" + os.fsdecode(draw(NAMES))
    return Entry(
        draw(NUMBERS), draw(NUMBERS), draw(DEVICES), root, place, kind, owner=draw(NUMBERS)
    )


def escaped(text: str, *, hashes: bool = False) -> bytes:
    """Return a name as the kernel writes it (seq_path, mangle: fs/proc_namespace.c)."""
    special = b" \t\n\\" + (b"#" if hashes else b"")
    return b"".join(
        b"\\%03o" % byte if byte in special else bytes((byte,)) for byte in os.fsencode(text)
    )


def line_of(entry: Entry, *, source: str = "x", optional: bytes = b"") -> bytes:
    """Return the line of the mount table that the kernel writes for a mount."""
    before = b"%d %d %s %s %s rw,nosuid%s - " % (
        entry.mount_id,
        entry.parent_id,
        entry.device.encode(),
        escaped(entry.root),
        escaped(entry.point),
        optional,
    )
    after = b"%s %s rw,user_id=%d,group_id=0\n" % (
        escaped(entry.kind, hashes=True),
        escaped(source, hashes=True),
        entry.owner or 0,
    )
    return before + after


@given(mounts=st.lists(entries()), source=NAMES, optional=st.sampled_from([b"", b" shared:1"]))
@example(mounts=[], source=b"a", optional=b"")
def test_a_mount_table_says_what_the_kernel_means(
    mounts: list[Entry], source: bytes, optional: bytes
) -> None:
    """Whatever bytes users choose for mountpoints, types and sources: nothing else is read than what is mounted."""
    table = b"".join(
        line_of(entry, source=os.fsdecode(source), optional=optional) for entry in mounts
    )
    assert parse_mounts(table) == tuple(mounts)


@given(raw=st.binary(max_size=400))
@example(raw=b"1 2 0:1 / / rw - fuse.certfs \n")
@example(raw=b"1 2 0:1 / /\\9 rw - fuse.\xff x rw")
@example(raw=b"\xd9\xa1 2 0:1 / / rw - fuse x rw")
def test_no_table_is_too_strange(raw: bytes) -> None:
    """Bytes of any form are read without an exception."""
    parse_mounts(raw)
    parse_stat(raw)
    procfs.parse_credentials(raw)
    procfs.parse_ipv6(raw)
    procfs.parse_tcp(raw)


@given(name=BYTES, groups=st.frozensets(NUMBERS, min_size=1))
@example(name=b"a\rGroups:\t0 27", groups=frozenset({5}))
@example(name=b"\xff", groups=frozenset({5}))
def test_a_program_cannot_name_its_groups(name: bytes, groups: frozenset[int]) -> None:
    """The groups of a process are those that the kernel gives it, whatever it calls itself."""
    # The kernel escapes line feeds and backslashes in it, and nothing else (proc_task_name in fs/proc/array.c).
    shown = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n")
    numbers = b" ".join(b"%d" % group for group in groups)
    ids = b"Uid:\t0\t1\t2\t3\nGid:\t4\t5\t6\t7\n"
    status = b"Name:\t%s\n%sGroups:\t%s \nCapEff:\t00000000000000ff\n" % (shown, ids, numbers)
    found = procfs.parse_credentials(status)
    assert found == procfs.Credentials(3, 7, tuple(groups), 0xFF)


@given(name=BYTES, started=NUMBERS, state=st.sampled_from("RSDZTtX"))
@example(name=b"a) Z 1 ", started=1, state="S")
@example(name=b"a\nb) R", started=1, state="T")
def test_a_program_cannot_name_its_state(name: bytes, started: int, state: str) -> None:
    """State and start of a process are those that the kernel says, whatever it calls itself."""
    rest = [b"0"] * 49
    rest[18] = b"%d" % started
    raw = b"7 (%s) %s %s\n" % (name, state.encode(), b" ".join(rest))
    assert parse_stat(raw) == (state, started, 0)


@contextmanager
def process_called(name: bytes) -> Iterator[int]:
    """Run a process that calls itself ``name`` (prctl(2), PR_SET_NAME)."""
    program = (
        "import ctypes, sys, os\n"
        "ctypes.CDLL(None).prctl(15, os.fsencode(sys.argv[1]), 0, 0, 0)\n"
        "print(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", program, os.fsdecode(name)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.communicate()


@pytest.mark.parametrize("name", [b"a) Z 1\nb", b"\xff\r", b"\rGroups:\t77 ", b"plain"])
def test_a_real_process_is_read(name: bytes) -> None:
    """What this kernel says of a process with a strange name is understood."""
    with process_called(name) as pid:
        stat = procfs.stat_of(pid)
        assert stat is not None
        assert stat.state in "RSD"
        assert procfs.command_of(pid) == name
        found = procfs.credentials_of(pid)
        assert found is not None
        assert (found.uid, found.groups) == (os.geteuid(), tuple(os.getgroups()))


def test_what_cannot_be_known_is_said_to_be_unknown() -> None:
    """A process that is not there has no state, no groups, no name and no login."""
    nobody = 2**31 - 1
    assert procfs.stat_of(nobody) is None
    assert procfs.credentials_of(nobody) is None
    assert procfs.listening_sockets(nobody) == ()
    assert procfs.command_of(nobody) == b""
    assert procfs.login_of(nobody) is None


def test_this_host_is_read() -> None:
    """The root directory is on a mount that is in the table, with the number that its descriptor has."""
    root = os.open("/", os.O_PATH)
    try:
        mount = procfs.mount_of(root)
    finally:
        os.close(root)
    assert mount is not None
    assert mount in procfs.mounts()
    assert top_at(procfs.mounts(), "/") is not None


TABLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /run/certfs/dom0/mount-1 rw - fuse.certfs certfs rw,user_id=0,group_id=0
31 27 0:40 /stunnel /etc/stunnel rw shared:2 - fuse.certfs certfs rw,user_id=0,group_id=0
32 31 0:41 /stunnel /etc/stunnel rw - fuse.certfs certfs rw,user_id=0,group_id=0
33 27 0:40 /stunnel/certs /srv/a\040b\134\011\012\043 rw - fuse.certfs  rw,user_id=4711,group_id=0
34 27 0:44 / /srv/b rw - fuse.certfs user_id=0\054user_id=0,x rw,user_id=4711
35 27 0:45 / /srv/c rw - ext4.certfs x rw,user_id=0
"""


def test_the_mount_table_is_read() -> None:
    """Device, root, place (with its escapes), type and owner come out of /proc/self/mountinfo (proc(5))."""
    table = parse_mounts(TABLE)
    assert [entry.device for entry in table][:6] == [
        "0:21",
        "254:0",
        "0:40",
        "0:40",
        "0:41",
        "0:40",
    ]
    assert table[5].point == "/srv/a b\\\t\n#"
    assert table[5].root == "/stunnel/certs"
    assert table[2].kind == "fuse.certfs"


def test_who_mounted_something_is_not_for_its_user_to_say() -> None:
    """A mount is ours if root or this user made it, whatever its type and source pretend."""
    table = parse_mounts(TABLE)
    assert [is_ours(entry) for entry in table] == [False, False, True, True, True] + [
        os.geteuid() == 4711
    ] * 2 + [False]


def test_the_mount_in_view_is_the_one_on_top() -> None:
    """Of several mounts at a place, the one that no other covers is in view."""
    table = parse_mounts(TABLE)
    top = top_at(table, "/etc/stunnel")
    assert top is not None
    assert top.device == "0:41"
    assert top_at(table, "/etc") is None


def test_a_line_of_many_megabytes_costs_little(tmp_path: Path) -> None:
    """I18: whoever moves a directory with a mount deep into others chooses how long its line is, not what it costs."""
    table = tmp_path / "mountinfo"
    long = TABLE.replace(b"/srv/c", b"/\\040" * (4 << 20))
    table.write_bytes(long + TABLE)
    tracemalloc.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(procfs, "MOUNTINFO", str(table))
        found = procfs.mounts()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1 << 20
    assert [entry.device for entry in found] == [entry.device for entry in parse_mounts(TABLE)] * 2
    assert [is_ours(entry) for entry in found] == [
        is_ours(entry) for entry in parse_mounts(TABLE)
    ] * 2


def test_listening_sockets_are_found() -> None:
    """Address, port and inode of a socket that waits for connections come out of /proc/net/tcp."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        (found,) = (
            each
            for each in procfs.listening_sockets(os.getpid())
            if each.port == server.getsockname()[1]
        )
        assert os.readlink(f"/proc/self/fd/{server.fileno()}") == f"socket:[{found.inode}]"
        assert int.from_bytes(found.address) == int.from_bytes(
            socket.inet_aton("127.0.0.1"), sys.byteorder
        )


def test_no_descriptor_is_not_no_process() -> None:
    """A process that cannot be looked at for want of descriptors is not taken for dead."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            procfs.stat_of(os.getpid())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
