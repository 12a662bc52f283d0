"""The handlers, called in the order in which the kernel calls them."""

from __future__ import annotations

import errno
import os
import stat
import time

import pyfuse3
import pytest
import trio

from certfs.fuse.inodes import ROOT
from certfs.store.backing import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.fuse.filesystem import CTX, Filesystem, fails
from tests.support import pki

ONE, TWO = (pki.authority(f"fuse {number}") for number in range(2))
BUNDLE = "bundle.pem"


async def bundle(fs: Filesystem, name: str = BUNDLE) -> bytes | None:
    """Give what an open of the bundle reads now, None if there is none."""
    try:
        return await fs.read(name)
    except pyfuse3.FUSEError as error:
        if error.errno == errno.ENOENT:
            return None
        raise


# --- I1, I3: when a written source enters --------------------------------------


async def test_a_copied_file_enters_when_it_is_closed(fs: Filesystem) -> None:
    """I1, I3: not with a write, not with a FLUSH, with the RELEASE."""
    handle = await fs.create("certs/a.pem")
    await fs.write(handle, ONE.pem[:100])
    assert await bundle(fs) is None
    await fs.write(handle, ONE.pem[100:], 100)
    with fails(errno.ENOSYS):
        await fs.operations.flush(handle)
    assert await bundle(fs) is None
    await fs.operations.release(handle)
    assert await bundle(fs) == ONE.pem


async def test_a_shell_s_redirection_keeps_the_old_one_until_it_closes(fs: Filesystem) -> None:
    """I3: O_TRUNC empties the file, and the last complete content counts."""
    await fs.put("certs/a.pem", ONE.pem)
    handle = await fs.open("certs/a.pem", os.O_WRONLY | os.O_TRUNC)
    assert await bundle(fs) == ONE.pem
    await fs.write(handle, TWO.pem)
    assert await bundle(fs) == ONE.pem
    await fs.operations.release(handle)
    assert await bundle(fs) == TWO.pem


async def test_emptying_a_source_empties_the_bundle(fs: Filesystem) -> None:
    """I1, I7: ``: > x.pem`` writes nothing, and must count."""
    await fs.put("certs/a.pem", ONE.pem)
    handle = await fs.open("certs/a.pem", os.O_WRONLY | os.O_TRUNC)
    await fs.operations.release(handle)
    assert await bundle(fs) is None


async def test_the_last_of_several_writers_counts(fs: Filesystem) -> None:
    """I3: as long as a descriptor is open that has written, the file is not complete."""
    first = await fs.create("certs/a.pem")
    second = await fs.open("certs/a.pem", os.O_WRONLY)
    await fs.write(first, ONE.pem)
    await fs.write(second, ONE.pem)
    await fs.operations.release(first)
    assert await bundle(fs) is None
    await fs.operations.release(second)
    assert await bundle(fs) == ONE.pem


async def test_a_descriptor_that_has_not_written_delays_nothing(fs: Filesystem) -> None:
    """I3: what one writer closes counts, however long another descriptor stays open, and whatever it once wrote."""
    old = await fs.create("certs/a.pem")
    await fs.write(old, ONE.pem)
    idle = await fs.open("certs/a.pem", os.O_RDWR)
    await fs.operations.release(old)
    assert await bundle(fs) == ONE.pem
    for written in (TWO.pem, ONE.pem):
        await fs.put("certs/a.pem", written)
        assert await bundle(fs) == written
    assert fs.operations.being_written() == []
    await fs.write(idle, b"X")
    (being_written,) = fs.operations.being_written()
    assert (being_written.name, len(being_written.writers)) == (b"a.pem", 1)
    assert await bundle(fs) == ONE.pem
    await fs.operations.release(idle)


async def test_a_reader_of_a_source_delays_nothing(fs: Filesystem) -> None:
    """I3: only writers make a file incomplete."""
    await fs.put("certs/a.pem", ONE.pem)
    reader = await fs.open("certs/a.pem")
    await fs.put("certs/a.pem", TWO.pem)
    assert await bundle(fs) == TWO.pem
    await fs.operations.release(reader)


async def test_a_rename_within_the_directory_is_one_step(fs: Filesystem) -> None:
    """I1: the old name's certificate never goes before the new name's comes."""
    await fs.put("certs/a.pem", ONE.pem)
    generations = {fs.trust.bundle_at(fs.operations.inodes[ROOT].id, BUNDLE.encode())}
    (live,) = generations
    assert live is not None
    before = live.generation.number
    await fs.rename("certs/a.pem", "certs/b.pem")
    assert await bundle(fs) == ONE.pem
    assert live.generation.number <= before + 1


