"""The tree in a root directory that has nothing else: it starts, and where this machine can, it mounts."""

import os
import shutil
from pathlib import Path
from typing import Final

from scripts.packaging.shell import BuildError, run, say
from scripts.packaging.tree import Release

_SCRIPT: Final = """\
set -e
root=$1
mount -t tmpfs none "$root/run"
mount --rbind /proc "$root/proc"
mount --rbind /dev "$root/dev"
exec chroot "$root" /bin/sh -c '
    set -e
    certfs=/opt/certfs/current/bin/certfs
    $certfs --version
    $certfs pool --help >/dev/null
    mkdir -p /store/certs
    printf "[[bundle]]\\nsource = \\"certs\\"\\nbundle = \\"ca.pem\\"\\n" >/certfs.toml
    $certfs mount --store /store /store --config /certfs.toml
    cp /one.pem /store/certs/
    grep -q BEGIN /store/ca.pem
    $certfs restart /store
    $certfs list /store
    $certfs unmount /store
    grep -q BEGIN /store/ca.pem
    ! grep -q fuse.certfs /proc/self/mountinfo
'
"""


def populate(root: Path) -> None:
    """Make a root directory that has busybox and nothing else."""
    shutil.rmtree(root, ignore_errors=True)
    for name in ("bin", "dev", "etc", "proc", "run", "tmp", "usr/bin"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in run([root / "bin/busybox", "--list"]).split():
        if name != "busybox":
            (root / "bin" / name).symlink_to("busybox")


def check(tree: Path, release: Release, root: Path) -> None:
    """BuildError if the tree does not work alone."""
    populate(root)
    place = root / release.prefix.lstrip("/")
    place.parent.mkdir(parents=True)
    shutil.copytree(tree, place, symlinks=True)
    (place.parent / "current").symlink_to(str(release))
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        say("not root, or no /dev/fuse: the tree was not tried in a root directory of its own")
        return
    (root / "one.pem").write_text(_certificate(), encoding="ascii")
    said = run(["unshare", "--mount", "--propagation", "private", "sh", "-c", _SCRIPT, "sh", root])
    if str(release.version) not in said:
        raise BuildError(f"certfs in the empty root said: {said}")
    say("the tree works in a root directory that has nothing else")
    shutil.rmtree(root)


def _certificate() -> str:
    """Return a certificate of this machine's trust store."""
    bundle = Path("/etc/ssl/certs/ca-certificates.crt").read_text(encoding="ascii")
    end = "-----END CERTIFICATE-----\n"
    return bundle[: bundle.index(end)] + end
