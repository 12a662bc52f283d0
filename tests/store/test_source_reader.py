"""Reading a source, whatever it turns out to be: never blocking, never through, with a reason."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from certfs.core.catalog import Source
from certfs.store import source_reader
from certfs.store.backing import file_id, stamp, stamp_head, status_at
from certfs.store.source_reader import SourceReader, Writers, as_it_was, has_writer, source_names
from tests.support import mounts, pki

_ONE = pki.authority("scan one")


def read(
    reader: SourceReader, directory: int, name: bytes = b"x.pem", **options: object
) -> Source | None:
    """Read a source as the bundles do."""
    status = status_at(directory, name)
    if status is None:
        return None
    known = options.get("known")
    reading = reader.read(
        directory,
        name,
        status,
        known if isinstance(known, Source) else None,
        options.get("writers", Writers.NONE),  # type: ignore[arg-type]
    )
    return None if reading is None else reading.source


def reason(source: Source | None) -> str:
    """Give the only reason why a source contributes nothing."""
    assert source is not None
    assert not source.content.certificates
    (remark,) = source.content.remarks
    return remark.reason


def in_time(call: Callable[[], None]) -> None:
    """Fail if a call takes longer than ten seconds instead of hanging with it."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive(), "the read blocks"


def test_a_regular_file_is_read(reader: SourceReader, directory: int, tmp_path: Path) -> None:
    """I6: a source is a regular file; its stamp tells later whether it changed."""
    (tmp_path / "x.pem").write_bytes(_ONE.pem)
    source = read(reader, directory)
    assert source is not None
    assert [each.pem for each in source.content.certificates] == [_ONE.pem]
    assert source.stamp == stamp((tmp_path / "x.pem").stat())


def test_nothing_is_nothing(reader: SourceReader, directory: int) -> None:
    """I6: no file, no source, no reason."""
    assert read(reader, directory) is None


def _make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def _make_device(path: Path) -> None:
    mounts.need_root()
    os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))


def _make_sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 10 << 30)


def _make_loop(path: Path) -> None:
    path.symlink_to(path.name)


_STRANGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "directory": (Path.mkdir, "a directory"),
    "FIFO": (os.mkfifo, "a FIFO"),
    "socket": (_make_socket, "a socket"),
    "device": (_make_device, "a character device"),
    "sparse": (_make_sparse, "10737418240 bytes, more than the limit of 1048576"),
    "dangling": (lambda path: path.symlink_to("nothing"), "symbolic link to nothing"),
    "loop": (_make_loop, "too many symbolic links"),
    "link to a directory": (lambda path: path.symlink_to("."), "a directory"),
    "link to a device": (lambda path: path.symlink_to("/dev/zero"), "a character device"),
    "link to a terminal": (lambda path: path.symlink_to("/dev/tty"), "a character device"),
    "empty": (Path.touch, "empty file"),
}


@pytest.mark.parametrize("make, expected", _STRANGE.values(), ids=_STRANGE)
def test_a_strange_source_is_left_out_with_its_reason(
    reader: SourceReader,
    directory: int,
    tmp_path: Path,
    make: Callable[[Path], None],
    expected: str,
) -> None:
    """I6, I9: it is never opened in a way that could block, and what it is can be read."""
    make(tmp_path / "x.pem")
    in_time(lambda: None if expected in reason(read(reader, directory)) else pytest.fail("reason"))
    assert expected in reason(read(reader, directory))


def test_a_link_to_a_fifo_does_not_block(
    reader: SourceReader, directory: int, tmp_path: Path
) -> None:
    """I6: a target is judged before it is opened, too."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "x.pem").symlink_to("fifo")
    in_time(lambda: None if "a FIFO" in reason(read(reader, directory)) else pytest.fail("reason"))


def test_a_link_is_followed_to_a_file(reader: SourceReader, directory: int, tmp_path: Path) -> None:
    """I6: a symlink to a regular file is a source, wherever the file is."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "ca.crt").write_bytes(_ONE.pem)
    (tmp_path / "x.pem").symlink_to("elsewhere/ca.crt")
    source = read(reader, directory)
    assert source is not None
    assert [each.pem for each in source.content.certificates] == [_ONE.pem]