async def test_a_rename_into_and_out_of_the_directory_counts(fs: Filesystem) -> None:
    """I1: an atomic write, and taking a file away."""
    await fs.put("certs/a.tmp", ONE.pem)
    assert await bundle(fs) is None
    await fs.rename("certs/a.tmp", "certs/a.pem")
    assert await bundle(fs) == ONE.pem
    await fs.rename("certs/a.pem", "other/a.pem")
    assert await bundle(fs) is None


async def test_exchanging_two_sources_counts_for_both(fs: Filesystem) -> None:
    """I1: renameat2(2) with RENAME_EXCHANGE across two source directories."""
    await fs.put("certs/a.pem", ONE.pem)
    await fs.put("pool/b.pem", TWO.pem)
    await fs.rename("certs/a.pem", "pool/b.pem", RENAME_EXCHANGE)
    assert await bundle(fs) == TWO.pem
    assert await bundle(fs, "pool-bundle.pem") == ONE.pem


async def test_a_file_renamed_while_it_is_written_enters_under_its_new_name(
    fs: Filesystem,
) -> None:
    """I3: its last complete content goes with it, and its next comes with the close."""
    await fs.put("certs/a.pem", ONE.pem)
    handle = await fs.open("certs/a.pem", os.O_WRONLY | os.O_TRUNC)
    await fs.rename("certs/a.pem", "certs/b.pem")
    assert await bundle(fs) == ONE.pem
    await fs.write(handle, TWO.pem)
    await fs.operations.release(handle)
    assert await bundle(fs) == TWO.pem


async def test_a_source_removed_while_it_is_written_stays_out(fs: Filesystem) -> None:
    """I1: the close of a file without a name brings nothing back."""
    await fs.put("certs/a.pem", ONE.pem)
    handle = await fs.open("certs/a.pem", os.O_WRONLY)
    await fs.write(handle, TWO.pem)
    await fs.unlink("certs/a.pem")
    assert await bundle(fs) is None
    await fs.operations.release(handle)
    assert await bundle(fs) is None


async def test_writing_under_another_name_counts(fs: Filesystem) -> None:
    """I1: a hard link outside of the source directory is the same file."""
    await fs.put("other/staged", ONE.pem)
    staged = await fs.number("other/staged")
    await fs.operations.link(staged, await fs.number("certs"), b"a.pem", CTX)
    assert await bundle(fs) == ONE.pem
    handle = await fs.open("other/staged", os.O_WRONLY | os.O_TRUNC)
    await fs.write(handle, TWO.pem)
    await fs.operations.release(handle)
    assert await bundle(fs) == TWO.pem


# --- I2: generations -----------------------------------------------------------


async def test_each_generation_is_an_inode_of_its_own(fs: Filesystem) -> None:
    """I2: an open bundle is what it was; the next open has another number."""
    await fs.put("certs/a.pem", ONE.pem)
    old = await fs.walk(BUNDLE)
    handle = await fs.open(BUNDLE)
    await fs.put("certs/b.pem", TWO.pem)
    new = await fs.walk(BUNDLE)
    assert new.st_ino != old.st_ino
    assert (old.st_size, new.st_size) == (len(ONE.pem), len(ONE.pem) + len(TWO.pem))
    assert await fs.operations.read(handle, 0, 1 << 20) == ONE.pem
    assert (await fs.operations.getattr(old.st_ino, CTX)).st_size == len(ONE.pem)
    await fs.operations.release(handle)


async def test_one_generation_is_one_inode(fs: Filesystem) -> None:
    """A bundle that did not change is the same file for everybody, and its pages stay."""
    await fs.put("certs/a.pem", ONE.pem)
    first, second = await fs.walk(BUNDLE), await fs.walk(BUNDLE)
    assert first.st_ino == second.st_ino
    assert (await fs.operations.open(first.st_ino, os.O_RDONLY, CTX)).keep_cache
    assert first.entry_timeout == 0


async def test_an_old_generation_is_let_go_when_nobody_has_it(fs: Filesystem) -> None:
    """I18: when the kernel has forgotten it and no handle is left."""
    await fs.put("certs/a.pem", ONE.pem)
    entry = await fs.walk(BUNDLE)
    handle = int((await fs.operations.open(entry.st_ino, os.O_RDONLY, CTX)).fh)
    await fs.put("certs/a.pem", TWO.pem)
    await fs.operations.forget([(entry.st_ino, 1)])
    assert await fs.operations.read(handle, 0, 1 << 20) == ONE.pem
    await fs.operations.release(handle)
    assert fs.operations.synthetic.find(entry.st_ino) is None


# --- I8: immutable by nature ---------------------------------------------------


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC])
async def test_a_bundle_is_not_opened_for_writing(fs: Filesystem, flags: int) -> None:
    """I8: EPERM, as for an immutable file."""
    await fs.put("certs/a.pem", ONE.pem)
    with fails(errno.EPERM):
        await fs.open(BUNDLE, flags)


