"""I11: real programs do on the mount what they do on the directory beneath."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import mounts, snapshot

pytestmark = pytest.mark.mount

_GIT = {
    **os.environ,
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.com",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.com",
    "GIT_AUTHOR_DATE": "2024-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2024-01-01T00:00:00Z",
}


@pytest.fixture(scope="module")
def mounted_root() -> Iterator[Path]:
    """Mount once for the module."""
    with mounts.mounted() as mount:
        yield mount.tree.xensource


@pytest.fixture
def places(mounted_root: Path) -> Iterator[tuple[Path, Path]]:
    """Give an empty directory on a plain filesystem and one on the mount."""
    with mounts.plain() as plain:
        places = (plain.root / "place", mounted_root / "place")
        for place in places:
            place.mkdir()
        yield places
        shutil.rmtree(places[1])


def _run(*command: str | Path, cwd: Path, stdin: bytes = b"") -> bytes:
    return subprocess.run(
        command, cwd=cwd, env=_GIT, input=stdin, check=True, capture_output=True, timeout=120
    ).stdout


def _same(places: tuple[Path, Path], *, times: bool = False) -> list[str]:
    trees = [snapshot.take(os.fsencode(place), times=times) for place in places]
    return snapshot.differences(trees[0], trees[1])


@pytest.mark.slow
def test_git(places: tuple[Path, Path]) -> None:
    """Git: init, commit, branch, merge, clone, gc and fsck, with the same history on both."""
    mounts.need_program("git")
    heads = []
    for place in places:
        repository = place / "repository"
        _run("git", "init", "-q", "-b", "main", repository, cwd=place)
        for number in range(60):
            (repository / f"d{number % 7}").mkdir(exist_ok=True)
            (repository / f"d{number % 7}" / f"file {number}").write_text(f"{number}\n" * 100)
        _run("git", "add", "-A", cwd=repository)
        _run("git", "commit", "-q", "-m", "first", cwd=repository)
        _run("git", "checkout", "-q", "-b", "side", cwd=repository)
        _run("git", "mv", "d1", "moved", cwd=repository)
        (repository / "link").symlink_to("moved")
        _run("git", "add", "-A", cwd=repository)
        _run("git", "commit", "-q", "-m", "side", cwd=repository)
        _run("git", "checkout", "-q", "main", cwd=repository)
        _run("git", "rm", "-q", "-r", "d2", cwd=repository)
        _run("git", "commit", "-q", "-m", "removed", cwd=repository)
        _run("git", "merge", "-q", "-m", "merged", "side", cwd=repository)
        _run("git", "gc", "-q", "--prune=now", cwd=repository)
        _run("git", "clone", "-q", "repository", "clone", cwd=place)
        _run("git", "clone", "-q", "--no-hardlinks", "repository", "copied", cwd=place)
        for copy in ("repository", "clone", "copied"):
            assert _run("git", "fsck", "--full", "--strict", cwd=place / copy) == b""
            assert _run("git", "status", "--porcelain", cwd=place / copy) == b""
        heads.append(_run("git", "rev-parse", "HEAD", "HEAD^{tree}", cwd=place / "clone"))
    assert heads[0] == heads[1]


@pytest.mark.slow
def test_dpkg_replaces_files(places: tuple[Path, Path]) -> None:
    """Dpkg installs, upgrades (rename over running files), and removes a package."""
    mounts.need_program("dpkg", "dpkg-deb")
    mounts.need_root()
    for place in places:
        for version in ("1", "2"):
            tree = place / f"build{version}"
            (tree / "DEBIAN").mkdir(parents=True)
            (tree / "DEBIAN" / "control").write_text(
                f"Package: example\nVersion: {version}\nArchitecture: all\n"
                "Maintainer: a <a@example.com>\nDescription: example\n"
            )
            (tree / "DEBIAN" / "conffiles").write_text("/etc/example.conf\n")
            (tree / "etc").mkdir()
            (tree / "etc" / "example.conf").write_text(f"version = {version}\n")
            (tree / "bin").mkdir()
            (tree / "bin" / "example").write_text(f"#!/bin/sh\necho {version}\n")
            (tree / "bin" / "example").chmod(0o755)
            (tree / "bin" / "hard").hardlink_to(tree / "bin" / "example")
            (tree / "bin" / "soft").symlink_to("example")
            _run("dpkg-deb", "--build", "--root-owner-group", tree, f"v{version}.deb", cwd=place)
            shutil.rmtree(tree)
        root = place / "root"
        for directory in ("var/lib/dpkg/info", "var/lib/dpkg/updates", "var/log"):
            (root / directory).mkdir(parents=True)
        (root / "var/lib/dpkg/status").touch()
        dpkg = ["dpkg", f"--root={root}", f"--log={root}/var/log/dpkg.log", "--force-confnew"]
        for version in ("1", "2"):
            _run(*dpkg, "--install", f"v{version}.deb", cwd=place)
            assert _run(root / "bin" / "soft", cwd=place) == f"{version}\n".encode()
            (place / f"v{version}.deb").unlink()
        _run(*dpkg, "--verify", "example", cwd=place)
        assert (root / "bin/hard").samefile(root / "bin/example")
        _run(*dpkg, "--remove", "example", cwd=place)
        assert not (root / "bin").exists()
        _run(*dpkg, "--purge", "example", cwd=place)
        shutil.rmtree(root / "var/log")
        (root / "var/lib/dpkg/lock").unlink(missing_ok=True)
    assert _same(places) == []


def test_editors(places: tuple[Path, Path]) -> None:
    """Vim and sed edit in place, with the mode and the hard links that they leave elsewhere."""
    mounts.need_program("sed")
    vim = shutil.which("vim") or shutil.which("vim.tiny")
    if vim is None:
        mounts.missing("the program vim")
    for place in places:
        for name in ("sed.conf", "vim.conf"):
            (place / name).write_text("a = 1\nb = 2\n" * 50)
            (place / name).chmod(0o640)
        (place / "link.conf").symlink_to("sed.conf")
        os.link(place / "vim.conf", place / "hard.conf")
        _run("sed", "-i.bak", "s/a = 1/a = 3/", "sed.conf", cwd=place)
        _run("sed", "-i", "--follow-symlinks", "s/b = 2/b = 4/", "link.conf", cwd=place)
        edit = ["-es", "-u", "NONE", "-c", "set backup", "-c", "%s/a = 1/a = 5/", "-c", "wq"]
        _run(str(vim), *edit, "vim.conf", cwd=place)
        assert (place / "vim.conf").read_text() == "a = 5\nb = 2\n" * 50
        assert (place / "sed.conf").read_text() == "a = 3\nb = 4\n" * 50
    assert _same(places) == []


def _furnish(place: Path) -> None:
    """Make a tree with everything that an archive can hold."""
    (place / "directory").mkdir(mode=0o2775)
    (place / "directory" / "file").write_bytes(b"content" * 1000)
    (place / "directory" / "hard").hardlink_to(place / "directory" / "file")
    (place / "soft").symlink_to("directory/file")
    (place / "dangling").symlink_to("nowhere")
    os.mkfifo(place / "fifo", 0o600)
    with (place / "sparse").open("wb") as file:
        file.seek(1 << 20)
        file.write(b"end")
    os.setxattr(place / "directory" / "file", "user.comment", b"an attribute")
    acl = ["setfacl", "-m", "u:20001:rw,g:20002:r", "directory/file"]
    if shutil.which("setfacl"):
        _run(*acl, cwd=place)
    if os.geteuid() == 0:
        os.chown(place / "directory" / "file", 20_001, 20_002)
        (place / "directory" / "file").chmod(0o4755)
        os.chown(place / "soft", 20_003, 20_003, follow_symlinks=False)
        os.setxattr(place / "directory" / "file", "trusted.mark", b"root's")
    for number, path in enumerate(sorted(place.rglob("*"))):
        os.utime(path, ns=(10**18 + number, 10**18 + number * 7), follow_symlinks=False)


@pytest.mark.parametrize("direction", ["to the mount", "from the mount"])
def test_rsync_and_tar_keep_everything(places: tuple[Path, Path], direction: str) -> None:
    """`rsync -aHAX` and `tar --xattrs --acls` carry a tree to the mount, and from it."""
    mounts.need_program("rsync", "tar")
    source, target = places if direction == "to the mount" else places[::-1]
    original = source / "original"
    original.mkdir()
    _furnish(original)
    everything = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--sparse"]
    _run("rsync", "-aHAX", "--sparse", f"{original}/", target / "by-rsync", cwd=source)
    _run("tar", *everything, "-C", original, "-cf", target / "archive.tar", ".", cwd=source)
    (target / "by-tar").mkdir()
    _run("tar", *everything, "-C", target / "by-tar", "-xpf", target / "archive.tar", cwd=source)
    expected = snapshot.take(os.fsencode(original), times=True)
    for copy in ("by-rsync", "by-tar"):
        seen = snapshot.take(os.fsencode(target / copy), times=True)
        assert snapshot.differences(expected, seen) == [], copy
    again = _run("rsync", "-aHAXni", f"{original}/", target / "by-rsync/", cwd=source)
    assert again == b"", "rsync finds nothing to do a second time"


@pytest.mark.parametrize("journal", ["delete", "wal", "truncate"])
def test_sqlite(places: tuple[Path, Path], journal: str) -> None:
    """SQLite with each kind of journal, WAL's shared memory included, and two writers at once."""
    mounts.need_program("sqlite3")
    database = places[1] / f"{journal}.db"
    begin = f"PRAGMA journal_mode={journal}; CREATE TABLE t(writer INT, number INT);"
    assert journal.encode() in _run("sqlite3", database, begin, cwd=places[1])
    inserts = "PRAGMA busy_timeout=20000;" + "".join(
        f"INSERT INTO t VALUES({{writer}}, {number});" for number in range(60)
    )
    writers = [
        subprocess.Popen(
            ["sqlite3", "-bail", database, inserts.replace("{writer}", str(writer))],
            stdout=subprocess.DEVNULL,
        )
        for writer in range(3)
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    count = "PRAGMA integrity_check; SELECT writer, count(*), sum(number) FROM t GROUP BY writer;"
    expected = "ok\n" + "".join(f"{writer}|60|1770\n" for writer in range(3))
    assert _run("sqlite3", database, count, cwd=places[1]).decode() == expected


def test_flock_excludes(places: tuple[Path, Path]) -> None:
    """flock(1) lets one in at a time: twenty increments of a counter by ten processes are 200."""
    mounts.need_program("flock")
    place = places[1]
    (place / "counter").write_text("0\n")
    loop = (
        "i=0; while [ $i -lt 20 ]; do flock lock sh -c "
        "'read n < counter; echo $((n + 1)) > counter'; i=$((i + 1)); done"
    )
    processes = [subprocess.Popen(["sh", "-c", loop], cwd=place) for _ in range(10)]
    assert [process.wait(100) for process in processes] == [0] * 10
    assert (place / "counter").read_text() == "200\n"


def test_flock_waits_and_gives_up(places: tuple[Path, Path]) -> None:
    """flock(1) waits for the holder's end, and with a limit gives up in time."""
    mounts.need_program("flock")
    place = places[1]
    with subprocess.Popen(["flock", "lock", "cat"], stdin=subprocess.PIPE, cwd=place) as holder:
        mounts.wait_until(
            lambda: (
                subprocess.run(["flock", "-n", "lock", "true"], cwd=place, check=False).returncode
                == 1
            )
        )
        refused = subprocess.run(["flock", "-w", "0.2", "lock", "true"], cwd=place, check=False)
        assert refused.returncode == 1
        with subprocess.Popen(["flock", "lock", "true"], cwd=place) as waiting:
            assert waiting.poll() is None
            assert holder.stdin is not None
            holder.stdin.close()
            assert waiting.wait(10) == 0


@pytest.mark.slow
def test_make_like_time_stamps(places: tuple[Path, Path]) -> None:
    """Find's -newer and cp -u decide on the mount as on the plain directory."""
    decisions = []
    for place in places:
        (place / "old").write_text("old")
        time.sleep(0.02)
        (place / "new").write_text("new")
        found = _run("find", ".", "-newer", "old", "-type", "f", cwd=place)
        _run("cp", "-u", "old", "new", cwd=place)
        _run("cp", "-a", "new", "kept", cwd=place)
        same = (place / "kept").stat().st_mtime_ns == (place / "new").stat().st_mtime_ns
        decisions.append((found, (place / "new").read_text(), same))
    assert decisions[0] == decisions[1] == (b"./new\n", "new", True)
