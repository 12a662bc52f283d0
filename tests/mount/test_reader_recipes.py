"""The recipes of docs/readers.md, as they are written there, with the real servers under their own units (I21).

For `scripts/nightly`: it needs apache2, postfix, envoy and a JDK besides what the suite has, and the ports of the page.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import smtplib
import socket
import ssl
import subprocess
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from certfs.cli.units import install_units
from tests.support import machine as machines
from tests.support import mounts, pki
from tests.support.machine import Machine
from tests.support.mounts import need_program, wait_until
from tests.support.tree import Tree

pytestmark = [
    pytest.mark.mount,
    pytest.mark.namespace,
    pytest.mark.skipif(
        os.environ.get("CERTFS_TEST_WATCHERS") != "all", reason="part watchers of scripts/nightly"
    ),
]

PAGE = (Path(__file__).parents[2] / "docs/readers.md").read_text(encoding="utf-8")
FIRST, SECOND = pki.authority("recipe first"), pki.authority("recipe second")
CLIENT = pki.issue("recipe client", issuer=SECOND)
HOST = pki.issue("recipe host", issuer=SECOND, host_names=("localhost",))
PORTS = (25, 8443, 8444, 8445, 8446, 8447, 8448)
UNITS = (
    "apache2.service",
    "dbus.service",
    "dbus.socket",
    "haproxy.service",
    "nginx.service",
    "postfix@.service",
)
STARTED = """
[Unit]
Wants=certfs.service
After=certfs.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
"""
ENVOY = """
node: { id: host, cluster: pool }
static_resources:
  listeners:
"""
LISTENER = """
  - address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - transport_socket:
        name: tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
{context}
      filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: pool
          http_filters:
          - name: router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: / }}
                direct_response: {{ status: 200 }}
"""
JAVA = """
import java.io.InputStream;
import java.nio.file.*;
import java.nio.file.attribute.FileTime;
import java.security.KeyStore;
import java.util.Scanner;
import javax.net.ssl.*;

class Following {
%s
    public static void main(String[] words) {
        Scanner lines = new Scanner(System.in);
        while (lines.hasNextLine()) {
            lines.nextLine();
            try (SSLSocket socket = (SSLSocket) trusting(Path.of(words[0])).getSocketFactory()
                    .createSocket("127.0.0.1", Integer.parseInt(words[1]))) {
                socket.startHandshake();
                System.out.println("accepted");
            } catch (Exception e) {
                System.out.println(
                    String.valueOf(e.getMessage()).contains("unable to find valid") ? "refused" : e);
            }
        }
    }
}
"""


def recipe(name: str) -> list[str]:
    """Return the blocks between a recipe's mark and the next heading."""
    section = PAGE.partition(f"<!-- recipe: {name} -->")[2].partition("\n## ")[0]
    blocks = re.findall(r"```\w*\n(.*?)```", section, re.DOTALL)
    assert blocks, name
    return blocks


def https(port: int) -> bool:
    """Whether a web server answers a client with the second authority's certificate as one that it knows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    load(context)
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status != http.HTTPStatus.BAD_REQUEST
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def load(context: ssl.SSLContext) -> None:
    """Give a context the client's certificate and key."""
    own = mounts.scratch_directory() / "client.pem"
    try:
        own.write_bytes(CLIENT.host_pem)
        context.load_cert_chain(own)
    finally:
        shutil.rmtree(own.parent)


def stunnel() -> bool:
    """Whether the stunnel server lets the client in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    load(context)
    with (
        suppress(OSError),
        socket.create_connection(("127.0.0.1", 8443), timeout=30) as plain,
        context.wrap_socket(plain) as secured,
    ):
        return secured.recv(100) == b"welcome\n"
    return False


def postfix() -> bool:
    """Whether Postfix would relay for the client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    load(context)
    with suppress(OSError, smtplib.SMTPException), smtplib.SMTP("127.0.0.1", timeout=30) as session:
        session.starttls(context=context)
        session.ehlo()
        session.mail("someone@example.org")
        return session.rcpt("another@example.org")[0] == 250
    return False


@dataclass(slots=True)
class Host:
    """A machine with certfs.service and every server of the page."""

    machine: Machine
    readers: dict[str, Callable[[], bool]] = field(default_factory=dict)

    @property
    def source(self) -> Path:
        """Where the second authority's certificate is put."""
        return self.machine.inside("/etc/stunnel/certs-pool/second.pem")

    def wait_for(self, *, verdict: bool, but: str = "") -> None:
        """Wait until every reader but this one gives this verdict."""
        for name, accepts in self.readers.items():
            if name != but:
                wait_until(
                    partial(_gives, accepts, verdict=verdict), seconds=60, what=f"{name}: {verdict}"
                )


def _gives(accepts: Callable[[], bool], *, verdict: bool) -> bool:
    return accepts() == verdict


def write(etc: Path, block: str, *, add: bool = False) -> None:
    """Put a block where its first line says; files of a machine are links to those of all."""
    first, _, text = block.partition("\n")
    path = etc.parent / first.removeprefix("# /")
    path.parent.mkdir(exist_ok=True)
    before = path.read_text() if add else ""
    path.unlink(missing_ok=True)
    path.write_text(before + text)