async def test_a_bundle_s_name_is_not_anybody_s(fs: Filesystem) -> None:
    """I8: whether it exists now or not, nothing else is made, removed or renamed there."""
    operations = fs.operations
    for exists in (False, True):
        if exists:
            await fs.put("certs/a.pem", ONE.pem)
        await fs.put("other/x", b"x")
        name = BUNDLE.encode()
        with fails(errno.EPERM):
            await fs.create(BUNDLE)
        with fails(errno.EPERM):
            await operations.mkdir(ROOT, name, 0o755, CTX)
        with fails(errno.EPERM):
            await operations.symlink(ROOT, name, b"x", CTX)
        with fails(errno.EPERM):
            await operations.mknod(ROOT, name, stat.S_IFREG, 0, CTX)
        with fails(errno.EPERM):
            await operations.link(await fs.number("other/x"), ROOT, name, CTX)
        with fails(errno.EPERM):
            await fs.rename("other/x", BUNDLE)
        if exists:
            with fails(errno.EPERM):
                await fs.unlink(BUNDLE)
            with fails(errno.EPERM):
                await fs.rename(BUNDLE, "elsewhere")
        assert (fs.path / "other/x").read_bytes() == b"x"


async def test_the_script_s_last_step_is_taken_for_done(fs: Filesystem) -> None:
    """I8: ``rename(BUNDLE.tmp, BUNDLE)`` consumes the temporary and changes nothing."""
    await fs.put("certs/a.pem", ONE.pem)
    await fs.put("bundle.pem.tmp", b"what the script made")
    with fails(errno.EEXIST):
        await fs.rename("bundle.pem.tmp", BUNDLE, RENAME_NOREPLACE)
    await fs.rename("bundle.pem.tmp", BUNDLE)
    assert await bundle(fs) == ONE.pem
    with fails(errno.ENOENT):
        await fs.walk("bundle.pem.tmp")


async def test_the_script_s_last_step_ends_a_swap(fs: Filesystem) -> None:
    """I10: and what was held is let go."""
    await fs.put("certs/a.pem", ONE.pem)
    await fs.operations.mkdir(ROOT, b"certs.bk", 0o700, CTX)
    await fs.unlink("certs/a.pem")
    assert await bundle(fs) == ONE.pem
    await fs.put("bundle.pem.tmp", b"")
    await fs.rename("bundle.pem.tmp", BUNDLE)
    assert await bundle(fs) is None


# --- I11: files that are open --------------------------------------------------


async def test_a_file_without_a_known_name_keeps_no_reader_waiting(fs: Filesystem) -> None:
    """I1, I18: whose file is no source, and lost one of two names, delays no answer, whatever it is written."""
    await fs.put("certs/a.pem", ONE.pem)
    handle = await fs.create("other/x")
    number = await fs.number("other/x")
    await fs.operations.link(number, await fs.number("other"), b"y", CTX)
    await fs.unlink("other/y")
    await fs.write(handle, b"x")
    os.write(fs.doorbell, b"x")
    with trio.fail_after(0.2):
        await fs.read("bundle.pem")


async def test_a_source_by_another_name_is_waited_for(fs: Filesystem) -> None:
    """I1: a source that is written under a name which it lost may be closed by now, behind other requests."""
    await fs.put("certs/a.pem", ONE.pem)
    handle = await fs.open("certs/a.pem", os.O_WRONLY)
    number = await fs.number("certs/a.pem")
    await fs.operations.link(number, await fs.number("other"), b"y", CTX)
    await fs.unlink("other/y")
    await fs.write(handle, b"x")
    os.write(fs.doorbell, b"x")
    begun = trio.current_time()
    await fs.read("bundle.pem")
    assert trio.current_time() - begun > 0.2


async def test_an_unlinked_file_stays_open(fs: Filesystem) -> None:
    """I11: it can be read, asked for its status, and is gone when it is closed."""
    await fs.put("other/x", b"content")
    entry = await fs.walk("other/x")
    handle = int((await fs.operations.open(entry.st_ino, os.O_RDONLY, CTX)).fh)
    await fs.unlink("other/x")
    assert await fs.operations.read(handle, 0, 100) == b"content"
    assert (await fs.operations.getattr(entry.st_ino, CTX)).st_nlink == 0
    await fs.operations.forget([(entry.st_ino, 2)])
    await fs.operations.release(handle)
    with fails(errno.ESTALE):
        await fs.operations.getattr(entry.st_ino, CTX)


