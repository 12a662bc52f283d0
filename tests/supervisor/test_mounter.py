"""How a mount takes the place of another at a target, with and without the help of a new kernel (I17)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import mounts

pytestmark = [pytest.mark.mount, pytest.mark.namespace]

SCRIPT = """
import os, sys, threading
from certfs import procfs
from certfs.linux import mount_syscalls
from certfs.protocol.specs import MountSpec, Tree
from certfs.supervisor.mounter import RootMounter
from certfs.supervisor.view import Attach, View

base, beneath = sys.argv[1], sys.argv[2] == "beneath"
target, runtime, refused = f"{base}/target", f"{base}/run", f"{base}/refused"
os.chmod(base, 0o755), os.mkdir(target), os.mkdir(runtime, 0o700)
with open(f"{target}/file", "w") as plain:
    plain.write("plain")
tree = Tree(name="sub", store=target, target=target, fd=0)
spec = MountSpec(mode="dom0", trees=(tree,), runtime=runtime)
mounter = RootMounter(spec, beneath=beneath)

def serve(number):
    place = mounter.place()
    mount_syscalls.mount("tmpfs", place, "tmpfs", 0)
    os.mkdir(f"{place}/sub")
    with open(f"{place}/sub/file", "w") as content:
        content.write(str(number))
    return place, procfs.top_at(procfs.mounts(), place).device

def noted(call):
    def make(*arguments, **options):
        try:
            return call(*arguments, **options)
        except OSError:
            open(refused, "w").close()  # in a child, which has neither the memory nor the output of its parent
            raise
    return make

for name in ("clone_tree", "attach_tree"):
    setattr(mount_syscalls, name, noted(getattr(mount_syscalls, name)))
seen, stop = set(), threading.Event()

def read():
    while not stop.is_set():
        with open(f"{target}/file") as content:
            seen.add(content.read())

view, previous = View("/sub", target), None
for number in range(50):
    place, device = serve(number)
    error = mounter.attach(Attach(view, previous), place)
    assert error is None, error
    assert open(f"{target}/file").read() == str(number)
    if number == 0:
        reader = threading.Thread(target=read)
        reader.start()
    else:
        mount_syscalls.umount(old, previous)
    old, previous = place, device
    at = [entry for entry in procfs.mounts() if entry.point == target]
    assert len(at) == 1, at
stop.set()
reader.join()
print(len(seen), "plain" in seen, "refused" * os.path.exists(refused))
"""


@pytest.mark.parametrize("propagation", ["private", "shared"])
@pytest.mark.parametrize("way", ["beneath", "gap"])
def test_a_target_is_never_without_content(tmp_path: Path, way: str, propagation: str) -> None:
    """50 replacements under a reader: no open fails, no old mount is left; where the kernel can, nothing else shows."""
    mounts.need_namespaces()
    result = subprocess.run(
        [
            "unshare",
            "--mount",
            f"--propagation={propagation}",
            *(
                "sh",
                "-c",
                'mount -t tmpfs x "$1" && mount "--make-$2" "$1" && shift 2 && exec "$@"',
            ),
            *("sh", tmp_path, propagation),
            *(sys.executable, "-c", SCRIPT, tmp_path, way),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    print(way, propagation, result.stdout)
    if way == "beneath" and "refused" not in result.stdout:
        assert "False" in result.stdout
