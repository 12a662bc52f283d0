"""I3: a certificate counts when its last writer has closed it; until then the last complete one."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import mounts, peer, pki, writers
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer
from tests.support.syscalls import Rename, renameat2
from tests.support.tree import Tree

pytestmark = pytest.mark.mount

SECONDS = float(os.environ.get("CERTFS_TEST_SECONDS", "2"))
"""How long slow writers and readers run against each other; the nightly run sets more."""

WRITE, TRUNCATE, CREATE = os.O_WRONLY, os.O_TRUNC, os.O_CREAT


@pytest.fixture(scope="module")
def shared_mount() -> Iterator[CertfsMount]:
    """Mount once for the module; every test empties `certs` first."""
    with mounts.mounted() as mount:
        mount.expected_log += ["empty file", "has no END"]
        yield mount


@pytest.fixture
def tree(shared_mount: CertfsMount) -> Tree:
    """Give the tree with an empty `certs`."""
    for name in os.listdir(shared_mount.tree.certs):
        (shared_mount.tree.certs / name).unlink()
    return shared_mount.tree


@pytest.fixture(scope="module")
def pair() -> tuple[bytes, bytes]:
    """Give the PEMs of two certificates, the old and the new one."""
    old, new = pki.many(2)
    return old.pem, new.pem


def _bundle(tree: Tree, process: Peer) -> bytes | None:
    return process.call(peer.read_or_none, str(tree.user_bundle))


def test_a_new_file_enters_at_its_close(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I3: a file that is written in small pieces is not in the bundle before it is closed."""
    handle = os.open(tree.certs / "x.pem", WRITE | CREATE, 0o644)
    for at in range(0, len(pair[1]), 40):
        os.write(handle, pair[1][at : at + 40])
        assert _bundle(tree, other_process) is None
    os.close(handle)
    assert _bundle(tree, other_process) == pair[1]


@pytest.mark.parametrize("flags", [0, TRUNCATE], ids=["in place", "truncated"])
def test_an_overwritten_file_counts_as_before_until_its_close(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes], flags: int
) -> None:
    """I3: while a file is written anew its last complete content stays in the bundle."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    handle = os.open(source, WRITE | flags)
    for at in range(0, len(pair[1]), 40):
        assert _bundle(tree, other_process) == pair[0]
        os.write(handle, pair[1][at : at + 40])
    os.ftruncate(handle, len(pair[1]))
    assert _bundle(tree, other_process) == pair[0]
    os.close(handle)
    assert _bundle(tree, other_process) == pair[1]


def test_the_last_of_several_writers_counts(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I3: with two that have written and a duplicate, nothing counts before the last descriptor closes."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    first, second = os.open(source, WRITE | TRUNCATE), os.open(source, os.O_RDWR)
    duplicate = os.dup(second)
    os.write(first, pair[1])
    os.write(second, pair[1][:10])
    for handle in (first, second):
        os.close(handle)
        assert _bundle(tree, other_process) == pair[0]
    os.close(duplicate)
    assert _bundle(tree, other_process) == pair[1]


def test_what_was_complete_counts_while_it_is_written_anew_at_once(
    tree: Tree, other_process: Peer
) -> None:
    """I3: who empties a large file right after another has closed it takes nothing away before closing it."""
    source = tree.certs / "x.pem"
    many = [pki.authority(f"authority {number}").pem for number in range(200)]
    for turn in range(10):
        content = b"".join(many[turn:])
        source.write_bytes(content)
        handle = os.open(source, WRITE | TRUNCATE)
        assert _bundle(tree, other_process) == content
        os.write(handle, many[0])
        assert _bundle(tree, other_process) == content
        os.close(handle)
        source.write_bytes(content)
        with source.open("r+b", buffering=0) as file:
            file.truncate(0)
            assert _bundle(tree, other_process) == content
            file.write(content)


@pytest.mark.parametrize("beneath", [False, True], ids=["mount", "store"])
def test_an_idle_descriptor_does_not_keep_what_was_revoked(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes], *, beneath: bool
) -> None:
    """I3: what is written in place counts at its writer's close, though an older descriptor is still open."""
    certs = tree.store / "stunnel/certs" if beneath else tree.certs
    source = certs / "x.pem"
    source.write_bytes(pair[0])
    assert _bundle(tree, other_process) == pair[0]
    with source.open("r+b", buffering=0) as idle:
        for written in (pair[1], pair[0], pair[1]):
            source.write_bytes(written)
            assert _bundle(tree, other_process) == written
        if beneath:
            return  # who writes there is not known, only that a process may
        idle.write(pair[1][:1])
        with source.open("r+b", buffering=0) as admin:
            admin.write(pair[0])
            admin.truncate()
        # It has written: it is a writer, and said to be one, until it closes.
        assert _bundle(tree, other_process) == pair[1]
        (found,) = _being_written(tree)
        assert (found["source"], found["writers"][0]["pid"]) == ("x.pem", os.getpid())
        assert found["certificates"] == pki.certificates_in(pair[1])
    assert _bundle(tree, other_process) == pair[0]
    assert _being_written(tree) == []


