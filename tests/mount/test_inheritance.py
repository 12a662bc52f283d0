"""What only the server knows outlives it: at a restart and at a death (I3, I10, I14, I17).

A source that is being overwritten and a directory that is being swapped show in the store what must not count yet. What
counts instead, the old server knows, and the new one has to learn.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support import pki
from tests.support.host import POOL, Host, host, kill
from tests.support.mounts import wait_until
from tests.support.xapi import Xapi

pytestmark = [pytest.mark.mount, pytest.mark.namespace]

ONE, TWO = POOL.values()
NEW = pki.issue("new")

Renewal = Callable[[Host], None]


def restarted(made: Host) -> None:
    """Restart the server on request."""
    made.certfs("restart")


def killed(made: Host) -> None:
    """Kill the server and wait for the next one."""
    server = made.server()
    began = kill(server)
    wait_until(lambda: not made.in_view(), what="plain directories")
    assert held_by(made.tree.pool_bundle)
    made.live_again(began, not_pid=server)


renewals = pytest.mark.parametrize("renew", [restarted, killed])
IS_NIGHTLY = "CERTFS_TEST_RENEWALS" in os.environ
either_renewal = pytest.mark.parametrize("renew", [restarted, killed] if IS_NIGHTLY else [killed])
"""What a restart does to swaps, `test_no_certificate_is_missed_whatever_is_under_way` sees in the suite."""


def held_by(bundle: Path) -> set[str]:
    """Return the certificates in a bundle."""
    try:
        return set(pki.certificates_in(bundle.read_bytes()))
    except FileNotFoundError:
        return set()


def soon(bundle: Path, *expected: pki.Identity) -> None:
    """Wait until a bundle holds exactly these."""
    wanted = {identity.sha256 for identity in expected}
    wait_until(lambda: held_by(bundle) == wanted, what=f"{bundle.name} of {len(wanted)}")


@contextmanager
def half_written(path: Path) -> Iterator[int]:
    """Overwrite a file in place and stop in the middle; yield the descriptor."""
    file = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(file, NEW.pem[:200])
        yield file
    finally:
        with suppress(OSError):  # its server may be dead
            os.close(file)


@renewals
@pytest.mark.parametrize("where", ["mount", "store"])
def test_a_source_that_is_being_overwritten_counts_as_it_was(
    dom0: Host, renew: Renewal, where: str
) -> None:
    """Its last complete content counts until its last writer closes, whichever server there is (I3, I17)."""
    tree = dom0.tree if where == "mount" else dom0.store
    with half_written(tree.certs_pool / "0.pem") as file:
        soon(dom0.tree.pool_bundle, ONE, TWO)
        renew(dom0)
        assert held_by(dom0.tree.pool_bundle) == {ONE.sha256, TWO.sha256}
        soon(dom0.store.pool_bundle, ONE, TWO)
        renew(dom0)
        assert held_by(dom0.tree.pool_bundle) == {ONE.sha256, TWO.sha256}
        if where == "store" or renew is restarted:
            os.write(file, NEW.pem[200:])
    if where == "store" or renew is restarted:
        soon(dom0.tree.pool_bundle, NEW, TWO)
    else:
        # Its writer was told that it failed, and so are people.
        soon(dom0.tree.pool_bundle, ONE, TWO)
        assert "interrupted" in dom0.certfs("status")
    (dom0.tree.certs_pool / "0.pem").write_bytes(TWO.pem)
    assert held_by(dom0.tree.pool_bundle) == {TWO.sha256}
    soon(dom0.store.pool_bundle, TWO)


def test_what_an_interrupted_writer_had_completed_counts(dom0: Host) -> None:
    """What was fsynced and is whole counts after a death, though its writer could not close it (I14)."""
    file = os.open(dom0.tree.certs_pool / "0.pem", os.O_WRONLY | os.O_TRUNC)
    os.write(file, NEW.pem)
    os.fsync(file)
    killed(dom0)
    with pytest.raises(OSError, match="Transport endpoint"):
        os.close(file)
    assert held_by(dom0.tree.pool_bundle) == {NEW.sha256, TWO.sha256}


def test_a_source_that_is_overwritten_while_nobody_serves_counts_as_it_was(dom0: Host) -> None:
    """Neither is it read in the middle by a server that starts meanwhile (I3, I13)."""
    server = dom0.server()
    began = kill(server)
    wait_until(lambda: not dom0.in_view(), what="plain directories")
    with half_written(dom0.store.certs_pool / "0.pem") as file:
        dom0.live_again(began, not_pid=server)
        assert held_by(dom0.tree.pool_bundle) == {ONE.sha256, TWO.sha256}
        os.write(file, NEW.pem[200:])
    soon(dom0.tree.pool_bundle, NEW, TWO)


@either_renewal
def test_a_source_that_is_removed_is_not_inherited(dom0: Host, renew: Renewal) -> None:
    """Deleted is deleted, also what was being overwritten before (I1)."""
    path = dom0.tree.certs_pool / "0.pem"
    with half_written(path):
        path.unlink()
        assert held_by(dom0.tree.pool_bundle) == {TWO.sha256}
        renew(dom0)
        assert held_by(dom0.tree.pool_bundle) == {TWO.sha256}


@either_renewal
def test_a_swap_goes_on(dom0: Host, renew: Renewal) -> None:
    """The bundle is the union of what it was and what D holds, until D.bk is gone (I10, I17)."""
    xapi = Xapi(dom0.tree)
    pool = dom0.tree.certs_pool
    backup = pool.with_name("certs-pool.bk")
    bundle = dom0.tree.pool_bundle
    xapi.mkdir_p(backup, 0o700)
    renew(dom0)
    xapi.rename(pool, backup)
    renew(dom0)
    assert held_by(bundle) == {ONE.sha256, TWO.sha256}
    soon(dom0.store.pool_bundle, ONE, TWO)
    xapi.mkdir_p(pool, 0o700)
    xapi.atomic_write(pool / "new.pem", NEW.pem)
    renew(dom0)
    assert held_by(bundle) == {ONE.sha256, TWO.sha256, NEW.sha256}
    xapi.remove_tree(backup)
    assert held_by(bundle) == {NEW.sha256}
    renew(dom0)
    assert held_by(bundle) == {NEW.sha256}


@either_renewal
def test_a_swap_ends_in_time_whoever_began_it(dom0: Host, renew: Renewal) -> None:
    """Its 30 s go on over a restart: here 3 s, as configured (I10)."""
    dom0.certfs("unmount")
    (dom0.directory / "etc" / "certfs.toml").write_text("swap_timeout = 3.0\n")
    dom0.certfs("mount")
    pool = dom0.tree.certs_pool
    pool.with_name("certs-pool.bk").mkdir()
    (pool / "0.pem").unlink()
    renew(dom0)
    soon(dom0.tree.pool_bundle, TWO)
    renew(dom0)
    assert held_by(dom0.tree.pool_bundle) == {TWO.sha256}


@either_renewal
def test_a_swap_of_a_pattern_s_directory_goes_on(renew: Renewal) -> None:
    """Also where nothing of D is there that a bundle could be found by (I10)."""
    with host() as made:
        trusted = made.store.stunnel / "ca-one"
        trusted.mkdir()
        (trusted / "0.pem").write_bytes(ONE.pem)
        (made.directory / "etc" / "certfs.toml").write_text(
            '[[bundle]]\nsource = "stunnel/ca-*"\nbundle = "stunnel/ca-bundle-*.pem"\n'
            '[[bundle]]\nsource = "stunnel/certs-pool"\nbundle = "stunnel/xapi-pool-ca-bundle.pem"\n'
        )
        (made.store.certs_pool / "1.pem").write_bytes(TWO.pem)
        made.certfs("mount")
        soon(made.store.pool_bundle, TWO)
        soon(made.store.stunnel / "ca-bundle-one.pem", ONE)
        seen = made.tree.stunnel / "ca-one"
        seen.with_name("ca-one.bk").mkdir()
        seen.rename(seen.with_name("ca-one.bk"))
        renew(made)
        assert held_by(made.tree.stunnel / "ca-bundle-one.pem") == {ONE.sha256}
        seen.mkdir()
        shutil.rmtree(seen.with_name("ca-one.bk"))
        assert held_by(made.tree.stunnel / "ca-bundle-one.pem") == set()


@either_renewal
def test_a_backup_that_was_there_at_the_mount_starts_no_swap_later(renew: Renewal) -> None:
    """A left-over D.bk is none at any restart either (I10)."""
    with host() as made:
        for name, identity in (("0.pem", ONE), ("1.pem", TWO)):
            (made.store.certs_pool / name).write_bytes(identity.pem)
        made.store.certs_pool.with_name("certs-pool.bk").mkdir()
        made.certfs("mount")
        soon(made.store.pool_bundle, ONE, TWO)
        renew(made)
        (made.tree.certs_pool / "0.pem").unlink()
        assert held_by(made.tree.pool_bundle) == {TWO.sha256}


def test_a_swap_that_begins_while_nobody_serves_is_one(dom0: Host) -> None:
    """XAPI does not wait for certfs to distribute the pool's certificates (I10, I13)."""
    server = dom0.server()
    began = kill(server)
    wait_until(lambda: not dom0.in_view(), what="plain directories")
    pool = dom0.store.certs_pool
    backup = pool.with_name("certs-pool.bk")
    backup.mkdir()
    pool.rename(backup)
    pool.mkdir()
    dom0.live_again(began, not_pid=server)
    assert held_by(dom0.tree.pool_bundle) == {ONE.sha256, TWO.sha256}
    (dom0.tree.certs_pool / "new.pem").write_bytes(NEW.pem)
    shutil.rmtree(dom0.tree.certs_pool.with_name("certs-pool.bk"))
    assert held_by(dom0.tree.pool_bundle) == {NEW.sha256}


