"""The demonstration that scripts/quickstart runs once everything is installed.

Owns a demo pool: this host's store, mounted by certfs, and three more hosts, each with its own
certificates and, while the demonstration runs, a real stunnel server. What it shows is what a pool
does all day: a client stunnel, started anew for each connection, trusts exactly the hosts whose
certificates are in ``certs-pool/`` at that moment.
"""

import argparse
import contextlib
import errno
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from certfs.identity.ensure import ensure_identity, host_uuid

ROOT = Path(__file__).resolve().parent.parent
CERTFS = Path(sys.executable).with_name("certfs")
GREETING = "accepted"
"""What a host's server says to every client that completes the handshake."""
PATIENCE = 10.0
"""Seconds that anything here may take before it counts as broken."""
QUIET = 1.0
"""Seconds, more than certfs takes to tell a reader of a change (``[[notify]]`` in the demo's configuration)."""


class DemoError(Exception):
    """The demonstration did not go as it must; the message says what to look at."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the demonstration keeps its things."""

    base: Path

    @property
    def store(self) -> Path:
        """The directory beneath the mount: this host's real files."""
        return self.base / "store"

    @property
    def mount(self) -> Path:
        """Where the store appears, with the bundles."""
        return self.base / "mount"

    @property
    def configuration(self) -> Path:
        """The configuration of certfs: which reader is told of changes."""
        return self.base / "certfs.toml"

    @property
    def server_pid(self) -> Path:
        """The pid file of this host's own stunnel server."""
        return self.logs / "host-a.pid"

    @property
    def logs(self) -> Path:
        """Configurations and logs of the stunnels."""
        return self.base / "stunnel"

    @property
    def pool(self) -> Path:
        """The source directory of the pool bundle, on the mount."""
        return self.mount / "stunnel" / "certs-pool"

    @property
    def bundle(self) -> Path:
        """The pool bundle, on the mount."""
        return self.mount / "stunnel" / "xapi-pool-ca-bundle.pem"


@dataclass(frozen=True, slots=True)
class Host:
    """Another host of the pool; ``directory`` holds its ``xensource`` and ``stunnel``."""

    name: str
    uuid: str
    directory: Path

    @property
    def public_pem(self) -> Path:
        """Its pool certificate, as it is distributed to the others."""
        return self.directory / "stunnel" / "certs-pool" / f"{self.uuid}.pem"


