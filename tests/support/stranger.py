"""Another user of the same machine, who mounts file systems of his own with names of his choice.

Owns the mounting: fusermount3 hands over a /dev/fuse that nobody serves, so the mount is there and never answers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.host import Host

STRANGER = 65_534

_PROGRAM = """
import os, socket, sys
options, *points = map(os.fsencode, sys.argv[1:])
for point in points:
    os.makedirs(point)
    theirs, ours = socket.socketpair()
    arguments = [b"fusermount3", b"-o", options, b"--", point]
    pid = os.posix_spawnp(
        "fusermount3", arguments, {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
        file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), theirs.fileno())],
    )
    assert os.waitpid(pid, 0)[1] == 0
    kept = socket.recv_fds(ours, 16, 1)  # as long as this process has it, the mount does not answer, and is not dead
print("mounted", flush=True)
sys.stdin.read()
for point in points:
    os.spawnlp(os.P_WAIT, "fusermount3", "fusermount3", "-u", "-z", "--", point)
"""


@contextmanager
def strange_mounts(host: Host, *names: bytes, subtype: bytes) -> Iterator[None]:
    """Have another user mount file systems on ``host`` in directories of these names, for the time of the context."""
    home = Path(tempfile.mkdtemp(prefix="stranger-", dir=host.directory))
    home.chmod(0o755)
    os.chown(home, STRANGER, STRANGER)
    user = ["setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups"]
    points = [os.fsencode(home) + b"/" + name for name in names]
    options = "fsname=x,subtype=" + os.fsdecode(subtype)
    command = [*user, sys.executable, "-c", _PROGRAM, options, *map(os.fsdecode, points)]
    with subprocess.Popen(
        host.entering(*command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as mounting:
        assert mounting.stdout is not None
        try:
            assert mounting.stdout.readline() == b"mounted\n"
            yield
        finally:
            mounting.communicate(timeout=20)
