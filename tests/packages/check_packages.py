"""Each package installed, used, upgraded under readers and removed, in a root directory of its own.

The name keeps these out of the ordinary suite: they need packages of two releases, in the directory that
CERTFS_TEST_PACKAGES names (`scripts/nightly packages` builds them), and root.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest

from certfs import __version__
from scripts.packaging.archives import LINKS
from scripts.packaging.chroot import populate
from tests.support import mounts, pki

PACKAGES = Path(os.environ.get("CERTFS_TEST_PACKAGES", "dist"))
PARENTS = {str(parent) for link in LINKS for parent in Path(link).parents}
"""The directories of the links, which every host has and a root directory with busybox may not."""
CONFIG = '[[bundle]]\nsource = "certs"\nbundle = "ca.pem"\n'
_SETUP = """
set -e
umount --all --lazy --types fuse.certfs || true
mount --bind "$1" "$1"
mount -t tmpfs none "$1/run"
mount --rbind /proc "$1/proc"
mount --rbind /dev "$1/dev"
mknod -m 666 "$1/run/fuse" c 10 229
mount --bind "$1/run/fuse" "$1/dev/fuse"
rm "$1/run/fuse"
echo ready
exec sleep infinity
"""


@dataclass(slots=True)
class Root:
    """A root directory in a mount namespace of its own."""

    directory: Path
    holder: subprocess.Popen[bytes]
    program: str = "/usr/bin/certfs"
    """The command in it."""

    def run(self, *command: str | Path, expect: int = 0) -> str:
        """Run a command of this machine in the namespace."""
        result = subprocess.run(
            ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", "--", *command],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        said = result.stdout + result.stderr
        assert result.returncode == expect, said
        return said

    def inside(self, *command: str, expect: int = 0) -> str:
        """Run a command of the root directory in it."""
        return self.run("chroot", self.directory, *command, expect=expect)

    def rpm(self, *arguments: str | Path, expect: int = 0) -> str:
        """Run rpm on the root directory."""
        return self.run("rpm", "--root", self.directory, *arguments, expect=expect)

    def path(self, name: str) -> Path:
        """Return a path of the root directory, as it is seen in the namespace."""
        return Path(f"/proc/{self.holder.pid}/root{self.directory}{name}")

    def mount(self) -> None:
        """Serve a store with one certificate at /store."""
        self.path("/store/certs").mkdir(parents=True, exist_ok=True)
        self.path("/certfs.toml").write_text(CONFIG)
        self.path("/store/certs/one.pem").write_bytes(pki.issue("one").pem)
        self.inside(
            self.program, "mount", "--store", "/store", "/store", "--config", "/certfs.toml"
        )
        assert b"BEGIN" in self.path("/store/ca.pem").read_bytes()

    def mounted(self) -> bool:
        """Whether certfs is mounted in the root directory."""
        table = Path(f"/proc/{self.holder.pid}/mountinfo").read_text()
        return any(
            " - fuse.certfs " in line and line.split()[4].startswith(f"{self.directory}/")
            for line in table.splitlines()
        )

    def processes(self) -> list[Path]:
        """Return the directory in /proc of each process that runs in the root directory."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(entry / "root") == str(self.directory):
                    found.append(entry)
        return found

    def programs(self) -> set[str]:
        """Return the interpreters of the servers and supervisors that run in the root directory."""
        found = set()
        for entry in self.processes():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes().split(b"\0")
                if any(word.startswith(b"certfs.s") for word in command):
                    found.add(command[0].decode())
        return found

    def listing(self) -> set[str]:
        """Return every path in the root directory but what is the kernel's, the package database's and of others."""
        found = set()
        for directory, names, files in os.walk(self.directory):
            here = os.path.relpath(directory, self.directory)
            if here == ".":
                names[:] = [
                    name
                    for name in names
                    if name not in {"proc", "dev", "root", "run", "var", "tmp"}
                ]
            found |= {os.path.normpath(os.path.join(here, name)) for name in (*names, *files)}
        return found

    def check_left(self, before: set[str], allowed: set[str]) -> None:
        """Nothing of certfs is left: no mount, no process, no file but those ``allowed`` and the tests' own."""
        assert not self.mounted()
        assert self.programs() == set()
        # systemd-analyze makes a directory of systemd's there.
        assert {path.name for path in self.path("/run").iterdir()} <= {"systemd"}
        ours = ("store", "certfs.toml", "etc/stunnel/", "home/ada")
        left = {name for name in self.listing() - before if not name.startswith(ours)}
        assert left <= allowed


