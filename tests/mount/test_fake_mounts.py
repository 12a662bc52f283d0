"""What another user puts where a command looks: never opened, obeyed, or shown as it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certfs.errors import DeadlineError
from certfs.linux.log_file import open_log
from certfs.linux.processes import ProcessId
from certfs.protocol import timeouts
from tests.support import liar, pki
from tests.support.mounts import (
    CertfsMount,
    certfs_program,
    need_fuse,
    need_root,
)
from tests.support.swallower import swallowing
from tests.support.tree import Tree

pytestmark = pytest.mark.mount

SOMEBODY = 65534
BOUND_SECONDS = 20.0
"""How long a command may take on a busy machine; without a bound it would be for ever."""


def certfs(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must come back, with little memory."""
    return subprocess.run(
        ["prlimit", "--as=1500000000", certfs_program(), *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND_SECONDS * 3,
        env={**os.environ, **environment},
    )


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _zero(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _device(path: Path) -> None:
    os.mknod(path, 0o20666, os.makedev(1, 5))


def _fake(path: Path) -> None:
    bundle = {"bundle": "\x1b[2Jstunnel/x.pem", "source": "stunnel/x"}
    path.write_text(json.dumps({"config_file": "/etc/shadow", "bundles": [bundle]}))


@pytest.mark.parametrize("make", [_fifo, _zero, _device, _fake])
@pytest.mark.parametrize("command", [("status",), ("check",), ("list",)])
def test_a_directory_is_no_mount(
    make: Callable[[Path], None], command: tuple[str, ...], tmp_path: Path
) -> None:
    """A ``.certfs/status.json`` that no mount made is not read, whatever it is."""
    need_root()
    (tmp_path / ".certfs").mkdir()
    make(tmp_path / ".certfs/status.json")
    began = time.monotonic()
    result = certfs(*command, tmp_path)
    assert result.returncode == 7, result
    assert time.monotonic() - began < BOUND_SECONDS
    assert "\x1b" not in result.stdout + result.stderr
    assert "shadow" not in result.stdout + result.stderr


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process that nobody may kill."""
    with subprocess.Popen(["sleep", "infinity"]) as sleeping:
        yield sleeping
        sleeping.kill()


def test_a_runtime_directory_of_another_user_is_not_obeyed(
    process: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """A state file of another user does not say which processes `certfs unmount` kills."""
    need_root()
    runtime = tmp_path / "runtime"
    instance = runtime / "at-x"
    instance.mkdir(parents=True)
    identity = ProcessId.of(process.pid)
    state = {
        "version": 1,
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        "mode": "standalone",
        "phase": "serving",
        "targets": ["/x\x1b[2J"],
        "stores": ["/x"],
        "config_file": None,
        "since": 0.0,
        "supervisor": {"pid": identity.pid, "started": identity.started},
        "server": {"pid": identity.pid, "started": identity.started},
    }
    (instance / "state.json").write_text(json.dumps(state))
    for path in (runtime, instance, instance / "state.json"):
        os.chown(path, SOMEBODY, SOMEBODY)
    for command in (("status",), ("unmount", "/x"), ("restart", "/x"), ("unmount", "--all")):
        result = certfs(*command, CERTFS_RUNTIME_DIR=str(runtime))
        assert result.returncode == 10, result
        assert "only you can write to" in result.stderr
        assert "\x1b" not in result.stdout + result.stderr
    assert process.poll() is None


def test_what_a_mount_says_of_itself_is_read_through_that_mount(
    certfs_mount: CertfsMount, tmp_path: Path
) -> None:
    """`status` and `check` on a mount work as ever, and something mounted into it is not read."""
    need_fuse()
    result = certfs("status", "--json", certfs_mount.tree.root, CERTFS_RUNTIME_DIR=str(tmp_path))
    assert result.returncode == 0, result
    assert json.loads(result.stdout)["phase"] == "serving"
    assert certfs("list", certfs_mount.tree.root).returncode == 0


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[Path]:
    """A file system of another user's that lets everybody in, takes each request and never answers."""
    place = tmp_path / "silent"
    place.mkdir()
    with swallowing(place):
        yield place


def test_a_file_system_that_never_answers_ends_the_command(silent: Path, tmp_path: Path) -> None:
    """I18, I19: whatever is looked at or written there, the command ends with an error that names it."""
    good = tmp_path / "good.pem"
    good.write_bytes(pki.authority().pem)
    commands: list[list[str | Path]] = [
        ["status", silent / "x"],
        ["list", silent / "x"],
        ["list", "--store", silent],
        ["check", silent / "x" / "y"],
        ["repair", "--store", silent / "x"],
        ["export", silent / "x", "--output", tmp_path / "out"],
        ["export", good, "--output", silent / "out"],
        ["host-get-server-certificate", "--store", silent],
        ["host-refresh-server-certificate", "--store", silent],
        ["reset-server-certificate", "--store", silent],
        ["pool-install-ca-certificate", good, "--store", silent],
        ["pool-install-crl", silent / "x", "--store", tmp_path],
        ["pool-uninstall-ca-certificate", "x.pem", "--store", silent],
        ["certificate-show", silent / "x"],
        ["gencert", silent / "x/y"],
        ["detached", "--mountpoint", silent / "m", "--", "true"],
    ]
    running = [
        subprocess.Popen(
            [certfs_program(), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    try:
        for process, command in zip(running, commands, strict=True):
            said, _ = process.communicate(timeout=60)
            assert process.returncode == DeadlineError.exit_code, (command, said)
            assert "does not answer" in said
            assert str(silent) in said
    finally:
        for process in running:
            process.kill()
            process.wait()


def test_what_another_user_serves_is_not_root_s_because_it_says_so(tmp_path: Path) -> None:
    """I19: root follows no link, obeys no state and writes no log of a file system that another user serves."""
    for directory in (tmp_path, *tmp_path.parents):
        if directory.stat().st_uid == 0 and directory != Path("/tmp"):
            directory.chmod(directory.stat().st_mode | 0o011)
    secret, place = tmp_path / "secret", tmp_path / "place"
    for each in (secret, place):
        each.mkdir(mode=0o700)
    (secret / "ca.pem").write_bytes(pki.authority().pem)
    with liar.lying(place, secret):
        for command in (
            ("export", place / "link/ca.pem", "--output", tmp_path / "out"),
            ("export", secret / "ca.pem", "--output", place / "link/out"),
            ("repair", "--store", place / "link"),
            ("list", place / "link"),
        ):
            result = certfs(*command)
            assert "symbolic link" in result.stderr or "link of another user" in result.stderr
            assert result.returncode not in {0, 70}
        assert os.listdir(secret) == ["ca.pem"]
        result = certfs("status", CERTFS_RUNTIME_DIR=str(place / "runtime"))
        assert result.returncode == 10, result
        with pytest.raises(PermissionError, match="another user"):
            open_log(str(place / "file"))


def test_a_directory_without_an_end_ends_no_command(tmp_path: Path) -> None:
    """I18: a user's file system makes up names for ever; no command collects them for as long."""
    place, target = tmp_path / "place", tmp_path / "target"
    place.mkdir()
    target.mkdir()
    good = tmp_path / "good.pem"
    good.write_bytes(pki.authority().pem)
    export = ("export", good, "--format", "hash-directory", "--output")
    commands = (
        ("check", "--store", place),
        ("repair", "--store", place),
        ("list", "--store", place),
        ("pool-certificate-list", "--store", place),
        ("pool-crl-list", "--store", place),
        ("pool-uninstall-ca-certificate", "x.pem", "--force", "--store", place),
        (*export, place / "endless"),
    )
    with liar.lying(place, target):
        for command in commands:
            # Not as a fork of this process: what threads of earlier tests held would be held in it for ever.
            done = subprocess.run(
                [sys.executable, "-P", "-c", _WITH_FEWER_NAMES, *command],
                check=False,
                capture_output=True,
                timeout=BOUND_SECONDS,
            )
            assert done.returncode not in {1, 70, 130}, (command, done.stderr)


_WITH_FEWER_NAMES = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
from certfs.store import cached
cached.MOST_NAMES = 1000
from certfs.cli import main
main()
"""


def test_a_pager_may_take_its_time(tmp_path: Path) -> None:
    """A command whose output is not read waits for its reader, however long that takes."""
    tree = Tree(root=tmp_path / "store", store=tmp_path / "store")
    tree.root.mkdir()
    tree.make()
    for number in range(400):
        (tree.certs / f"{'x' * 200}{number}.pem").write_bytes(b"nothing")
    command = [certfs_program(), "list", "--store", str(tree.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        time.sleep(timeouts.COMMAND + 1)  # more than a call on a file system may take
        assert process.stdout.read().count(b"\n") == 400
    assert process.returncode == 0
