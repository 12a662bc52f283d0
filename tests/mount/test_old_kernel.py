"""Everything works where the kernel knows no system call that is newer than Linux 4.19 (I12, I14, I17).

And where Python has no function that came with a C library newer than glibc 2.17.

The nightly run has the whole suite under the same filter.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mounts, old_kernel, old_python, pki
from tests.support.host import POOL, Host, host, kill
from tests.support.mounts import wait_until
from tests.support.syscalls import Rename, renameat2

pytestmark = [pytest.mark.mount, pytest.mark.namespace]

_PROGRAM = [sys.executable, str(Path(old_kernel.__file__))]


_NEWER = {
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "open_tree": 428,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "faccessat2": 439,
    "epoll_pwait2": 441,
}
"""Some that Python, the C library and we make where they are there: clone3(2) begins every thread (glibc 2.34)."""
_STATX = 332
_ASK = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for number in map(int, sys.argv[1:]):
    ctypes.set_errno(0)
    libc.syscall(number, 0, 0, 0, 0, 0, 0)
    print(ctypes.get_errno())
"""


def _errors(*numbers: int) -> list[int]:
    """Give what system calls without arguments fail with under the filter."""
    command = [*_PROGRAM, sys.executable, "-c", _ASK, *map(str, numbers)]
    ended = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    return [int(line) for line in ended.stdout.split()]


@pytest.fixture
def old() -> Iterator[Host]:
    """Give a host with an old kernel, on which nothing is mounted yet."""
    if not old_kernel.is_possible():
        pytest.skip("the numbers of system calls are those of x86-64")
    with host() as made:
        for name, identity in POOL.items():
            (made.store.certs_pool / name).write_bytes(identity.pem)
        yield made


def certfs(made: Host, *arguments: str, program: str | Path = "") -> str:
    """Run certfs under the filter, and return what it said; whatever it starts is under it as well."""
    result = made.run(*_PROGRAM, program or mounts.certfs_program(), *arguments)
    assert result.returncode == 0, result.stdout + result.stderr + made.log()
    return result.stdout


def held_by(bundle: Path) -> int:
    """Count the certificates in a bundle."""
    return len(pki.certificates_in(bundle.read_bytes()))


def test_newer_calls_are_refused() -> None:
    """The filter does what it says: calls that came after Linux 4.19 are not there, and what was before is."""
    found = dict(zip(_NEWER, _errors(*_NEWER.values()), strict=True))
    assert found == dict.fromkeys(_NEWER, errno.ENOSYS)
    assert _errors(_STATX) == [errno.EFAULT]


def test_a_mount_and_its_restarts_and_deaths(old: Host) -> None:
    """Mounted, changed, restarted, killed, detached and unmounted, all as with a new kernel."""
    certfs(old, "mount")
    (old.tree.certs_pool / "new.pem").write_bytes(pki.issue("new").pem)
    assert held_by(old.tree.pool_bundle) == 3
    server = old.server()
    certfs(old, "restart")
    assert old.server() != server
    server = old.server()
    old.live_again(kill(server), not_pid=server, seconds=30)
    supervisor = old.supervisor()
    kill(supervisor)
    wait_until(lambda: old.supervisor() != supervisor, what="another supervisor")
    (old.tree.certs_pool / "new.pem").unlink()
    assert held_by(old.tree.pool_bundle) == 2
    assert certfs(
        old,
        "detached",
        "--",
        "grep",
        "-c",
        "BEGIN",
        str(Path("/etc/stunnel") / "xapi-pool-ca-bundle.pem"),
    )
    wait_until(old.presented, what="the mount")
    certfs(old, "unmount")
    assert old.certfs_mounts() == []
    assert held_by(old.tree.pool_bundle) == 2


def test_a_python_of_an_old_c_library(old: Host, tmp_path: Path) -> None:
    """I12, I14: without memfd_create(), renameat2(), setsid in posix_spawn(), close_range() all is as with them."""
    program = old_python.make(tmp_path / "python")
    interpreter = program.with_name("python")
    look = "import os; print(hasattr(os, 'memfd_create') or hasattr(os, 'RWF_NOWAIT'))"
    assert old.run(interpreter, "-I", "-c", look).stdout == "False\n"
    certfs(old, "mount", program=program)
    supervisor, server = old.supervisor(), old.server()
    for pid in (supervisor, server):
        assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(os.fsencode(interpreter))
    key = old.tree.root / "xensource" / "key"
    key.write_bytes(b"x" * 300_000)
    assert key.read_bytes() == b"x" * 300_000
    renameat2(os.fsencode(key), os.fsencode(key.with_name("new")), Rename.NOREPLACE)
    assert key.with_name("new").stat().st_size == 300_000
    kill(supervisor)
    wait_until(lambda: old.supervisor() != supervisor, what="another supervisor")
    old.live_again(kill(server), not_pid=server, seconds=30)
    (old.tree.certs_pool / "new.pem").write_bytes(pki.issue("new").pem)
    assert held_by(old.tree.pool_bundle) == 3
    certfs(old, "restart", program=program)
    assert certfs(old, "detached", "--", "ls", "/etc/stunnel/certs-pool", program=program)
    certfs(old, "unmount", program=program)
    assert old.certfs_mounts() == []
    assert held_by(old.tree.pool_bundle) == 3