@contextlib.contextmanager
def namespace(directory: Path) -> Iterator[Root]:
    """Make a mount namespace around a root directory; end what runs in it afterwards."""
    holder = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", _SETUP, "sh", directory],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    root = Root(directory, holder)
    try:
        assert holder.stdout.readline() == b"ready\n"
        yield root
    finally:
        if root.mounted():
            root.inside(root.program, "unmount", "--all")
        for entry in root.processes():  # of a user's mount, after a failure
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(entry.name), signal.SIGKILL)
        holder.kill()
        holder.wait()
        holder.stdout.close()


@pytest.fixture
def empty() -> Iterator[Root]:
    """A root directory with busybox and nothing else."""
    mounts.need_root()
    mounts.need_fuse()
    directory = mounts.scratch_directory()
    populate(directory)
    with namespace(directory) as root:
        yield root
    shutil.rmtree(directory)


def package(pattern: str) -> Path:
    """Return one package."""
    (found,) = PACKAGES.glob(pattern)
    return found.resolve()


def rpm(release: int) -> Path:
    """Return the .rpm of a release."""
    return package(f"certfs-{__version__}-{release}.x86_64.rpm")


class Readers:
    """Readers that open and read a file without pause, each in a thread."""

    def __init__(self, path: Path, count: int = 4) -> None:
        self._path = path
        self._over = threading.Event()
        self.opened = 0
        self.failures: list[str] = []
        self._threads = [threading.Thread(target=self._read) for _ in range(count)]

    def __enter__(self) -> Self:
        """Begin to read."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait until the last one is done."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _read(self) -> None:
        while not self._over.is_set():
            try:
                content = self._path.read_bytes()
            except OSError as error:
                self.failures.append(str(error))
            else:
                self.opened += 1
                if not content.endswith(b"-----END CERTIFICATE-----\n"):
                    self.failures.append(repr(content))
            time.sleep(0.001)


def read_manual(root: Root) -> None:
    """`man certfs` finds its page, where there is a man."""
    if (root.directory / "usr/bin/man").exists():
        assert "certfs" in root.inside("/usr/bin/man", "certfs")
    assert "\n.TH CERTFS 1 " in root.inside("/bin/cat", "/usr/share/man/man1/certfs.1")


def test_the_rpm_needs_nothing(tmp_path: Path) -> None:
    """It is installed into a root directory in which there is nothing at all, and certfs runs there."""
    mounts.need_root()
    subprocess.run(["rpm", "--root", tmp_path, "-i", rpm(1)], check=True)
    said = subprocess.run(
        ["chroot", tmp_path, "/usr/bin/certfs", "--version"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert __version__ in said
    required = subprocess.run(
        ["rpm", "-qp", "--requires", rpm(1)], check=True, capture_output=True, text=True
    ).stdout
    assert {line.split("(")[0] for line in required.splitlines()} <= {"rpmlib", "config"}, required


def test_the_bill_of_materials_has_every_component(empty: Root) -> None:
    """It is CycloneDX, with version, origin and SHA-256 of each component, and certfs says where it is."""
    empty.rpm("-i", rpm(1))
    said = empty.inside("/usr/bin/certfs", "--version", "--verbose")
    place = f"/opt/certfs/{__version__}-1/share/certfs.cdx.json"
    assert place in said
    bill = json.loads(empty.path(place).read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    found = {component["name"].lower(): component for component in bill["components"]}
    assert {
        "libc6",
        "libfuse3-3",
        "libssl3",
        "python3.11-minimal",
        "cryptography",
        "pyfuse3",
    } <= found.keys()
    for component in found.values():
        assert component["version"]
        assert component["purl"].startswith(("pkg:deb/debian/", "pkg:pypi/"))
        assert [one["alg"] for one in component["hashes"]] == ["SHA-256"]
    directories = empty.path(f"/opt/certfs/{__version__}-1/lib/python3.11/site-packages").glob(
        "*.dist-info"
    )
    installed = {one.name.split("-")[0].replace("_", "-").lower() for one in directories}
    assert installed <= {name.replace("_", "-") for name in found}


def test_an_rpm_is_upgraded_under_readers(empty: Root) -> None:
    """I17: rpm -U while mounted: no open fails, and what serves afterwards is the new version."""
    empty.rpm("-i", rpm(1))
    empty.mount()
    with Readers(empty.path("/store/ca.pem")) as readers:
        time.sleep(0.5)
        empty.rpm("-U", rpm(2))
        time.sleep(0.5)
    assert readers.failures == []
    assert readers.opened > 100
    print(f"{readers.opened} opens, 0 failed")
    assert empty.programs() == {f"/opt/certfs/{__version__}-2/bin/python3"}
    assert not empty.path(f"/opt/certfs/{__version__}-1").exists()


def test_a_removed_rpm_leaves_an_ordinary_host(empty: Root) -> None:
    """I12: rpm -e while mounted: the plain files are in view, and nothing of certfs is left."""
    before = empty.listing()
    empty.path("/usr/lib/systemd/system").mkdir(parents=True)
    empty.rpm("-i", rpm(1))
    assert empty.path("/usr/lib/systemd/system/certfs.service").exists()
    read_manual(empty)
    empty.mount()
    served = empty.path("/store/ca.pem").read_bytes()
    empty.rpm("-e", "certfs")
    assert empty.path("/store/ca.pem").read_bytes() == served
    made = {
        "opt",
        "usr/lib",
        "usr/lib/systemd",
        "usr/lib/systemd/system",
        "usr/lib/modules-load.d",
    }
    empty.check_left(before, made | PARENTS)


_SYSTEMCTL_219 = """#!/bin/sh
[ "$1" != --version ] || echo systemd 219
"""
_HOST_BACKUP = """#!/bin/sh
exec find /etc -xdev -type f
"""
"""What XAPI's archive has in it: tar --one-file-system, without the tar."""


