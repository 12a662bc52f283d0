"""I1: a change is seen by the next open, in any process, without exception."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support import oracle, peer, pki, writers
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer
from tests.support.syscalls import Rename, renameat2

pytestmark = pytest.mark.mount

CHANGES = int(os.environ.get("CERTFS_TEST_CHANGES", "1000"))
"""How many changes are made and looked at; the nightly run makes more."""
TURNS = CHANGES // 50
"""How often each of 24 processes writes, closes and reads."""
BURSTS = CHANGES // 250
"""How often 200 files are closed in one go."""


@dataclass(slots=True)
class Shell:
    """One `sh` that carries out commands, so that a redirection costs no new process."""

    process: subprocess.Popen[bytes]

    def run(self, command: str) -> None:
        """Run a command and wait for its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{command}\necho done\n".encode())
        self.process.stdin.flush()
        assert self.process.stdout.readline() == b"done\n"


@pytest.fixture
def shell() -> Iterator[Shell]:
    """Run a shell."""
    with subprocess.Popen(["sh"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Shell(process)
        assert process.stdin is not None
        process.stdin.close()


@dataclass(slots=True)
class Directory:
    """A source directory together with what has been put into it."""

    path: Path
    outside: Path
    shell: Shell
    random: random.Random
    sources: dict[str, list[pki.Identity]] = field(default_factory=dict)
    serial: int = 0

    def _new(self) -> list[pki.Identity]:
        self.serial += 1
        count = self.random.choice((1, 1, 1, 2, 5))
        return [pki.issue(f"{self.serial} {number}", ca=True) for number in range(count)]

    def _free(self) -> str:
        return f"{self.random.randrange(10_000):04}{self.random.choice(('', '', '.new'))}.pem"

    def _present(self) -> str:
        return self.random.choice(sorted(self.sources))

    def _text(self, name: str) -> bytes:
        return b"".join(identity.pem for identity in self.sources[name])

    def copy_in(self) -> None:
        """Write a file that was not there."""
        name = self._free()
        self.sources[name] = self._new()
        (self.path / name).unlink(missing_ok=True)
        (self.path / name).write_bytes(self._text(name))

    def overwrite(self) -> None:
        """Write a file that is there, truncating it first."""
        name = self._present()
        (self.path / name).unlink() if (self.path / name).is_symlink() else None
        self.sources[name] = self._new()
        (self.path / name).write_bytes(self._text(name))

    def overwrite_in_place(self) -> None:
        """Write a file that is there without truncating; a rest of the old is cut off after."""
        name = self._present()
        (self.path / name).unlink() if (self.path / name).is_symlink() else None
        self.sources[name] = self._new()
        handle = os.open(self.path / name, os.O_WRONLY | os.O_CREAT, 0o644)
        os.write(handle, self._text(name))
        os.ftruncate(handle, len(self._text(name)))
        os.close(handle)

    def append(self) -> None:
        """Append a certificate to a file."""
        name = self._present()
        more = self._new()
        (self.path / name).unlink() if (self.path / name).is_symlink() else None
        with (self.path / name).open("ab") as file:
            if file.tell() == 0:
                self.sources[name] = []
            file.write(b"".join(identity.pem for identity in more))
        self.sources[name] = [*self.sources[name], *more]

    def atomic(self) -> None:
        """Rename a temporary file over a source."""
        name = self._present() if self.random.random() < 0.5 else self._free()
        temporary = self.path / f"{name}.tmp"
        self.sources[name] = self._new()
        temporary.write_bytes(self._text(name))
        temporary.rename(self.path / name)

    def move(self) -> None:
        """Rename a source, over another one or to a new name."""
        old = self._present()
        new = self._present() if self.random.random() < 0.3 else self._free()
        # Two links of one inode stay both where they are: rename(2) does nothing then.
        same = (self.path / new).exists() and (self.path / old).samefile(self.path / new)
        (self.path / old).rename(self.path / new)
        if not same:
            self.sources[new] = self.sources.pop(old)

    def exchange(self) -> None:
        """Let two sources change their names."""
        old, new = self._present(), self._present()
        renameat2(os.fsencode(self.path / old), os.fsencode(self.path / new), Rename.EXCHANGE)
        self.sources[old], self.sources[new] = self.sources[new], self.sources[old]

    def put_aside(self) -> None:
        """Rename a source so that it is none any more."""
        name = self._present()
        (self.path / name).rename(self.path / f"{name}.bak")
        del self.sources[name]

    def remove(self) -> None:
        """Unlink."""
        name = self._present()
        (self.path / name).unlink()
        del self.sources[name]

    def link(self) -> None:
        """Make a second name of a file that is no source."""
        name = self._free()
        self.sources[name] = self._new()
        (self.path / name).unlink(missing_ok=True)
        staged = self.path / "staged"
        staged.write_bytes(self._text(name))
        os.link(staged, self.path / name)
        staged.unlink()

    def symlink(self) -> None:
        """Make a symlink to a file that is no source, inside or outside of the directory."""
        name = self._free()
        self.sources[name] = self._new()
        (self.path / name).unlink(missing_ok=True)
        place = self.random.choice((self.path, self.outside)) / f"{self.serial}.target"
        place.write_bytes(self._text(name))
        (self.path / name).symlink_to(place.name if place.parent == self.path else place)

    def cut(self) -> None:
        """Truncate to nothing."""
        name = self._present()
        os.truncate(self.path / name, 0)
        self.sources[name] = []

    def redirect(self) -> None:
        """Let a shell write a file that is there or not: `cat new > x.pem`."""
        name = self._free() if self.random.random() < 0.5 else self._present()
        (self.path / name).unlink() if (self.path / name).is_symlink() else None
        self.sources[name] = self._new()
        (self.outside / "new").write_bytes(self._text(name))
        self.shell.run(f"cat '{self.outside}/new' > '{self.path}/{name}'")

    def redirect_nothing(self) -> None:
        """Let a shell empty a file: `: > x.pem`."""
        name = self._present()
        self.shell.run(f": > '{self.path}/{name}'")
        self.sources[name] = []

    def change(self) -> str:
        """Make one random change and give its name."""
        begin = len(self.sources) < 3
        growing: list[Callable[[], None]] = [self.copy_in, self.atomic, self.link, self.symlink]
        growing += [self.redirect]
        others: list[Callable[[], None]] = [
            *(self.overwrite, self.overwrite_in_place, self.append, self.move, self.exchange),
            *(self.put_aside, self.remove, self.remove, self.cut, self.redirect_nothing),
        ]
        if begin or (len(self.sources) < 20 and self.random.random() < 0.4):
            chosen = self.random.choice(growing[:1] if not self.sources else growing)
        else:
            chosen = self.random.choice(others)
        chosen()
        return chosen.__name__


@pytest.mark.slow
def test_every_change_is_seen_by_the_next_open(
    certfs_mount: CertfsMount, other_process: Peer, shell: Shell, tmp_path: Path
) -> None:
    """I1, I5, I7: after every one of many changes another process reads what is right."""
    certfs_mount.expected_log.append("empty file")
    tree = certfs_mount.tree
    randomly = random.Random(1)  # noqa: S311 - reproducible on purpose
    directories = [
        (Directory(tree.certs, tmp_path, shell, randomly), str(tree.user_bundle)),
        (Directory(tree.certs_pool, tmp_path, shell, randomly), str(tree.pool_bundle)),
    ]
    for directory, _ in directories:
        for name in os.listdir(directory.path):
            (directory.path / name).unlink()
    stale = []
    for number in range(CHANGES):
        directory, bundle = randomly.choice(directories)
        what = directory.change()
        seen = other_process.call(peer.read_or_none, bundle)
        if seen != oracle.bundle_of(directory.sources):
            stale.append(f"{number} {what}")
    assert not stale


@pytest.mark.slow
def test_many_processes_that_close_at_once_each_see_their_own(certfs_mount: CertfsMount) -> None:
    """I1: with 24 processes that write, close and read at once, each sees its own last write.

    The kernel sends RELEASE in the background, at most twelve at a time; the 13th close must
    not return into a world where its file is still being written.
    """
    tree = certfs_mount.tree
    with peer.peers(24) as processes:
        for number, process in enumerate(processes):
            texts = [pki.issue(f"churn {number} {turn}").pem for turn in range(TURNS)]
            arguments = (str(tree.certs), str(tree.user_bundle), f"{number}.pem", texts)
            process.send(writers.churn, *arguments)
        wrong = [line for process in processes for line in process.receive()]
    assert not wrong


@pytest.mark.slow
def test_a_burst_of_closes_is_complete_when_the_last_returned(
    certfs_mount: CertfsMount, other_process: Peer
) -> None:
    """I1: 200 files closed in one go are all in the bundle when the last close returned."""
    tree = certfs_mount.tree
    with peer.peers(1) as (writer,):
        for turn in range(BURSTS):
            identities = [pki.issue(f"burst {turn} {number}") for number in range(200)]
            texts = [identity.pem for identity in identities]
            writer.call(writers.write_many, str(tree.certs), "burst", texts)
            seen = other_process.call(peer.read_or_none, str(tree.user_bundle))
            assert seen is not None
            assert set(pki.certificates_in(seen)) == {one.sha256 for one in identities}


@pytest.mark.slow
def test_a_change_is_seen_however_much_there_is_to_read(
    certfs_mount: CertfsMount, other_process: Peer
) -> None:
    """I1: what is written while thousands of files of a local store are read is seen by the next open."""
    tree = certfs_mount.tree
    (first, written) = pki.many(2)
    coming = tree.store / "stunnel" / "coming"
    coming.mkdir()
    (coming / "0.pem").write_bytes(first.pem)
    for number in range(1, 6000):
        os.link(coming / "0.pem", coming / f"{number}.pem")
    tree.certs.rename(tree.stunnel / "gone")
    assert other_process.call(peer.read_or_none, str(tree.user_bundle)) is None
    coming.rename(tree.store / "stunnel" / "certs")
    (tree.certs / "written.pem").write_bytes(written.pem)
    seen = other_process.call(peer.read_or_none, str(tree.user_bundle))
    assert seen is not None
    assert written.pem in seen


def test_the_end_of_a_process_closes_its_files(
    certfs_mount: CertfsMount, other_process: Peer
) -> None:
    """I1: what a process wrote and never closed is in the bundle when the process has ended."""
    tree = certfs_mount.tree
    with peer.peers(1) as (writer,):
        for turn in range(20):
            identity = pki.issue(f"exit {turn}")
            writer.call(writers.exit_without_closing, str(tree.certs), "exit.pem", identity.pem)
            assert other_process.call(peer.read_or_none, str(tree.user_bundle)) == identity.pem


def test_a_directory_renamed_over_a_source_directory_is_the_source_then(
    certfs_mount: CertfsMount, other_process: Peer, tmp_path: Path
) -> None:
    """I1: moving the whole source directory away and another one in its place shows at once."""
    del tmp_path
    tree = certfs_mount.tree
    old, new = pki.many(2)
    (tree.certs / "old.pem").write_bytes(old.pem)
    staged = tree.stunnel / "staged"
    staged.mkdir()
    (staged / "new.pem").write_bytes(new.pem)
    renameat2(os.fsencode(staged), os.fsencode(tree.certs), Rename.EXCHANGE)
    assert other_process.call(peer.read_or_none, str(tree.user_bundle)) == new.pem
    tree.certs.rename(tree.stunnel / "away")
    assert other_process.call(peer.read_or_none, str(tree.user_bundle)) is None
    staged.rename(tree.certs)
    assert other_process.call(peer.read_or_none, str(tree.user_bundle)) == old.pem