def test_a_swap_in_the_store_itself_is_one(dom0: Host) -> None:
    """Where the D.bk was made says nothing about what it is for (I10, I13)."""
    pool = dom0.store.certs_pool
    backup = pool.with_name("certs-pool.bk")
    backup.mkdir()
    pool.rename(backup)
    pool.mkdir()
    assert held_by(dom0.tree.pool_bundle) == {ONE.sha256, TWO.sha256}
    (pool / "new.pem").write_bytes(NEW.pem)
    assert held_by(dom0.tree.pool_bundle) == {ONE.sha256, TWO.sha256, NEW.sha256}
    shutil.rmtree(backup)
    assert held_by(dom0.tree.pool_bundle) == {NEW.sha256}


def test_nothing_is_inherited_from_an_earlier_mount(dom0: Host) -> None:
    """What was not complete at the unmount is what the store holds, at the next mount (I12)."""
    with half_written(dom0.tree.certs_pool / "0.pem"):
        dom0.certfs("unmount")
        assert held_by(dom0.store.pool_bundle) == {ONE.sha256, TWO.sha256}
    dom0.certfs("mount")
    assert held_by(dom0.tree.pool_bundle) == {TWO.sha256}


ROUNDS = int(os.environ.get("CERTFS_TEST_RENEWALS", "2"))
"""Restarts, and kills, in the middle of changes; the nightly run makes more."""