def prepare(directory: Path) -> None:
    """Configure the machine as the page says."""
    etc = directory / "etc"
    tree = Tree(root=etc, store=etc)
    (tree.certs_pool / "first.pem").write_bytes(FIRST.pem)
    own = etc / "xensource" / "xapi-ssl.pem"
    own.write_bytes(HOST.host_pem)
    own.chmod(0o400)
    told = ""
    for name in ("stunnel", "nginx", "haproxy", "apache", "postfix", "envoy", "java"):
        toml, *others = recipe(name)
        told += toml.replace("/usr/bin/certfs", mounts.certfs_program())
        for block in others:
            if block.startswith("# /etc/"):
                write(etc, block, add=name == "postfix")
    (etc / "certfs.toml").write_text(told)
    for name in (
        "nginx/sites-enabled/default",
        "apache2/sites-enabled/000-default.conf",
        "apache2/ports.conf",
    ):
        (etc / name).unlink(missing_ok=True)
    (etc / "apache2" / "ports.conf").touch()
    for name in UNITS:
        text = Path("/lib/systemd/system", name).read_text()
        # Of the machine's /dev, which has no log.
        text = text.replace("BindReadOnlyPaths=/dev/log:/var/lib/haproxy/dev/log", "")
        (directory / "units" / name).write_text(text)
    (directory / "units" / "xapi.service").write_text(STARTED)
    assert (
        CliRunner().invoke(install_units, ["--directory", str(directory / "units")]).exit_code == 0
    )


def entering(machine: Machine) -> list[str]:
    """Return the command line that starts a program on the machine."""
    return ["nsenter", f"--target={machine.init}", "--mount", "--pid", "--cgroup"]


def envoy(machine: Machine) -> subprocess.Popen[bytes]:
    """Start envoy with the page's listener, and with one that watches the mount itself."""
    configuration = machine.inside("/etc/envoy/envoy.yaml")
    secret = machine.inside("/etc/envoy/pool.yaml").read_text()
    on_mount = secret.replace("/srv/pool/ca.pem", "/etc/stunnel/xapi-pool-ca-bundle.pem")
    machine.inside("/etc/envoy/mount.yaml").write_text(
        on_mount.replace("/srv/pool", "/etc/stunnel")
    )
    context = textwrap.indent(recipe("envoy")[2], " " * 10)
    configuration.write_text(
        ENVOY
        + LISTENER.format(port=8447, context=context)
        + LISTENER.format(port=8448, context=context.replace("pool.yaml", "mount.yaml"))
    )
    command = [
        "envoy",
        "-c",
        "/etc/envoy/envoy.yaml",
        "--log-level",
        "warning",
        "--use-dynamic-base-id",
    ]
    return subprocess.Popen([*entering(machine), *command])


class Jvm:
    """A JVM that keeps running, and the server to which it connects."""

    def __init__(self, machine: Machine, work: Path) -> None:
        (work / "Following.java").write_text(JAVA % recipe("java")[1])
        subprocess.run(["javac", "-d", work, work / "Following.java"], check=True, timeout=120)
        own = work / "server.pem"
        own.write_bytes(HOST.host_pem)
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = str(probe.getsockname()[1])
        self.server = subprocess.Popen(
            ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", own, "-key", own, "-quiet", "-www"],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        self.process = subprocess.Popen(
            [*entering(machine), "java", "-cp", work, "Following", "/etc/pool.p12", port],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def accepts(self) -> bool:
        """Whether it trusts the server for one more connection."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"connect\n")
        self.process.stdin.flush()
        return self.process.stdout.readline() == b"accepted\n"

    def close(self) -> None:
        """End both."""
        for process in (self.process, self.server):
            process.kill()
            process.communicate()


@pytest.fixture
def host() -> Iterator[Host]:
    """Give a machine on which everything of the page runs."""
    need_program("nginx", "haproxy", "apache2", "postfix", "stunnel", "envoy", "javac", "openssl")
    if reason := machines.why_not():
        pytest.skip(reason)
    with machines.directory_of_a_machine() as directory, ExitStack() as stack:
        prepare(directory)
        machine = stack.enter_context(machines.booted(directory, "xapi.service"))
        machine.run("mount", "-t", "tmpfs", "-o", "mode=755", "srv", "/srv")
        machine.run("mkdir", "/srv/pool")
        machine.run("a2enmod", "ssl")
        machine.run("systemctl", "start", "dbus.service")
        machine.run("systemctl", "reload", "certfs")
        wait_until(machine.inside("/srv/pool/ca.pem").exists, seconds=60, what="the copy")
        services = ["nginx.service", "haproxy.service", "apache2.service", "postfix@-.service"]
        machine.run("systemctl", "start", *services)
        stack.callback(machine.run, "systemctl", "stop", *services)
        machine.run("stunnel", "/etc/stunnel/pool.conf")
        stack.enter_context(ended(envoy(machine)))
        work = directory / "java"
        work.mkdir()
        jvm = Jvm(machine, work)
        stack.callback(jvm.close)
        yield Host(
            machine,
            {
                "stunnel": stunnel,
                "nginx": partial(https, 8444),
                "haproxy": partial(https, 8445),
                "apache": partial(https, 8446),
                "postfix": postfix,
                "envoy, copy": partial(https, 8447),
                "envoy, mount": partial(https, 8448),
                "java": jvm.accepts,
            },
        )


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """End a process at the end."""
    try:
        yield
    finally:
        process.terminate()
        process.wait()


@pytest.mark.timeout(600)
def test_every_server_of_the_page_follows_the_bundle(host: Host) -> None:
    """A client that was refused is accepted after one cp, and refused after one rm, also across a restart of certfs."""
    for port in PORTS:
        wait_until(partial(_listens, port), seconds=60, what=f"port {port}")
    host.wait_for(verdict=False)
    host.source.write_bytes(SECOND.pem)
    host.wait_for(verdict=True)
    host.machine.run("systemctl", "restart", "certfs")
    host.source.unlink()
    # What watches the mount itself is deaf after a restart.
    host.wait_for(verdict=False, but="envoy, mount")
    assert all(_listens(port) for port in PORTS)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