def _being_written(tree: Tree) -> list[Any]:
    status = json.loads((tree.root / ".certfs" / "status.json").read_bytes())
    return [one for bundle in status["bundles"] for one in bundle["being_written"]]


def _listed(tree: Tree) -> dict[str | None, tuple[bool, str, str | None]]:
    command = [mounts.certfs_program(), "list", str(tree.root), "--json"]
    items = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {
        item["sha256"]: (item["included"], item["source"].rpartition("/")[2], item["reason"])
        for item in items
        if "xapi-stunnel" in item["bundle"]
    }


def test_a_file_that_is_only_open_is_listed_as_it_counts(
    tree: Tree, pair: tuple[bytes, bytes]
) -> None:
    """I9: a descriptor or a mapping that could write and does not changes nothing in what is listed."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    with source.open("r+b") as idle, mmap.mmap(idle.fileno(), 0):
        source.write_bytes(pair[1])
        assert _listed(tree) == {pki.certificates_in(pair[1])[0]: (True, "x.pem", None)}


def test_list_shows_what_counts_while_a_source_is_written(
    tree: Tree, pair: tuple[bytes, bytes]
) -> None:
    """I9: the certificate that is trusted is listed under its file, the one that is not yet has a reason."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    with source.open("r+b", buffering=0) as file:
        file.write(pair[1])
        file.truncate()
        listed = _listed(tree)
    assert listed == {
        pki.certificates_in(pair[0])[0]: (True, "x.pem", "kept while it is being written"),
        None: (False, "x.pem", "being written"),
    }


