"""Tests that the recipes of docs/operations.md do what is said of them, run as they are written there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import pki
from tests.support.host import Host, host
from tests.support.mounts import need_program, need_root, wait_until
from tests.support.pki import certificates_in

pytestmark = pytest.mark.mount

_PAGE = Path(__file__).parents[2] / "docs/operations.md"
OLD, NEW, OTHER = (pki.authority(f"recipe {name}") for name in ("old", "new", "other"))


def _recipe(name: str) -> str:
    """Give the shell lines that follow a recipe's mark."""
    found = re.search(rf"<!-- recipe: {name} -->\n```\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def serving() -> Iterator[Host]:
    """Give a host that serves two CAs."""
    need_root()
    with host() as made:
        (made.store.certs / "old-1.pem").write_bytes(OLD.pem)
        (made.store.certs / "other.pem").write_bytes(OTHER.pem)
        made.certfs("mount")
        yield made
        made.certfs("unmount")


def _shell(made: Host, script: str) -> str:
    """Run lines on the host as its admin does, with certfs on the path."""
    program = Path(made.program()[0]).parent
    done = made.run("sh", "-ec", f"PATH={program}:$PATH\n{script}")
    return f"{done.returncode}\n{done.stdout}{done.stderr}"


def test_batch_change_is_seen_as_a_whole_at_its_end(serving: Host) -> None:
    """I10: until the last line the old certificate is trusted beside the new one, afterwards it is not."""
    new = serving.directory / "new"
    new.mkdir()
    (new / "n.pem").write_bytes(NEW.pem)
    lines = _recipe("batch").replace("/root/new", str(new)).splitlines()
    bundle = serving.tree.user_bundle
    before = "\n".join(line for line in lines if not line.startswith("rmdir"))
    assert _shell(serving, before).startswith("0\n")
    assert set(certificates_in(bundle.read_bytes())) == {OLD.sha256, NEW.sha256, OTHER.sha256}
    last = next(line for line in lines if line.startswith("rmdir"))
    assert _shell(serving, f"cd /etc/stunnel\n{last}").startswith("0\n")
    wait_until(
        lambda: set(certificates_in(bundle.read_bytes())) == {NEW.sha256, OTHER.sha256},
        what="the end of the swap",
    )


def test_a_directory_that_is_fetched_changes_as_one(serving: Host) -> None:
    """I10: a run of rsync is seen as a whole at its end, without what is no PEM; one that fails changes nothing."""
    need_program("rsync")
    there = serving.directory / "there"
    there.mkdir()
    (there / "n.pem").write_bytes(NEW.pem)
    (there / "other.pem").write_bytes(OTHER.pem)
    (there / "notes.txt").write_text("no certificate")
    recipe = _recipe("rsync")
    assert "trust.example::certs" in recipe
    bundle = serving.tree.user_bundle
    failing = recipe.replace("trust.example::certs", f"{there}/missing")
    assert not _shell(serving, failing).startswith("0\n")
    assert set(certificates_in(bundle.read_bytes())) == {OLD.sha256, OTHER.sha256}
    fetching = recipe.replace("trust.example::certs", str(there))
    within = _shell(serving, f"{fetching}\ncat /etc/stunnel/xapi-stunnel-ca-bundle.pem")
    assert within.startswith("0\n")
    fetched = certificates_in(within.removeprefix("0\n").encode())
    assert set(fetched) == {OLD.sha256, NEW.sha256, OTHER.sha256}
    wait_until(
        lambda: set(certificates_in(bundle.read_bytes())) == {NEW.sha256, OTHER.sha256},
        what="the end of the swap",
    )
    assert not (serving.tree.certs / "notes.txt").exists()


def test_certificate_is_added_by_its_directory(serving: Host) -> None:
    """What cannot be written into the bundle is in it when it is in the directory."""
    partner = serving.directory / "partner.crt"
    partner.write_bytes(NEW.pem)
    bundle = serving.tree.user_bundle
    assert "not permitted" in _shell(serving, "echo x >> /etc/stunnel/xapi-stunnel-ca-bundle.pem")
    add, remove = _recipe("edit").replace("/root/partner.crt", str(partner)).splitlines()
    assert _shell(serving, add).startswith("0\n")
    assert NEW.sha256 in certificates_in(bundle.read_bytes())
    assert _shell(serving, remove).startswith("0\n")
    assert NEW.sha256 not in certificates_in(bundle.read_bytes())


def test_one_command_monitors_the_host(serving: Host) -> None:
    """The check of a host names what is wrong with it, for people and for programs."""
    people, programs = _recipe("monitoring").splitlines()
    assert _shell(serving, people).startswith("2\n")
    assert '"findings"' in _shell(serving, programs)


def test_uninstalling_leaves_an_ordinary_host(serving: Host) -> None:
    """I12: after the lines for it nothing of certfs is in /etc but the plain bundles, and no line fails."""
    serving.certfs("install-units")
    etc = serving.store.root
    assert (etc / "systemd/system/certfs.service").exists()
    # What stands for systemd here says what the comment beside the line says.
    lines = _recipe("uninstall").replace("VENV", "/run/venv").replace("/usr/local/bin", "/run")
    script = "systemctl() { case $1 in disable) certfs unmount ;; esac; }\n" + lines
    assert _shell(serving, script).startswith("0\n"), _shell(serving, script)
    left = [path for path in etc.rglob("*certfs*") if not path.name.endswith(".before-certfs")]
    assert left == []
    assert set(certificates_in(serving.store.user_bundle.read_bytes())) == {
        OLD.sha256,
        OTHER.sha256,
    }
    assert serving.certfs_mounts() == []
    serving.certfs("mount")