@pytest.fixture
def dom0(empty: Root) -> Root:
    """A root directory laid out as EL7's, with what XAPI has in it, and with systemd 219 as far as it can be asked."""
    for name in ("bin", "sbin", "lib64"):
        place = empty.directory / "usr" / name
        place.mkdir(exist_ok=True)
        old = empty.directory / name
        if old.exists():
            shutil.copytree(old, place, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(old)
        old.symlink_to(f"usr/{name}")
    for name in (
        "usr/lib/systemd/system", "usr/lib/modules-load.d", "etc/xapi.conf.d", "etc/xensource",
        "etc/stunnel/certs", "etc/stunnel/certs-pool", "opt/xensource/libexec",
    ):  # fmt: skip
        empty.path(f"/{name}").mkdir(parents=True)
    empty.path("/etc/xapi.conf").write_text("# XAPI\n")
    empty.path("/etc/xensource/ptoken").write_text("secret\n")
    empty.path("/etc/stunnel/certs-pool/one.pem").write_bytes(pki.issue("one").pem)
    for name, text in (
        ("/usr/bin/systemctl", _SYSTEMCTL_219),
        ("/opt/xensource/libexec/host-backup", _HOST_BACKUP),
    ):
        empty.path(name).write_text(text)
        empty.path(name).chmod(0o755)
    return empty


def test_the_rpm_on_a_host_like_dom0(dom0: Root) -> None:
    """The unit is for systemd 219, the host's backup has what certfs presents, and rpm -e leaves the plain bundle."""
    before = dom0.listing()
    dom0.rpm("-i", rpm(1))
    unit = dom0.path("/usr/lib/systemd/system/certfs.service").read_text()
    assert "StartLimitInterval=" in unit.partition("[Service]")[2]
    assert "SystemCallFilter" not in unit
    assert "fuse" in dom0.path("/usr/lib/modules-load.d/certfs.conf").read_text().splitlines()
    dom0.inside("/usr/bin/certfs", "mount")
    bundle = dom0.path("/etc/stunnel/xapi-pool-ca-bundle.pem")
    served = bundle.read_bytes()
    assert b"BEGIN" in served
    lost = {"/etc/xensource/ptoken", "/etc/stunnel/xapi-pool-ca-bundle.pem"}
    original = dom0.inside("/opt/xensource/libexec/host-backup").splitlines()
    assert not lost & set(original)
    setting = dom0.path("/etc/xapi.conf.d/certfs.conf").read_text().splitlines()[-1]
    name, _, program = setting.partition(" = ")
    assert name == "host-backup"
    assert lost <= set(dom0.inside(program).splitlines())
    assert dom0.mounted()
    dom0.rpm("-e", "certfs")
    assert bundle.read_bytes() == served
    assert dom0.path("/etc/xensource/ptoken").read_text() == "secret\n"
    assert lost <= set(dom0.inside("/opt/xensource/libexec/host-backup").splitlines())
    dom0.check_left(before, PARENTS)


def test_the_archive_installs_upgrades_and_uninstalls(empty: Root) -> None:
    """`install` of a second release takes over what is mounted; `lifecycle uninstall` leaves nothing."""
    before = empty.listing()
    for release in (1, 2):
        name = f"certfs-{__version__}-{release}-x86_64"
        subprocess.run(
            ["tar", "-xJf", package(f"{name}.tar.xz"), "-C", empty.directory / "tmp"], check=True
        )
        with contextlib.ExitStack() as stack:
            readers = (
                stack.enter_context(Readers(empty.path("/store/ca.pem"))) if release == 2 else None
            )
            empty.inside(f"/tmp/{name}/install")
        if readers is None:
            read_manual(empty)
            assert "/share/certfs.cdx.json" in empty.inside(
                "/usr/bin/certfs", "--version", "--verbose"
            )
            empty.mount()
        else:
            assert readers.failures == []
    assert empty.programs() == {f"/opt/certfs/{__version__}-2/bin/python3"}
    assert empty.path(f"/opt/certfs/{__version__}-1").exists()
    empty.inside("/opt/certfs/current/libexec/lifecycle", "uninstall")
    empty.check_left(before, {"opt", *PARENTS})


def test_the_archive_prepares_another_root(empty: Root) -> None:
    """`install --root` changes nothing of the running system."""
    name = f"certfs-{__version__}-1-x86_64"
    subprocess.run(
        ["tar", "-xJf", package(f"{name}.tar.xz"), "-C", empty.directory / "tmp"], check=True
    )
    empty.run(empty.directory / "tmp" / name / "install", "--root", empty.directory)
    assert __version__ in empty.inside("/usr/bin/certfs", "--version")


# --- Debian


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh Debian 12 with what the package depends on, no compiler."""
    return bootstrap("bookworm", tmp_path_factory, "man-db,pipx,systemd")


def bootstrap(release: str, factory: pytest.TempPathFactory, more: str) -> Path:
    """Return a fresh Debian with Python, fusermount3 and ``more``, and a user."""
    mounts.need_root()
    mounts.need_program("debootstrap")
    directory = factory.mktemp(release)
    subprocess.run(
        [
            "debootstrap", "--variant=minbase",
            f"--include=ca-certificates,fuse3,python3,python3-venv,{more}",
            release, directory, *_mirror(),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    directory.chmod(0o755)  # it is the root directory of a user, too
    mtab = directory / "etc/mtab"  # systemd makes it where it is
    if not mtab.is_symlink():
        mtab.symlink_to("../proc/self/mounts")
    user = ["--uid=20001", "--create-home", "ada"]
    subprocess.run(["chroot", directory, "useradd", *user], check=True)
    return directory


def _mirror() -> list[str]:
    """Return where this machine's apt has Debian from."""
    told = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)", "Created-By: Packages"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [line.split()[0] for line in told.splitlines() if line.endswith(" bookworm")][:1]