async def test_a_number_that_nobody_knows_is_stale(fs: Filesystem) -> None:
    """The kernel looks again when it is told ESTALE."""
    for call in (
        fs.operations.getattr(4711, CTX),
        fs.operations.open(4711, os.O_RDONLY, CTX),
        fs.operations.lookup(4711, b"x", CTX),
        fs.operations.opendir(4711, CTX),
    ):
        with fails(errno.ESTALE):
            await call


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_file_that_changed_beneath_is_stale(fs: Filesystem, *, replaced: bool) -> None:
    """I13: its name is gone or leads to another file: the kernel is told to look again."""
    path = fs.path / "other/x"
    path.write_bytes(b"one")
    number = await fs.number("other/x")
    path.rename(fs.path / "other/kept")
    if replaced:
        path.write_bytes(b"two")
    with fails(errno.ESTALE):
        await fs.operations.getattr(number, CTX)
    if replaced:
        assert await fs.read("other/x") == b"two"


async def test_a_handle_that_nobody_knows_is_ebadf(fs: Filesystem) -> None:
    """And a RELEASE of one is nothing."""
    with fails(errno.EBADF):
        await fs.operations.read(4711, 0, 10)
    with fails(errno.EBADF):
        await fs.operations.write(4711, 0, b"x")
    await fs.operations.release(4711)
    await fs.operations.releasedir(4711)


async def test_no_descriptor_is_left(fs: Filesystem) -> None:
    """I18: opening, writing, failing and closing leave what was there."""
    await fs.put("certs/a.pem", ONE.pem)
    await fs.read("certs/a.pem")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        await fs.put("certs/a.pem", TWO.pem)
        await fs.read("certs/a.pem")
        await bundle(fs)
        with fails(errno.ENOENT):
            await fs.read("certs/none")
        with fails(errno.EEXIST):
            await fs.create("certs/a.pem", os.O_WRONLY | os.O_EXCL)
    assert len(os.listdir("/proc/self/fd")) == before


# --- our own files -------------------------------------------------------------


async def test_the_status_is_reached_by_name(fs: Filesystem) -> None:
    """``.certfs/status.json`` is there, and is a new file whenever it is looked up."""
    first = await fs.walk(".certfs/status.json")
    assert await fs.read(".certfs/status.json") == b'{"version": 1}\n'
    assert (await fs.walk(".certfs/status.json")).st_ino != first.st_ino
    with fails(errno.ENOENT):
        await fs.walk(".certfs/other")


async def test_the_status_cannot_be_changed(fs: Filesystem) -> None:
    """It is ours: nothing is made beside it, and it is not written."""
    directory = await fs.number(".certfs")
    with fails(errno.EPERM):
        await fs.operations.create(directory, b"x", 0o644, os.O_WRONLY, CTX)
    with fails(errno.EPERM):
        await fs.open(".certfs/status.json", os.O_WRONLY)
    with fails(errno.EPERM):
        await fs.operations.mkdir(ROOT, b".certfs", 0o755, CTX)


# --- settling ------------------------------------------------------------------


async def test_an_answer_does_not_wait_when_nothing_is_on_its_way(fs: Filesystem) -> None:
    """I1: a writer that keeps a source open for an hour delays nobody."""
    await fs.put("certs/b.pem", TWO.pem)
    handle = await fs.create("certs/a.pem")
    await fs.write(handle, ONE.pem)
    started = time.monotonic()
    for _ in range(20):
        assert await bundle(fs) == TWO.pem
    assert time.monotonic() - started < 1
    await fs.operations.release(handle)


async def test_an_answer_waits_for_a_release_that_may_be_on_its_way(fs: Filesystem) -> None:
    """I1: while requests wait to be read, one of them may be the RELEASE that completes a source."""
    handle = await fs.create("certs/a.pem")
    await fs.write(handle, ONE.pem)
    await fs.walk("certs")
    os.write(fs.doorbell, b"x")
    async with trio.open_nursery() as nursery:

        async def release() -> None:
            await trio.sleep(0.05)
            await fs.operations.release(handle)

        nursery.start_soon(release)
        assert await bundle(fs) == ONE.pem


async def test_the_wait_for_a_release_is_bounded(fs: Filesystem) -> None:
    """I18: a stream of other requests delays an answer by a quarter of a second and no more."""
    await fs.put("certs/b.pem", TWO.pem)
    handle = await fs.create("certs/a.pem")
    await fs.write(handle, ONE.pem)
    os.write(fs.doorbell, b"x")
    started = time.monotonic()
    assert await bundle(fs) == TWO.pem
    assert 0.2 < time.monotonic() - started < 2
    await fs.operations.release(handle)


async def test_what_happened_beneath_is_seen_by_the_next_answer(fs: Filesystem) -> None:
    """I13: events of the store are read before a bundle's name is answered."""
    (fs.path / "certs/a.pem").write_bytes(ONE.pem)
    assert await bundle(fs) == ONE.pem
    (fs.path / "certs/a.pem").unlink()
    assert await bundle(fs) is None