class Distributor:
    """Distributes the pool's certificates over and over, as XAPI does; each time all of ``always`` and one more."""

    def __init__(self, made: Host, always: dict[str, bytes]) -> None:
        self.pool = made.tree.certs_pool
        self.backup = self.pool.with_name("certs-pool.bk")
        self.always = always
        self.done = 0

    def __call__(self) -> None:
        """Do it once; where that fails in the middle, go on until D is whole."""
        files = {**self.always, "more.pem": pki.issue(f"more {self.done}").pem}
        try:
            self.backup.mkdir()
            self.pool.rename(self.backup)
            self._fill(files)
        except OSError:
            deadline = time.monotonic() + 20
            while True:
                try:
                    self._fill(files)
                    break
                except OSError:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
        self.done += 1

    def _fill(self, files: dict[str, bytes]) -> None:
        with suppress(FileExistsError):
            self.pool.mkdir()
        for name, content in files.items():
            (self.pool / "tmp").write_bytes(content)
            (self.pool / "tmp").rename(self.pool / name)
        with suppress(FileNotFoundError):
            shutil.rmtree(self.backup)


class Overwriter:
    """Overwrites a source of the users' trust in place, slowly, with one of two certificates."""

    def __init__(self, made: Host) -> None:
        self.path = made.tree.certs / "0.pem"
        self.done = 0

    def __call__(self) -> None:
        """Do it once, as far as it goes."""
        content = (ONE, NEW)[self.done % 2].pem
        with suppress(OSError), self.path.open("r+b", buffering=0) as file:
            file.truncate(0)
            for start in range(0, len(content), 200):
                file.write(content[start : start + 200])
                time.sleep(0.005)
            self.done += 1


class Reader:
    """Reads both bundles over and over and notes what is wrong; an end of the connection is not, if one ``may_die``."""

    def __init__(self, made: Host, wanted: set[str], *, may_die: bool) -> None:
        self.bundles = (made.tree.pool_bundle, made.tree.user_bundle)
        self.wanted = wanted
        self.may_die = may_die
        self.done = 0
        self.wrong: list[str] = []

    def __call__(self) -> None:
        """Read each once."""
        for bundle in self.bundles:
            try:
                found = set(pki.certificates_in(bundle.read_bytes()))
            except OSError as error:
                if not (self.may_die and error.errno in {errno.ENOTCONN, errno.ECONNABORTED}):
                    self.wrong.append(f"{bundle.name}: {error}")
                continue
            self.done += 1
            if bundle == self.bundles[0]:
                right = self.wanted <= found
            else:
                right = TWO.sha256 in found and bool(found & {ONE.sha256, NEW.sha256})
            if not right:
                self.wrong.append(f"{bundle.name}: {len(found)} certificates")