def test_a_file_that_may_not_be_read_has_a_reason(tmp_path: Path) -> None:
    """I6: for a user who is not root, mode 0000 is a reason and not an error."""
    (tmp_path / "x.pem").write_bytes(_ONE.pem)
    (tmp_path / "x.pem").chmod(0)
    tmp_path.chmod(0o755)
    program = (
        "import os, sys\n"
        "from certfs.store.path_walk import PathWalker\n"
        "from certfs.store.source_reader import SourceReader\n"
        "directory = os.open(sys.argv[1], os.O_PATH)\n"
        "os.geteuid() or os.setuid(65534)\n"
        "status = os.stat('x.pem', dir_fd=directory)\n"
        "reading = SourceReader(PathWalker(lambda _: (0, []))).read(directory, b'x.pem', status)\n"
        "print(reading.source.content.remarks[0].reason)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        cwd=Path(__file__).parents[2],
    )
    assert ended.stdout == "cannot be read: Permission denied\n"


@pytest.mark.parametrize("extra", [0, 1])
def test_the_limit_is_exact(
    reader: SourceReader, directory: int, tmp_path: Path, extra: int
) -> None:
    """I18: a file of the limit is read, one byte more is not."""
    small = replace(reader, size_limit=4096)
    (tmp_path / "x.pem").write_bytes(_ONE.pem.ljust(4096 + extra, b"\n"))
    source = read(small, directory)
    assert source is not None
    assert bool(source.content.certificates) == (extra == 0)
    if extra:
        assert reason(source) == "4097 bytes, more than the limit of 4096"


def test_a_file_that_never_stops_growing_is_left_alone(
    reader: SourceReader, directory: int, tmp_path: Path
) -> None:
    """I6, I18: certfs tries a few times, reads no more than the limit each time, and says why."""
    path = tmp_path / "x.pem"
    path.write_bytes(_ONE.pem)
    stop = threading.Event()

    def grow() -> None:
        with path.open("ab", buffering=0) as file:
            while not stop.is_set() and file.tell() < 1 << 26:
                file.write(b"\n" * 64)

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        for _ in range(200):
            source = read(reader, directory)
            assert source is not None
            # Either it was quiet for the moment of the read, or the reason says that it is not.
            assert source.content.certificates or source.content.remarks[0].reason
    finally:
        stop.set()
        thread.join()


def test_an_unchanged_stamp_is_an_unchanged_source(
    reader: SourceReader, directory: int, tmp_path: Path
) -> None:
    """I18: what did not change is not read again; what did is."""
    path = tmp_path / "x.pem"
    path.write_bytes(_ONE.pem)
    known = read(reader, directory)
    assert read(reader, directory, known=known) is known
    path.write_bytes(_ONE.pem + b"\n")
    again = read(reader, directory, known=known)
    assert again is not None
    assert again is not known


def test_a_writer_outside_is_waited_for(
    reader: SourceReader, directory: int, tmp_path: Path
) -> None:
    """I3, I13: while another process writes, the last complete content counts, or nothing yet."""
    path = tmp_path / "x.pem"
    with path.open("wb") as file:
        file.write(_ONE.pem[:100])
        file.flush()
        assert reason(read(reader, directory, writers=Writers.UNLIKELY)) == "being written"
    path.write_bytes(_ONE.pem)
    known = read(reader, directory)
    with path.open("r+b") as file:
        file.write(b"#")
        file.flush()
        assert read(reader, directory, known=known, writers=Writers.UNLIKELY) == as_it_was(known)
    assert read(reader, directory, known=known, writers=Writers.UNLIKELY) is not known