@dataclass(slots=True)
class User:
    """Another user of a root directory, with a store that is mounted."""

    root: Root

    def run(self, *command: str) -> str:
        """Run a command as this user."""
        who = ("setpriv", "--reuid=20001", "--regid=20001", "--clear-groups", "--reset-env")
        return self.root.inside(*who, "env", "CERTFS_RUNTIME_DIR=/home/ada/state", *command)

    def mount(self) -> None:
        """Serve a store in the home directory."""
        self.run("mkdir", "-p", "/home/ada/state", "/home/ada/store/certs")
        self.root.path("/home/ada/store/certs/one.pem").write_bytes(pki.issue("one").pem)
        self.root.path("/certfs.toml").write_text(CONFIG)
        place = "/home/ada/store"
        self.run(self.root.program, "mount", "--store", place, place, "--config", "/certfs.toml")
        assert self.run("grep", "-c", "BEGIN", f"{place}/ca.pem") == "1\n"


def test_the_deb_installs_upgrades_and_goes(debian: Path) -> None:
    """Unpacking a second release while mounted fails no open (I17); removal leaves the plain files to every user."""
    with namespace(debian) as root:
        for release in (1, 2):
            name = f"certfs_{__version__}-{release}_amd64.deb"
            shutil.copy(package(name), debian / "tmp" / name)
        before, users = root.listing(), root.path("/etc/passwd").read_bytes()
        root.inside("dpkg", "-i", f"/tmp/certfs_{__version__}-1_amd64.deb")
        read_manual(root)
        said = root.inside("/usr/bin/certfs", "--version", "--verbose")
        assert f"/opt/certfs/{__version__}-1/share/certfs.cdx.json" in said
        assert root.inside("systemd-analyze", "verify", "certfs.service") == ""
        root.mount()
        user = User(root)
        user.mount()
        with Readers(root.path("/store/ca.pem")) as readers:
            root.inside("dpkg", "-i", f"/tmp/certfs_{__version__}-2_amd64.deb")
        assert readers.failures == []
        assert readers.opened > 100
        user.run(root.program, "restart", "--all")
        assert root.programs() == {f"/opt/certfs/{__version__}-2/bin/python3"}
        assert user.run("grep", "-c", "BEGIN", "/home/ada/store/ca.pem") == "1\n"
        served = root.path("/store/ca.pem").read_bytes()
        root.inside("certfs", "install-units", "--store", "/store", "/store")
        assert "/etc/systemd/system/certfs-store.service stays" in root.inside(
            "dpkg", "-r", "certfs"
        )
        assert root.path("/store/ca.pem").read_bytes() == served
        assert root.path("/home/ada/store/ca.pem").read_bytes().count(b"BEGIN") == 1
        assert "Conditions failed" in root.inside(
            "systemd-analyze", "condition", "--unit=certfs-store.service", expect=1
        )
        root.inside(
            "rm", "/etc/systemd/system/certfs-store.service", "/etc/modules-load.d/certfs.conf"
        )
        root.check_left(before, {"usr/lib/modules-load.d"})
        assert root.path("/etc/passwd").read_bytes() == users


