"""The packages around a tree: an archive with an `install` script, an .rpm and a .deb.

What happens when they are installed, upgraded and removed is `lifecycle`, beside the tree's programs.
"""

import os
import shutil
from pathlib import Path
from typing import Final

from scripts.packaging.debian import HERE
from scripts.packaging.shell import run
from scripts.packaging.tree import PREFIX, Release, size

LINKS: Final = {
    "usr/bin/certfs": "bin/certfs",
    "usr/sbin/mount.fuse.certfs": "bin/certfs",
    "usr/share/man/man1/certfs.1": "share/man/man1/certfs.1",
}
"""What leads into the version that is in use: the command, what mount(8) runs for fuse.certfs, and the manual.

`install`, `lifecycle` and the .spec file name them as well.
"""
_DEPENDS: Final = "python3.11 (>= 3.11.2), libc6 (>= 2.36), libfuse3-3 (>= 3.14), fuse3"
_CONTROL: Final = """\
Package: certfs
Version: {release}
Architecture: amd64
Maintainer: The certfs maintainers <certfs@localhost>
Installed-Size: {kibibytes}
Depends: {depends}
Section: net
Priority: optional
Description: TLS CA bundles that are always the certificates in their directories now
 A filesystem for directories of certificates: each CA bundle is always exactly the
 certificates that are there now. On a host: systemctl enable --now certfs
"""


def tar(tree: Path, release: Release, output: Path, scratch: Path, epoch: int) -> Path:
    """Write the archive with its `install` script and return it."""
    name = f"certfs-{release}-x86_64"
    root = _fresh(scratch / "tar") / name
    root.mkdir()
    shutil.copytree(tree, root / "tree", symlinks=True)
    for part in ("install", "xapi.conf"):
        shutil.copy(HERE / part, root / part)
    (root / "install").chmod(0o755)
    (root / "VERSION").write_text(f"{release}\n", encoding="utf-8")
    path = output / f"{name}.tar.xz"
    run(
        [
            "tar",
            "--create",
            "--file",
            path,
            "--use-compress-program=xz -6 -T2",
            "--sort=name",
            "--owner=0",
            "--group=0",
            "--numeric-owner",
            f"--mtime=@{epoch}",
            "--format=gnu",
            "--mode=u+rwX,go=rX",
            "--directory",
            root.parent,
            name,
        ]
    )
    return path


def rpm(tree: Path, release: Release, output: Path, scratch: Path) -> Path:
    """Write the .rpm and return it."""
    top = _fresh(scratch / "rpm")
    root = top / "root"
    _lay(root, tree, release)
    (root / "etc/xapi.conf.d").mkdir(parents=True)
    shutil.copyfile(HERE / "xapi.conf", root / "etc/xapi.conf.d/certfs.conf")
    (root / f"{PREFIX}/current".lstrip("/")).symlink_to(str(release))
    text = (HERE / "certfs.spec.in").read_text(encoding="utf-8")
    text = text.replace("@VERSION@", release.version).replace("@RELEASE@", release.release)
    text = text.replace("@ROOT@", str(root))
    (top / "certfs.spec").write_text(text, encoding="utf-8")
    run(
        [
            "rpmbuild",
            "-bb",
            "--quiet",
            "--target",
            "x86_64",
            "--buildroot",
            top / "buildroot",
            "--define",
            f"_topdir {top}",
            "--define",
            f"_rpmdir {top}",
            top / "certfs.spec",
        ]
    )
    (built,) = top.glob("x86_64/*.rpm")
    return Path(shutil.copy(built, output / built.name))


def deb(tree: Path, release: Release, output: Path, scratch: Path) -> Path:
    """Write the .deb and return it."""
    root = _fresh(scratch / "deb")
    _lay(root, tree, release)
    control = root / "DEBIAN"
    control.mkdir()
    text = _CONTROL.format(release=release, depends=_DEPENDS, kibibytes=size(tree) // 1024)
    (control / "control").write_text(text, encoding="utf-8")
    for script in sorted((HERE / "deb").iterdir()):
        text = script.read_text(encoding="utf-8").replace("@RELEASE@", str(release))
        (control / script.name).write_text(text, encoding="utf-8")
        (control / script.name).chmod(0o755)
    path = output / f"certfs_{release}_amd64.deb"
    run(["dpkg-deb", "--root-owner-group", "-Zxz", "--build", root, path])
    return path


def _lay(root: Path, tree: Path, release: Release) -> None:
    """Put the tree and the command where they are installed, below ``root``."""
    shutil.copytree(tree, root / release.prefix.lstrip("/"), symlinks=True)
    for name, file in LINKS.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(f"{PREFIX}/current/{file}", root / name)
    run(["chmod", "-R", "u+rwX,go=rX", root])


def _fresh(path: Path) -> Path:
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    return path
