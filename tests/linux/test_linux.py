"""What the supervisor needs of Linux: the mount table as text, processes, the log."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from certfs import procfs
from certfs.linux import mount_table, processes
from certfs.linux.processes import ProcessId
from tests.support import mounts

TABLE = rb"""22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 27 0:40 / /run/certfs/dom0/mount-1 rw - fuse.certfs certfs rw,user_id=0,group_id=0
31 27 0:40 /stunnel /etc/stunnel rw shared:2 - fuse.certfs certfs rw,user_id=0,group_id=0
32 31 0:41 /stunnel /etc/stunnel rw - fuse.certfs certfs rw,user_id=0,group_id=0
33 27 0:40 /stunnel/certs /srv/a\040b\134\011\012\043 rw - fuse.certfs certfs rw,user_id=0,group_id=0
"""


def test_what_is_beneath_another_mount_is_not_detached() -> None:
    """Detaching a device leaves alone what lies beneath another file system: umount would take that one."""
    entries = procfs.parse_mounts(TABLE)
    assert {entry.point for entry in mount_table.outermost(entries, {"0:40"})} == {
        "/run/certfs/dom0/mount-1",
        "/srv/a b\\\t\n#",
    }


def test_of_two_file_systems_at_one_place_the_one_on_top_is_detached_first() -> None:
    """Whoever detaches says which it means, and the one beneath would be refused for ever."""
    entries = procfs.parse_mounts(TABLE)
    found = mount_table.outermost(entries, {"0:40", "0:41"})
    assert [each.device for each in found if each.point == "/etc/stunnel"] == ["0:41"]


def test_a_mount_in_another_namespace_is_found() -> None:
    """A container's bind mount is in no other table than its own; a file system that nobody has mounted is in none."""
    mounts.need_namespaces()
    script = "mount -t tmpfs theirs /mnt && stat --format %d /mnt && exec cat"
    command = ("unshare", "--mount", "--propagation", "private", "sh", "-c", script)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as container:
        assert container.stdin is not None
        assert container.stdout is not None
        number = int(container.stdout.readline())
        device = f"{os.major(number)}:{os.minor(number)}"
        assert device not in {entry.device for entry in procfs.mounts()}
        assert mount_table.mounted_anywhere(device)
        assert not mount_table.mounted_anywhere("0:0")
        container.stdin.close()


def test_a_process_is_not_mistaken_for_another(tmp_path: Path) -> None:
    """A process that has ended is not alive, also when its number is taken again."""
    myself = ProcessId.of(os.getpid())
    assert myself.alive()
    assert not ProcessId(myself.pid, myself.started + 1).alive()
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    waiting = ("/bin/sh", "-c", 'read -r line < "$0"; exit 3', str(gate))
    identity = ProcessId.of(processes.start(waiting, keep=()))
    assert identity.alive()
    gate.write_text("go\n")
    assert identity.ends_within(60)
    assert identity.exit_code(5) == 3
    with pytest.raises(ProcessLookupError):
        ProcessId.of(identity.pid)
    assert processes.reap(identity.pid)
    assert identity.exit_code(0) is None


def test_a_helper_that_does_not_come_back() -> None:
    """What waits for ever in a child process is ended after its time, and errors come back with errno and name."""

    def fail() -> None:
        raise FileNotFoundError(2, "x", "/some/where")

    timeout = processes.in_child(lambda: time.sleep(60), 0.2)
    assert isinstance(timeout, TimeoutError)
    error = processes.in_child(fail, 5)
    assert error is not None
    assert (error.errno, error.filename) == (2, "/some/where")
    assert processes.in_child(lambda: None, 5) is None


def test_how_a_process_ended_is_said() -> None:
    """The log says by which signal or with which status a server ended."""
    assert processes.manner(-signal.SIGSEGV) == "was killed by SIGSEGV"
    assert processes.manner(-40) == "was killed by signal 40"  # of real time: it has no name
    assert processes.manner(3) == "ended unasked with status 3"
    assert processes.manner(None) == "died"