# --- wheels


def test_the_wheels_need_no_compiler(tmp_path: Path) -> None:
    """Installed by pip with --find-links into a virtualenv, with no program to compile with, certfs mounts."""
    environment = {**os.environ, "PATH": str(tmp_path / "venv/bin"), "CC": "/bin/false"}
    subprocess.run(["/usr/bin/python3", "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    wheels = PACKAGES.resolve() / "wheels"
    subprocess.run(
        [
            python,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--only-binary=:all:",
            "--find-links",
            wheels,
            "certfs",
        ],
        check=True,
        env=environment,
    )
    use([python, "-m", "certfs"], tmp_path)


PIPX = "/root/.local/pipx/venvs/certfs"
"""Where Debian 12's pipx installs; it knows nothing of manuals yet."""


@pytest.mark.parametrize(
    "install,program,manual",
    [
        (
            "python3 -m venv /venv && /venv/bin/pip install {options} certfs",
            "/venv/bin/certfs",
            "man certfs",
        ),
        (
            "pipx install --pip-args='{options}' certfs",
            "/root/.local/bin/certfs",
            f"man -M {PIPX}/share/man certfs",
        ),
    ],
)
def test_the_wheels_in_a_fresh_debian(
    debian: Path, install: str, program: str, manual: str
) -> None:
    """Both install certfs where there is no compiler; the program mounts, and man finds the page."""
    wheels = debian / "wheels"
    if not wheels.exists():
        options = [
            "--quiet",
            "--only-binary=:all:",
            "--find-links",
            str(PACKAGES.resolve() / "wheels"),
        ]
        command = ["/usr/bin/python3", "-m", "pip", "download", "--dest", str(wheels), *options]
        subprocess.run([*command, "certfs", "pip", "setuptools", "wheel"], check=True)
    install = install.format(options="--no-index --find-links=/wheels")
    clean = ["/usr/bin/env", "-i", "HOME=/root", f"PATH={Path(program).parent}:/usr/bin:/bin"]
    with namespace(debian) as root:
        root.inside(*clean, "sh", "-c", f"! command -v cc gcc && {install}")
        root.program = program
        root.mount()
        assert "certfs" in root.inside(*clean, *manual.split())
        root.inside(program, "restart", "/store")
        root.inside(program, "unmount", "/store")
        assert not root.mounted()
        assert b"BEGIN" in root.path("/store/ca.pem").read_bytes()


@pytest.mark.parametrize("which", ["cp313-cp313", "cp312-abi3"])
def test_the_wheels_for_python_3_13(tmp_path: Path, which: str) -> None:
    """In a virtualenv on the interpreter of Debian 13, certfs mounts: with its own wheel, and the stable ABI's."""
    interpreter = Path("build/packaging/wheels/python3.13/bin/python3.13").resolve()
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for pattern in ("certfs-*.whl", f"pyfuse3-*-{which}-*.whl"):
        shutil.copy(package(f"wheels/{pattern}"), wheels)
    # By hand: that interpreter has no venv, and what certfs starts has no look at PYTHONPATH.
    (tmp_path / "venv/bin").mkdir(parents=True)
    (tmp_path / "venv/bin/python").symlink_to(interpreter)
    (tmp_path / "venv/pyvenv.cfg").write_text(f"home = {interpreter.parent}\nversion = 3.13\n")
    site = tmp_path / "venv/lib/python3.13/site-packages"
    subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--target", site,
            "--python-version=3.13", "--only-binary=:all:", "--find-links", wheels, "certfs",
        ],
        check=True,
    )  # fmt: skip
    use([tmp_path / "venv/bin/python", "-m", "certfs"], tmp_path)