class Story:
    """What the demonstration says, each line with the time since its start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def heading(self, text: str) -> None:
        """Begin a chapter."""
        print(f"\n{text}", flush=True)

    def step(self, text: str, *, took: float, note: str = "") -> None:
        """Report one thing that was done: when, what, and how long it took (seconds)."""
        at = time.monotonic() - self._started
        print(f"  {at:7.3f} s  {text:<44} {took * 1000:7.1f} ms  {note}".rstrip(), flush=True)


def main() -> int:
    """Run the demonstration; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="scripts/quickstart",
        description="Mount a demo pool and show real stunnel clients following its certificates.",
    )
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    parser.add_argument(
        "directory",
        nargs="?",
        type=Path,
        default=state / "certfs-demo",
        help="where to keep the demo (default: %(default)s)",
    )
    layout = Layout(parser.parse_args().directory.expanduser().resolve())
    try:
        demonstrate(layout, Story())
    except (DemoError, OSError, subprocess.SubprocessError) as error:
        print(f"quickstart: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def demonstrate(layout: Layout, story: Story) -> None:
    """Prepare, mount, show, and say how to go on. Raises ``DemoError``."""
    for directory in (layout.base, layout.store, layout.mount, layout.logs):
        with contextlib.suppress(FileExistsError):
            directory.mkdir(parents=True)

    story.heading(f"A pool of four hosts in {layout.base}")
    mount(layout, story)
    hosts = [make_host(layout, name, story) for name in ("host-b", "host-c", "host-d")]
    *members, newcomer = hosts
    # What an earlier run that was interrupted may have left.
    (layout.pool / newcomer.public_pem.name).unlink(missing_ok=True)
    for host in members:
        copy_in(layout, host, story)

    with contextlib.ExitStack() as servers:
        ports = {host: servers.enter_context(serving(layout, host)) for host in hosts}
        story.heading(
            "Clients of this host, each a new stunnel as XAPI starts it: sni = pool,\n"
            f"verifyPeer = yes, CAfile = {layout.bundle}"
        )
        client = Client(layout, story, ports)
        client.expect(members[0], accepted=True)
        client.expect(newcomer, accepted=False)
        copy_in(layout, newcomer, story)
        client.expect(newcomer, accepted=True)
        remove(layout, newcomer, story)
        client.expect(newcomer, accepted=False)
        client.expect(members[0], accepted=True)

    follow(layout, newcomer, story)
    farewell(layout, newcomer, story)


def mount(layout: Layout, story: Story) -> None:
    """Serve the store at the mountpoint, unless an earlier run's mount still does."""
    started = time.monotonic()
    try:
        mounted = os.stat(layout.mount).st_dev != os.stat(layout.base).st_dev
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        # A dead server's mount; there is nothing to lose in it.
        certfs("unmount", layout.mount)
        mounted = False
    if mounted and layout.pool.is_dir():
        story.step("mount/ is mounted from an earlier run", took=time.monotonic() - started)
        return
    layout.configuration.write_text(
        f'[[notify]]\npid_file = "{layout.server_pid}"\nprocess = "{Path(stunnel()).name}"\n'
        "delay = 0.05\nmax_delay = 0.5\nmin_interval = 0.1\n"
    )
    config = ("--config", layout.configuration)
    certfs("mount", "--store", layout.store, *config, layout.mount)
    story.step(
        "certfs mount --store store --config certfs.toml mount", took=time.monotonic() - started
    )


def certfs(*arguments: str | Path) -> None:
    """Run certfs; what it says goes to the terminal."""
    try:
        result = subprocess.run([CERTFS, *arguments], check=False, timeout=3 * PATIENCE)
    except subprocess.TimeoutExpired:
        raise DemoError(f"certfs {arguments[0]} did not return in {3 * PATIENCE:.0f} s") from None
    if result.returncode:
        raise DemoError(f"certfs {arguments[0]} ended with exit status {result.returncode}")


def make_host(layout: Layout, name: str, story: Story) -> Host:
    """Make another host's certificates, or take those of an earlier run."""
    started = time.monotonic()
    directory = layout.base / "hosts" / name
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        report = ensure_identity(descriptor, host_uuid=host_uuid(descriptor))
    finally:
        os.close(descriptor)
    made = "certificates made" if report.created else "certificates of an earlier run"
    story.step(f"{name}: {made}", took=time.monotonic() - started, note=report.host_uuid)
    return Host(name, report.host_uuid, directory)


def free_port() -> int:
    """Return a port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def copy_in(layout: Layout, host: Host, story: Story) -> None:
    """Distribute a host's certificate to this host: one cp, nothing else."""
    started = time.monotonic()
    subprocess.run(["cp", host.public_pem, layout.pool], check=True, timeout=PATIENCE)
    story.step(f"$ cp {host.name}'s UUID.pem certs-pool/", took=time.monotonic() - started)


def remove(layout: Layout, host: Host, story: Story) -> None:
    """Withdraw trust in a host: one rm, nothing else."""
    started = time.monotonic()
    subprocess.run(["rm", layout.pool / host.public_pem.name], check=True, timeout=PATIENCE)
    story.step(f"$ rm certs-pool/UUID.pem of {host.name}", took=time.monotonic() - started)


@contextlib.contextmanager
def serving(layout: Layout, host: Host) -> Iterator[int]:
    """Run a host's stunnel server, configured as the platform's; yield its port.

    It presents ``xapi-ssl.pem``, and ``xapi-pool-tls.pem`` to clients that ask for ``pool``.
    """
    log = layout.logs / f"{host.name}.log"
    log.unlink(missing_ok=True)
    configuration = layout.logs / f"{host.name}.conf"
    xensource = host.directory / "xensource"
    port = free_port()
    reply = f"exec = /bin/echo\nexecArgs = echo {GREETING}\n"
    configuration.write_text(
        f"foreground = yes\npid =\nsyslog = no\noutput = {log}\n"
        f"[xapi]\naccept = 127.0.0.1:{port}\ncert = {xensource}/xapi-ssl.pem\n{reply}"
        f"[pool]\nsni = xapi:pool\ncert = {xensource}/xapi-pool-tls.pem\n{reply}"
    )
    process = subprocess.Popen(
        [stunnel(), configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        await_listening(process, port, log)
        yield port
    finally:
        process.terminate()
        process.wait(PATIENCE)


def await_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the server accepts connections."""
    deadline = time.monotonic() + PATIENCE
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise DemoError(f"a stunnel server does not serve: see {log}")
        time.sleep(0.01)


@dataclass(frozen=True, slots=True)
class Client:
    """Makes this host's connections to the other hosts, ``ports``."""

    layout: Layout
    story: Story
    ports: dict[Host, int]

    def expect(self, host: Host, *, accepted: bool) -> None:
        """Connect with a new stunnel; raise ``DemoError`` unless it goes as it must."""
        log = self.layout.logs / "client.log"
        log.unlink(missing_ok=True)
        configuration = self.layout.logs / "client.conf"
        # Without a service section stunnel serves its stdin and stdout, one connection, and ends.
        configuration.write_text(
            f"client = yes\nsyslog = no\noutput = {log}\n"
            f"connect = 127.0.0.1:{self.ports[host]}\n"
            f"sni = pool\nverifyPeer = yes\nCAfile = {self.layout.bundle}\n"
        )
        started = time.monotonic()
        client = subprocess.run(
            [stunnel(), configuration],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE,
            check=False,
        )
        took = time.monotonic() - started
        answered = client.stdout.decode().strip() == GREETING
        verdict = "accepted" if answered else "REFUSED"
        self.story.step(f"client -> {host.name}: {verdict}", took=took, note=reason(log))
        if answered != accepted:
            wanted = "accepted" if accepted else "refused"
            raise DemoError(f"{host.name} had to be {wanted}: see {log} and {self.layout.bundle}")


def follow(layout: Layout, newcomer: Host, story: Story) -> None:
    """Show a stunnel server that keeps running: it reads the bundle again when certfs tells it to."""
    story.heading(
        "This host's own stunnel server, which keeps what it has read: verifyPeer = yes,\n"
        f"CAfile = {layout.bundle}; {layout.configuration.name} says whom to tell"
    )
    with own_server(layout) as (port, log):
        visit(layout, newcomer, port, story, accepted=False)
        loads = settled_loads(log)
        copy_in(layout, newcomer, story)
        await_reload(log, loads + 1, story)
        visit(layout, newcomer, port, story, accepted=True)
        loads = settled_loads(log)
        remove(layout, newcomer, story)
        await_reload(log, loads + 1, story)
        visit(layout, newcomer, port, story, accepted=False)


@contextlib.contextmanager
def own_server(layout: Layout) -> Iterator[tuple[int, Path]]:
    """Run this host's stunnel server, which lets the hosts of the pool in; yield its port and log."""
    log, configuration = layout.logs / "host-a.log", layout.logs / "host-a.conf"
    log.unlink(missing_ok=True)
    port = free_port()
    configuration.write_text(
        f"foreground = yes\npid = {layout.server_pid}\nsyslog = no\noutput = {log}\n"
        # With TLS 1.3 a client believes itself accepted before the server has looked.
        f"[pool]\naccept = 127.0.0.1:{port}\nsslVersionMax = TLSv1.2\n"
        f"cert = {layout.mount}/xensource/xapi-pool-tls.pem\n"
        f"CAfile = {layout.bundle}\nverifyPeer = yes\n"
        f"exec = /bin/echo\nexecArgs = echo {GREETING}\n"
    )
    process = subprocess.Popen(
        [stunnel(), configuration], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        await_listening(process, port, log)
        yield port, log
    finally:
        process.terminate()
        process.wait(PATIENCE)


def count_loads(log: Path) -> int:
    """Return how often the server has read its configuration."""
    return log.read_text(errors="replace").count("Configuration successful")


def settled_loads(log: Path) -> int:
    """Return that number when it has stayed the same for a second: no word on an earlier change is under way."""
    loads, since = count_loads(log), time.monotonic()
    while time.monotonic() - since < QUIET:
        time.sleep(0.05)
        if count_loads(log) != loads:
            loads, since = count_loads(log), time.monotonic()
    return loads


def await_reload(log: Path, times: int, story: Story) -> None:
    """Return when the server has read its configuration so often."""
    started = time.monotonic()
    while count_loads(log) < times:
        if time.monotonic() - started > PATIENCE:
            raise DemoError(f"the stunnel server was not told of the change: see {log}")
        time.sleep(0.01)
    story.step("the server has read the bundle again", took=time.monotonic() - started)


def visit(layout: Layout, host: Host, port: int, story: Story, *, accepted: bool) -> None:
    """Connect to this host's server as another host; raise ``DemoError`` unless it goes as it must."""
    log, configuration = layout.logs / "visitor.log", layout.logs / "visitor.conf"
    log.unlink(missing_ok=True)
    configuration.write_text(
        f"client = yes\nsyslog = no\noutput = {log}\nconnect = 127.0.0.1:{port}\n"
        f"cert = {host.directory}/xensource/xapi-pool-tls.pem\n"
    )
    started = time.monotonic()
    answer = subprocess.run(
        [stunnel(), configuration],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=PATIENCE,
        check=False,
    )
    answered = answer.stdout.decode().strip() == GREETING
    verdict = "accepted" if answered else "REFUSED"
    story.step(f"{host.name} -> this host: {verdict}", took=time.monotonic() - started)
    if answered != accepted:
        wanted = "accepted" if accepted else "refused"
        raise DemoError(f"{host.name} had to be {wanted}: see {log} and {layout.logs}/host-a.log")


def reason(log: Path) -> str:
    """Return what the client's log says about the server's certificate."""
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    for mark in ("Certificate accepted", "Rejected by CERT", "LOG3"):
        for line in lines:
            if mark in line:
                return f"stunnel: {line.partition(']: ')[2].partition(': serial')[0]}"
    return "stunnel left no log"


def stunnel() -> str:
    """Return stunnel's path; Debian installs it as stunnel4 too."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    found = shutil.which("stunnel", path=path) or shutil.which("stunnel4", path=path)
    if found is None:
        raise DemoError("stunnel is not installed: run scripts/setup")
    return found


def tree(directory: Path, indent: str = "  ") -> Iterator[str]:
    """Yield a line for everything in ``directory``, with mode and size of files."""
    for entry in sorted(os.scandir(directory), key=lambda entry: entry.name):
        if entry.is_dir(follow_symlinks=False):
            yield f"{indent}{entry.name}/"
            yield from tree(Path(entry), f"{indent}    ")
        else:
            status = entry.stat(follow_symlinks=False)
            name = f"{indent}{entry.name}"
            yield f"{name:<56} {stat.filemode(status.st_mode)} {status.st_size:>6}"


def farewell(layout: Layout, newcomer: Host, story: Story) -> None:
    """Print the tree, what to try and how to end it."""
    story.heading(f"The mount stays. {layout.mount}")
    print("\n".join(tree(layout.mount)))
    user_bundle = layout.mount / "stunnel" / "xapi-stunnel-ca-bundle.pem"
    story.heading("Try")
    say("cp", newcomer.public_pem, layout.pool)
    say("grep", "-c", "BEGIN", layout.bundle)
    say("cp", "/etc/ssl/certs/ca-certificates.crt", layout.mount / "stunnel" / "certs" / "all.pem")
    say("grep", "-c", "BEGIN", user_bundle)
    say(CERTFS, "list", layout.mount)
    say(CERTFS, "status", layout.mount)
    story.heading("End it")
    say(CERTFS, "unmount", layout.mount)
    say("rm", "-r", layout.base)


def say(*command: str | Path) -> None:
    """Print a command as a shell takes it."""
    print(f"  {shlex.join(map(str, command))}")


if __name__ == "__main__":
    sys.exit(main())