def test_a_reader_does_not_hold_back_a_change(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I3: an open reader of the source file is no writer."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    with source.open("rb") as reader:
        source.write_bytes(pair[1])
        assert _bundle(tree, other_process) == pair[1]
        assert reader.readable()


def test_a_shell_redirection_keeps_the_old_until_its_end(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I3: `cat slow > x.pem` flushes a duplicate first; the old certificate stays until the end."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    with subprocess.Popen(["sh", "-c", f"cat > '{source}'"], stdin=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        shell.stdin.write(pair[1][:300])
        shell.stdin.flush()
        mounts.wait_until(lambda: source.read_bytes() == pair[1][:300])
        assert _bundle(tree, other_process) == pair[0]
        shell.stdin.write(pair[1][300:])
        shell.stdin.close()
    assert _bundle(tree, other_process) == pair[1]


def test_a_group_of_commands_redirected_is_one_write(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I3: `{ cat a; sleep; cat b; } > x.pem` counts once, when the shell closes the file."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    script = f"{{ head -c 300; head -c 300 >/dev/null; cat; }} > '{source}'"
    with subprocess.Popen(["sh", "-c", script], stdin=subprocess.PIPE) as shell:
        assert shell.stdin is not None
        shell.stdin.write(pair[1][:300])
        shell.stdin.flush()
        mounts.wait_until(lambda: source.stat().st_size == 300)
        assert _bundle(tree, other_process) == pair[0]
        shell.stdin.close()
    assert _bundle(tree, other_process) is None  # What was written is half a certificate.


def test_an_emptied_file_empties(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I1, I3: `: > x.pem` writes nothing, and still takes the certificate out."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    subprocess.run(["sh", "-c", f": > '{source}'"], check=True, timeout=10)
    assert _bundle(tree, other_process) is None


def test_opening_for_writing_without_a_write_changes_nothing(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I3: a writer that writes nothing leaves the certificate where it is."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    handle = os.open(source, os.O_RDWR)
    assert _bundle(tree, other_process) == pair[0]
    os.close(handle)
    assert _bundle(tree, other_process) == pair[0]


def test_a_mapped_writer_counts_at_its_close(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I3: what is written through a shared mapping counts when file and mapping are gone."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    handle = os.open(source, os.O_RDWR)
    os.ftruncate(handle, len(pair[1]))
    with mmap.mmap(handle, len(pair[1]), mmap.MAP_SHARED) as area:
        os.close(handle)
        area[:] = pair[1]
        area.flush()
        assert _bundle(tree, other_process) == pair[0]
    assert _bundle(tree, other_process) == pair[1]


def test_a_killed_writer_leaves_what_it_wrote(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I3, I4: a writer that is killed has closed its file; half a certificate is none."""
    source = tree.certs / "x.pem"
    (tree.certs / "good.pem").write_bytes(pair[0])
    with subprocess.Popen(["sh", "-c", f"exec cat > '{source}'"], stdin=subprocess.PIPE) as cat:
        assert cat.stdin is not None
        cat.stdin.write(pair[1][:300])
        cat.stdin.flush()
        mounts.wait_until(lambda: source.exists() and source.stat().st_size == 300)
        cat.send_signal(signal.SIGKILL)
        cat.wait(10)
    assert _bundle(tree, other_process) == pair[0]


def test_a_file_renamed_while_it_is_written_enters_at_its_close(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I3: a temporary file that gets its final name before its close is not in until the close."""
    handle = os.open(tree.certs / "x.tmp", WRITE | CREATE, 0o644)
    os.write(handle, pair[1][:300])
    (tree.certs / "x.tmp").rename(tree.certs / "x.pem")
    assert _bundle(tree, other_process) is None
    os.write(handle, pair[1][300:])
    os.close(handle)
    assert _bundle(tree, other_process) == pair[1]


def test_a_source_renamed_while_it_is_overwritten_keeps_its_last_content(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I3: the last complete content of a file follows it to its new name."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    handle = os.open(source, WRITE | TRUNCATE)
    source.rename(tree.certs / "y.pem")
    assert _bundle(tree, other_process) == pair[0]
    os.write(handle, pair[1])
    os.close(handle)
    assert _bundle(tree, other_process) == pair[1]


def test_a_file_unlinked_while_it_is_written_is_gone(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I1: an unlink takes a certificate out at once, whoever is still writing to it."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    handle = os.open(source, WRITE)
    source.unlink()
    assert _bundle(tree, other_process) is None
    os.write(handle, pair[1])
    os.close(handle)
    assert _bundle(tree, other_process) is None


def test_another_name_of_the_file_counts_too(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I1, I3: a source that is written through a hard link elsewhere changes at that close."""
    source = tree.certs / "x.pem"
    source.write_bytes(pair[0])
    elsewhere = tree.xensource / "other-name"
    os.link(source, elsewhere)
    handle = os.open(elsewhere, WRITE | TRUNCATE)
    os.write(handle, pair[1])
    assert _bundle(tree, other_process) == pair[0]
    os.close(handle)
    elsewhere.unlink()
    assert _bundle(tree, other_process) == pair[1]


@pytest.mark.slow
def test_no_reader_ever_sees_a_file_half_written(tree: Tree) -> None:
    """I3: while eight writers overwrite in pieces, every look has each one's old or new content."""
    texts = [[pki.issue(f"{writer} {turn}").pem for turn in range(2)] for writer in range(8)]
    for number, (text, _) in enumerate(texts):
        (tree.certs / f"{number}.pem").write_bytes(text)
    torn = 0
    looks = 0
    with peer.peers(8) as busy, peer.peers(2) as readers:
        while looks <= 3:  # more than once where a busy machine leaves the readers no time
            for number, writer in enumerate(busy):
                place = str(tree.certs / f"{number}.pem")
                writer.send(writers.write_slowly, place, texts[number], SECONDS)
            while not all(writer.has_answered() for writer in busy):
                for reader in readers:
                    reader.send(peer.look, str(tree.user_bundle))
                for seen in [reader.receive() for reader in readers]:
                    looks += 1
                    found = seen.content if seen else b""
                    whole = all((one in found) != (two in found) for one, two in texts)
                    torn += not (whole and len(pki.certificates_in(found)) == len(texts))
            assert min(writer.receive() for writer in busy) >= 3
    assert torn == 0


def test_a_slow_writer_holds_up_nobody(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I3: while one file stays open for writing, other files come and go as usual."""
    slow = os.open(tree.certs / "slow.pem", WRITE | CREATE, 0o644)
    os.write(slow, pair[1][:100])
    for _ in range(20):
        (tree.certs / "other.pem").write_bytes(pair[0])
        assert _bundle(tree, other_process) == pair[0]
        (tree.certs / "other.pem").unlink()
        assert _bundle(tree, other_process) is None
    os.close(slow)


def test_threads_that_write_the_same_file_leave_the_last_close(
    tree: Tree, other_process: Peer, pair: tuple[bytes, bytes]
) -> None:
    """I3: with writers of one file that overlap at random, the end is the file's content."""
    source = tree.certs / "x.pem"

    def write(text: bytes) -> None:
        for _ in range(50):
            source.write_bytes(text)

    threads = [threading.Thread(target=write, args=(text,)) for text in pair * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    source.write_bytes(pair[1])
    assert _bundle(tree, other_process) == pair[1]


def test_a_name_that_is_no_source_keeps_nothing(certfs_mount: CertfsMount) -> None:
    """I1: a file that is renamed away while it is written is trusted no more, now and when it is gone."""
    certs, bundle = certfs_mount.tree.certs, certfs_mount.tree.user_bundle
    (certs / "x.pem").write_bytes(pki.authority("renamed away").pem)
    with (certs / "x.pem").open("r+b", buffering=0) as file:
        file.write(b"half of another")
        (certs / "x.pem").rename(certs / "x.bak")
        assert not bundle.exists()
    assert not bundle.exists()
    (certs / "x.bak").unlink()
    assert not bundle.exists()


def test_both_sides_of_an_exchange_keep_what_they_were(certfs_mount: CertfsMount) -> None:
    """I3: two sources that are exchanged while one is written: its last complete content goes with it."""
    certs, bundle = certfs_mount.tree.certs, certfs_mount.tree.user_bundle
    one, two = pki.authority("exchange one").pem, pki.authority("exchange two").pem
    (certs / "a.pem").write_bytes(one)
    (certs / "b.pem").write_bytes(two)
    for written in ("a.pem", "b.pem"):
        with (certs / written).open("r+b", buffering=0) as file:
            kept = file.read()
            os.pwrite(file.fileno(), b"torn", 0)
            renameat2(os.fsencode(certs / "a.pem"), os.fsencode(certs / "b.pem"), Rename.EXCHANGE)
            assert set(pki.certificates_in(bundle.read_bytes())) == {
                fingerprint for pem in (one, two) for fingerprint in pki.certificates_in(pem)
            }
            os.pwrite(file.fileno(), kept, 0)


def test_truncating_in_the_store_empties_the_source(certfs_mount: CertfsMount) -> None:
    """I13: truncate(2) directly in the store shows at the next open, though nobody opens or closes the file."""
    tree = certfs_mount.tree
    text = pki.authority("cut").pem
    beneath = tree.store / "stunnel/certs/cut.pem"
    certfs_mount.expected_log.append("cut.pem.*empty file")
    for _ in range(50):
        beneath.write_bytes(text)
        assert tree.user_bundle.read_bytes() == text
        os.truncate(beneath, 0)
        assert not tree.user_bundle.exists()


def test_truncating_under_another_name_empties_the_source(certfs_mount: CertfsMount) -> None:
    """I1: a hard link elsewhere is another name of the source, also for truncate(2) without an open file."""
    tree = certfs_mount.tree
    text = pki.authority("linked").pem
    elsewhere = tree.xensource / "elsewhere"
    elsewhere.write_bytes(text)
    os.link(elsewhere, tree.certs / "linked.pem")
    certfs_mount.expected_log.append("linked.pem.*empty file")
    for _ in range(50):
        elsewhere.write_bytes(text)
        assert tree.user_bundle.read_bytes() == text
        os.truncate(elsewhere, 0)
        assert not tree.user_bundle.exists()