@pytest.mark.slow
@renewals
def test_no_certificate_is_missed_whatever_is_under_way(dom0: Host, renew: Renewal) -> None:
    """No reader misses what is trusted before and after, while servers come and go (I3, I10, I14, I17)."""
    always = {f"always-{number}.pem": pki.issue(f"always {number}").pem for number in range(3)}
    for name, content in always.items():
        (dom0.tree.certs_pool / name).write_bytes(content)
    (dom0.tree.certs / "0.pem").write_bytes(ONE.pem)
    (dom0.tree.certs / "1.pem").write_bytes(TWO.pem)
    soon(dom0.store.user_bundle, ONE, TWO)
    wait_until(lambda: len(held_by(dom0.store.pool_bundle)) == 5, what="the plain copy")
    wanted = {print_ for content in always.values() for print_ in pki.certificates_in(content)}
    readers = [Reader(dom0, wanted, may_die=renew is killed) for _ in range(2)]
    distributor, overwriter = Distributor(dom0, always), Overwriter(dom0)
    stop = threading.Event()

    def repeat(action: Callable[[], None]) -> None:
        while not stop.is_set():
            action()

    actions = (*readers, distributor, overwriter)
    threads = [threading.Thread(target=repeat, args=(action,)) for action in actions]
    for thread in threads:
        thread.start()
    try:
        for _ in range(ROUNDS):
            before = distributor.done
            renew(dom0)
            wait_until(lambda: distributor.done > before + 1, what="a distribution")  # noqa: B023
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    print(
        f"{sum(reader.done for reader in readers)} reads,"
        f" {distributor.done} distributions, {overwriter.done} overwritten"
    )
    assert [line for reader in readers for line in reader.wrong] == []


# --- the configuration


def configure(made: Host, text: str) -> Path:
    """Write the host's configuration file."""
    path = made.directory / "etc" / "certfs.toml"
    path.write_text(text)
    return path


def bundle_of(made: Host, name: str) -> Path:
    """Return the bundle of the pool under another name."""
    return made.tree.stunnel / f"{name}.pem"


def configured(name: str) -> str:
    """Return a configuration in which the bundle of the pool has another name."""
    return f'[[bundle]]\nsource = "stunnel/certs-pool"\nbundle = "stunnel/{name}.pem"\n'


def crash(made: Host) -> None:
    """Kill the server and wait for the next one, whatever the bundle is called."""
    server = made.server()
    os.kill(server, signal.SIGKILL)
    wait_until(
        lambda: made.state()["phase"] == "serving" and made.server() != server,
        what="the live mount",
    )


@pytest.mark.parametrize("damage", ["removed", "broken", "changed"])
def test_a_crash_changes_no_configuration(dom0: Host, damage: str) -> None:
    """Whatever became of the file meanwhile: a server that died comes back as it was (I14)."""
    path = configure(dom0, configured("one"))
    dom0.certfs("restart")
    assert held_by(bundle_of(dom0, "one")) == {ONE.sha256, TWO.sha256}
    if damage == "removed":
        path.unlink()
    else:
        path.write_text("= nothing\n" if damage == "broken" else configured("two"))
    for _ in range(2):
        crash(dom0)
        assert held_by(bundle_of(dom0, "one")) == {ONE.sha256, TWO.sha256}
    status = json.loads(dom0.certfs("status", "--json"))
    assert status["config_file"] == "/etc/certfs.toml"


def test_a_restart_reads_the_configuration(dom0: Host) -> None:
    """The host's file counts from the next restart on, when it comes, changes, breaks and goes (I17)."""
    assert json.loads(dom0.certfs("status", "--json"))["config_file"] is None
    path = configure(dom0, configured("one"))
    dom0.certfs("restart")
    assert held_by(bundle_of(dom0, "one")) == {ONE.sha256, TWO.sha256}
    assert json.loads(dom0.certfs("status", "--json"))["config_file"] == "/etc/certfs.toml"
    path.write_text(configured("two"))
    dom0.certfs("restart")
    assert held_by(bundle_of(dom0, "two")) == {ONE.sha256, TWO.sha256}
    path.write_text("= nothing\n")
    assert "/etc/certfs.toml" in dom0.certfs("restart", expect=3)
    assert held_by(bundle_of(dom0, "two")) == {ONE.sha256, TWO.sha256}
    path.unlink()
    dom0.certfs("restart")
    assert held_by(dom0.tree.pool_bundle) == {ONE.sha256, TWO.sha256}


def test_a_file_that_was_named_must_be_there(dom0: Host) -> None:
    """Unlike the host's own: a restart without it says so, a crash goes on (I14, I17)."""
    dom0.certfs("unmount")
    path = configure(dom0, configured("one"))
    named = path.rename(path.with_name("mine.toml"))
    dom0.certfs("mount", "--config", "/etc/mine.toml")
    named.unlink()
    crash(dom0)
    assert held_by(bundle_of(dom0, "one")) == {ONE.sha256, TWO.sha256}
    assert "/etc/mine.toml" in dom0.certfs("restart", expect=3)
    assert held_by(bundle_of(dom0, "one")) == {ONE.sha256, TWO.sha256}