def test_what_was_only_heard_to_be_written_is_read_if_nobody_has_it_open(
    reader: SourceReader, directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I3, I13: truncate(2) needs no open file; where the kernel grants no leases nobody can tell it from a writer."""
    path = tmp_path / "x.pem"
    path.write_bytes(_ONE.pem)
    known = read(reader, directory)
    os.truncate(path, 0)
    with path.open("r+b"):
        assert read(reader, directory, known=known, writers=Writers.LIKELY) == as_it_was(known)
    with monkeypatch.context() as context:
        context.setattr(source_reader, "has_writer", lambda _: None)
        assert read(reader, directory, known=known, writers=Writers.LIKELY) == as_it_was(known)
        assert (
            reason(read(reader, directory, known=known, writers=Writers.UNLIKELY)) == "empty file"
        )
    assert reason(read(reader, directory, known=known, writers=Writers.LIKELY)) == "empty file"


def test_a_file_that_was_just_changed_outside_is_read_again(
    reader: SourceReader, directory: int, tmp_path: Path
) -> None:
    """I13: on older kernels a second change in the same tick leaves the stamp as it was: it is not trusted yet."""
    path = tmp_path / "x.pem"
    path.write_bytes(_ONE.pem)
    fresh = read(reader, directory, writers=Writers.UNLIKELY)
    assert fresh is not None
    assert fresh.content.certificates
    assert fresh.stamp == stamp_head(file_id(path.stat()))
    mounts.wait_until(
        lambda: time.time_ns() - path.stat().st_ctime_ns > 30_000_000, what="another tick"
    )
    settled = read(reader, directory, known=fresh, writers=Writers.UNLIKELY)
    assert settled is not None
    assert settled.stamp == stamp(path.stat())
    assert read(reader, directory, known=settled, writers=Writers.UNLIKELY) is settled


def test_a_lease_tells_writers_from_readers(tmp_path: Path) -> None:
    """fcntl(2), F_SETLEASE: refused with a writer, granted beside readers, and left with nobody."""
    path = tmp_path / "file"
    path.touch()
    fd = os.open(path, os.O_RDONLY)
    with path.open("rb"):
        assert not has_writer(fd)
    with path.open("ab"):
        assert has_writer(fd)
    assert not has_writer(fd)
    # No lease stays behind: opening for writing does not wait for one to be broken.
    os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    os.close(fd)


def test_where_leases_are_not_to_be_had_nobody_is_taken_for_a_writer() -> None:
    """A lease is for regular files: then nobody can tell, and nobody waits."""
    reading, writing = os.pipe()
    assert not has_writer(reading)
    os.close(reading)
    os.close(writing)


def test_a_link_to_the_plain_copy_of_a_bundle_is_no_source(
    reader: SourceReader, directory: int, tmp_path: Path
) -> None:
    """A bundle that were its own source could never lose a certificate."""
    (tmp_path / "bundle").write_bytes(_ONE.pem)
    bundle = file_id((tmp_path / "bundle").stat())
    (tmp_path / "x.pem").symlink_to("bundle")
    wary = replace(reader, is_bundle=lambda identity: identity == bundle)
    assert "a bundle cannot be its own source" in reason(read(wary, directory))


def test_a_failure_to_open_is_not_taken_for_the_file_s_content(
    reader: SourceReader, directory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """I1: a file that could not be opened for want of descriptors is read when it can be."""
    (tmp_path / "x.pem").write_bytes(_ONE.pem)
    real = os.open

    def refuse(path: str | bytes, flags: int, *arguments: int, **options: int) -> int:
        if isinstance(path, str):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path, flags, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        failed = read(reader, directory)
    assert "Too many open files" in reason(failed)
    again = read(reader, directory, known=failed)
    assert again is not None
    assert again.content.certificates


_NAMES = [
    b"\xff\xfe.pem",
    b"a\nb.pem",
    b"\x1b[31mred\x1b[0m.pem",
    b" .pem",
    b".pem",
    b"a" * 251 + b".pem",
]


@pytest.mark.parametrize("name", _NAMES)
def test_a_name_may_be_any_bytes(
    reader: SourceReader, directory: int, tmp_path: Path, name: bytes
) -> None:
    """I6: names are bytes from end to end."""
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(_ONE.pem)
    assert source_names(directory) == [name]
    source = read(reader, directory, name)
    assert source is not None
    assert source.content.certificates


def test_only_pem_names_are_sources(directory: int, tmp_path: Path) -> None:
    """I6: hash links, backups and temporary files are not looked at."""
    for name in ("a.pem", "b.new.pem", "1a2b3c4d.0", "c.pem.bak", "d.tmp", "e.PEM"):
        (tmp_path / name).touch()
    assert sorted(source_names(directory)) == [b"a.pem", b"b.new.pem"]


def test_no_descriptor_is_kept_per_source(
    reader: SourceReader, directory: int, tmp_path: Path
) -> None:
    """I18: whatever kinds of sources were read, as many descriptors are open as before."""
    for kind, (make, _) in _STRANGE.items():
        if kind != "device":
            make(tmp_path / f"{kind}.pem")
    (tmp_path / "good.pem").write_bytes(_ONE.pem)
    before = len(os.listdir("/proc/self/fd"))
    for name in source_names(directory):
        read(reader, directory, name)
    assert len(os.listdir("/proc/self/fd")) == before