@pytest.mark.parametrize("release,which", [("trixie", "cp313-cp313"), ("sid", "cp312-abi3")])
def test_the_wheels_on_a_newer_debian(
    tmp_path_factory: pytest.TempPathFactory, release: str, which: str
) -> None:
    """In a virtualenv of Debian 13's Python, and of the one that Debian's next release will have, certfs mounts."""
    directory = bootstrap(release, tmp_path_factory, "man-db")
    version = subprocess.run(
        [
            "chroot", directory, "python3", "-c",
            "import sys; print('%d.%d' % sys.version_info[:2])",
        ],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    if release == "sid" and version == "3.13":
        pytest.skip("its Python has a wheel of its own")
    subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--dest", directory / "wheels",
            f"--python-version={version}", "--only-binary=:all:",
            "--find-links", PACKAGES.resolve() / "wheels", "certfs",
        ],
        check=True,
    )  # fmt: skip
    (chosen,) = (directory / "wheels").glob("pyfuse3-*.whl")
    assert which in chosen.name
    with namespace(directory) as root:
        root.inside("python3", "-m", "venv", "/venv")
        root.inside("/venv/bin/pip", "install", "--no-index", "--find-links=/wheels", "certfs")
        root.program = "/venv/bin/certfs"
        said = root.inside(root.program, "--version", "--verbose")
        assert f"Python {version}." in said
        print(
            " ".join(
                line.strip()
                for line in said.splitlines()
                if "Python " in line or "C library" in line
            )
        )
        root.mount()
        root.path("/store/certs/two.pem").write_bytes(pki.issue("two").pem)
        assert root.path("/store/ca.pem").read_bytes().count(b"BEGIN") == 2
        root.inside(root.program, "restart", "/store")
        root.inside(root.program, "check", "/store")
        root.inside(root.program, "unmount", "/store")
        assert not root.mounted()
        User(root).mount()
        User(root).run(root.program, "unmount", "--all")


def use(certfs: list[str | Path], directory: Path) -> None:
    """Mount a store, read a bundle, restart, and unmount."""
    (directory / "store/certs").mkdir(parents=True)
    (directory / "store/certs/one.pem").write_bytes(pki.issue("one").pem)
    (directory / "certfs.toml").write_text(CONFIG)
    environment = {**os.environ, "CERTFS_RUNTIME_DIR": str(directory / "runtime")}
    store = directory / "store"
    commands: tuple[list[str | Path], ...] = (
        ["mount", "--store", store, store, "--config", directory / "certfs.toml"],
        ["restart", store],
        ["unmount", store],
    )
    for command in commands:
        subprocess.run([*certfs, *command], check=True, env=environment, stdin=subprocess.DEVNULL)
        assert b"BEGIN" in (store / "ca.pem").read_bytes()
