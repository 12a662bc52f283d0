"""The log file: what is opened as one, that logrotate may rename it, and its bound."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from certfs.linux import log_file
from tests.support import mounts, pki
from tests.support.mounts import need_root

USER = 65534


def daemon(log: Path, *steps: str) -> None:
    """Run a process whose standard error is the log; it does these steps, and appends nothing else."""
    script = "import os, sys\nfrom certfs.linux import log_file\nlog = sys.argv[1]\n"
    output = log_file.open_log(str(log))
    try:
        subprocess.run(
            [sys.executable, "-c", script + "\n".join(steps), str(log)],
            stderr=output,
            check=True,
            timeout=30,
        )
    finally:
        os.close(output)


WRITE = "log_file.follow(log); os.write(2, b'%s\\n')"
ONE, TWO = (WRITE % name for name in ("one", "two"))


def test_a_renamed_log_is_followed(tmp_path: Path) -> None:
    """Logrotate's `create`: the next line is in the new file, the old file keeps its lines."""
    log = tmp_path / "log"
    rotate = "os.rename(log, log + '.old'); os.close(os.open(log, os.O_CREAT, 0o640))"
    daemon(log, ONE, rotate, TWO)
    assert (tmp_path / "log.old").read_text() == "one\n"
    assert (log.read_text(), log.stat().st_mode & 0o777) == ("two\n", 0o640)


def test_a_log_that_is_gone_is_made_again(tmp_path: Path) -> None:
    """Logrotate's `nocreate`, and an admin's `rm`: the next line makes the file."""
    log = tmp_path / "log"
    daemon(log, ONE, "os.unlink(log)", TWO)
    assert (log.read_text(), log.stat().st_mode & 0o777) == ("two\n", 0o600)


def test_a_truncated_log_goes_on_at_its_start(tmp_path: Path) -> None:
    """Logrotate's `copytruncate`: no hole of the old size is left at the start."""
    log = tmp_path / "log"
    daemon(log, ONE, "os.truncate(log, 0)", TWO)
    assert log.read_text() == "two\n"


def test_a_log_is_bounded(tmp_path: Path) -> None:
    """I18: a log that has grown too large is emptied in place; its content is kept once."""
    log = tmp_path / "log"
    log.write_bytes(b"x" * (log_file.LOG_BYTES + 1))
    daemon(log, "log_file.bound(log)")
    assert log.stat().st_size == 0
    assert (tmp_path / "log.1").stat().st_size == log_file.LOG_BYTES + 1


def test_no_file_of_the_host_is_written_by_way_of_the_old_log(tmp_path: Path) -> None:
    """I19: a link at the name of the older part is replaced, not followed."""
    log, victim = tmp_path / "log", tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "log.1").symlink_to(victim)
    log.write_bytes(b"x" * (log_file.LOG_BYTES + 1))
    daemon(log, "log_file.bound(log)")
    assert victim.read_text() == "mine"
    assert not (tmp_path / "log.1").is_symlink()


@pytest.mark.parametrize("planted", ["link", "hard link", "of a user", "fifo", "directory link"])
def test_a_planted_log_is_refused_and_never_followed(tmp_path: Path, planted: str) -> None:
    """I19: whatever the owner of the directory puts there, root writes to a log of its own or to none."""
    need_root()
    directory, victim = tmp_path / "users", tmp_path / "victim"
    directory.mkdir()
    victim.write_text("mine\n")
    os.chown(directory, USER, USER)
    log = directory / "log"
    path = log
    replace = {
        "link": "os.symlink(log + '/../../victim', log + '.x')",
        "hard link": "os.link(log + '/../../victim', log + '.x')",
        "of a user": "os.close(os.open(log + '.x', os.O_CREAT)); os.chown(log + '.x', 65534, -1)",
        "fifo": "os.mkfifo(log + '.x')",
        "directory link": "",
    }[planted].replace("log + '/../../victim'", repr(str(victim)))
    if planted == "directory link":
        (directory / "real").mkdir()
        path = directory / "real" / "victim"
        replace = (
            "d = os.path.dirname(log); os.rename(d, d + '.x'); "
            f"os.symlink({str(tmp_path)!r}, d); os.chown(d, 65534, -1, follow_symlinks=False)"
        )
    else:
        replace += (
            "; os.chown(log + '.x', 65534, -1, follow_symlinks=False)" if planted == "link" else ""
        )
        replace += "; os.rename(log + '.x', log)"
    daemon(path, ONE, replace, TWO)
    assert victim.read_text() == "mine\n"
    with pytest.raises(OSError, match=r"another|link|neither|No such device"):
        log_file.open_log(str(path))


@pytest.mark.mount
def test_a_mount_follows_a_renamed_log() -> None:
    """I19: after logrotate has renamed the log of a mount, what is logged next is in a file of the old name."""
    with mounts.mounted() as mount:
        (log,) = mount.daemon_logs
        log.rename(log.with_name("log.rotated"))
        (mount.tree.certs / "x.pem").write_bytes(pki.authority("rotated").pem)
        mounts.wait_until(lambda: log.exists() and "CN=rotated" in log.read_text(), what="the log")
