"""The demonstration of scripts/quickstart --pool: three hosts without XAPI and an engine, in namespaces of their own.

Owns what is shown: a certificate that is copied in on one host is trusted on the others, until it is removed. The hosts
are those of the tests (``tests/support/pool.py``); nothing of them stays.
"""

import argparse
import contextlib
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scripts.quickstart import GREETING, PATIENCE, DemoError, Story, reason, stunnel
from tests.support import pki
from tests.support.pool import STUNNEL_BUNDLE, Pool, PoolHost, pool

_PORT = 4433


def main() -> int:
    """Run the demonstration; return the exit status."""
    argparse.ArgumentParser(
        prog="scripts/quickstart --pool",
        description="Show three hosts that share their certificates through etcd.",
    ).parse_args()
    try:
        with tempfile.TemporaryDirectory() as directory:
            demonstrate(Path(directory), Story())
    except (DemoError, OSError, subprocess.SubprocessError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
    except (pytest.skip.Exception, pytest.fail.Exception) as error:  # of the tests' hosts
        print(f"quickstart: {error}: run it as root, after scripts/setup", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    else:
        return 0
    return 1


def demonstrate(directory: Path, story: Story) -> None:
    """Make the pool, show it, and end it. Raises ``DemoError``."""
    story.heading("An engine and three hosts, each in a network namespace of its own")
    started = time.monotonic()
    with contextlib.redirect_stderr(io.StringIO()), pool(3, members=1) as made:
        took = time.monotonic() - started
        story.step("etcd, certfs mount, pool init, admit, join, run", took=took)
        first, _, last = made.hosts
        partner = pki.authority("partner")
        file = first.certs / "partner.pem"
        with serving(first, partner, directory):
            story.heading("A service that shows partner.pem, on host 1; clients are on host 3")
            visit(last, first, directory, story, accepted=False)
            change(story, "$ cp partner.pem stunnel/certs/ on host 1", file, partner.pem)
            wait(story, "in the bundle of all hosts", lambda: made.all_trust(partner))
            visit(last, first, directory, story, accepted=True)
            change(story, "$ rm stunnel/certs/partner.pem on host 1", file, None)
            wait(story, "in no bundle any more", lambda: made.none_trusts(partner))
            visit(last, first, directory, story, accepted=False)
        without_engine(made, story, partner)
        story.heading("$ certfs pool status, on host 1")
        print(first.certfs("pool", "status"))
        print("docs/pool.md says how to set this up on hosts of your own.")


def without_engine(made: Pool, story: Story, partner: pki.Identity) -> None:
    """Show that a host that is cut off goes on, and that the others have its change when it is back."""
    story.heading("Host 2 is cut off from the engine and the other hosts")
    second = made.hosts[1]
    second.node.cut(off=True)
    change(story, "$ cp partner.pem on host 2", second.certs / "partner.pem", partner.pem)
    wait(story, "in the bundle of host 2", lambda: second.trusts(partner))
    second.node.cut(off=False)
    wait(story, "back: in the bundle of all hosts", lambda: made.all_trust(partner))


def change(story: Story, what: str, file: Path, pem: bytes | None) -> None:
    """Copy a file in, or remove it."""
    started = time.monotonic()
    if pem is None:
        file.unlink()
    else:
        file.write_bytes(pem)
    story.step(what, took=time.monotonic() - started)


def wait(story: Story, what: str, reached: Callable[[], bool]) -> None:
    """Wait for something, and report how long that took."""
    started = time.monotonic()
    while not reached():
        if time.monotonic() - started > 3 * PATIENCE:
            raise DemoError(f"{what}: not within {3 * PATIENCE:g} s")
        time.sleep(0.001)
    story.step(what, took=time.monotonic() - started)


@contextlib.contextmanager
def serving(host: PoolHost, identity: pki.Identity, directory: Path) -> Iterator[None]:
    """Run a stunnel server on a host that shows a certificate and greets each client."""
    shown, configuration = directory / "server.pem", directory / "server.conf"
    shown.touch(mode=0o600)
    shown.write_bytes(identity.key_pem + identity.pem)
    configuration.write_text(
        f"foreground = yes\nsyslog = no\ndebug = info\noutput = {directory}/server.log\npid =\n"
        f"[greeting]\naccept = {host.node.address}:{_PORT}\ncert = {shown}\n"
        f"exec = /bin/echo\nexecArgs = echo {GREETING}\n"
    )
    log = directory / "server.log"
    log.touch()
    server = subprocess.Popen(
        [*host.node.entering(), stunnel(), configuration], stderr=subprocess.DEVNULL
    )
    try:
        while "bound to" not in log.read_text(errors="replace"):
            if server.poll() is not None:
                raise DemoError(f"stunnel ended\n{log.read_text(errors='replace')}")
            time.sleep(0.01)
        yield
    finally:
        server.terminate()
        server.wait(PATIENCE)


def visit(
    client: PoolHost, server: PoolHost, directory: Path, story: Story, *, accepted: bool
) -> None:
    """Connect with a new stunnel of a host that trusts its bundle; ``DemoError`` unless it goes as it must."""
    log, configuration = directory / "client.log", directory / "client.conf"
    log.unlink(missing_ok=True)
    nobody = directory / "nobody.pem"  # a bundle without certificates does not exist
    nobody.write_bytes(pki.authority("nobody").pem)
    bundle = client.mount.tree.root / STUNNEL_BUNDLE
    configuration.write_text(
        f"client = yes\nsyslog = no\noutput = {log}\nconnect = {server.node.address}:{_PORT}\n"
        f"verifyPeer = yes\nCAfile = {bundle if bundle.exists() else nobody}\n"
    )
    started = time.monotonic()
    ran = subprocess.run(
        [*client.node.entering(), stunnel(), configuration],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=PATIENCE,
        check=False,
    )
    took = time.monotonic() - started
    answered = ran.stdout.decode().strip() == GREETING
    verdict = "accepted" if answered else "REFUSED"
    story.step(f"host 3 -> host 1: {verdict}", took=took, note=reason(log))
    if answered != accepted or "CERT" not in reason(log).upper():
        wanted = "accepted" if accepted else "refused"
        said = log.read_text(errors="replace") if log.exists() else ""
        raise DemoError(f"the service had to be {wanted}\n{said}")


if __name__ == "__main__":
    sys.exit(main())
