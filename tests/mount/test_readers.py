"""Programs that make TLS connections follow a bundle in the way that docs/readers.md names for each (I1, I21)."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from tests.support import pki
from tests.support.mounts import (
    CertfsMount,
    certfs_program,
    mounted,
    need_program,
    scratch_directory,
    wait_until,
)
from tests.support.tree import Tree

pytestmark = pytest.mark.mount

IS_NIGHTLY = os.environ.get("CERTFS_TEST_WATCHERS") == "all"
"""Whether there are a JDK, node and go: together 700 MB, which the suite does not install."""
OTHER, ISSUER = pki.authority("readers other"), pki.authority("readers issuer")

_PYTHON = """
import socket, ssl, sys
for line in sys.stdin:
    context = ssl.create_default_context(cafile=sys.argv[1])
    try:
        with socket.create_connection(("127.0.0.1", int(sys.argv[2])), timeout=30) as plain:
            with context.wrap_socket(plain, server_hostname="localhost"):
                print("accepted", flush=True)
    except ssl.SSLCertVerificationError:
        print("refused", flush=True)
"""
_NODE = """
const fs = require('fs'), tls = require('tls');
const [bundle, port] = process.argv.slice(1);
require('readline').createInterface({ input: process.stdin }).on('line', () => {
  const socket = tls.connect({ host: '127.0.0.1', port, servername: 'localhost', ca: fs.readFileSync(bundle) });
  socket.on('secureConnect', () => { console.log('accepted'); socket.destroy(); });
  socket.on('error', (error) => console.log(/VERIFY|ISSUER|SELF_SIGNED/.test(error.code) ? 'refused' : error.code));
});
"""
_GO = """package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		text, err := os.ReadFile(os.Args[1])
		if err != nil {
			panic(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(text)
		connection, err := tls.Dial("tcp", "127.0.0.1:"+os.Args[2], &tls.Config{RootCAs: pool, ServerName: "localhost"})
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			fmt.Println("refused")
		} else if err != nil {
			fmt.Println(err)
		} else {
			fmt.Println("accepted")
			connection.Close()
		}
	}
}
"""
_JAVA = """
import javax.net.ssl.*;

class Connect {
    public static void main(String[] words) throws Exception {
        SSLSocketFactory factory = (SSLSocketFactory) SSLSocketFactory.getDefault();
        try (SSLSocket socket = (SSLSocket) factory.createSocket("127.0.0.1", Integer.parseInt(words[0]))) {
            socket.startHandshake();
            System.out.println("accepted");
        } catch (SSLHandshakeException e) {
            System.out.println(e.getMessage().contains("unable to find valid certification path") ? "refused" : e);
        }
    }
}
"""


@pytest.fixture
def work() -> Iterator[Path]:
    """Give a directory for programs."""
    directory = scratch_directory()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def mount() -> Iterator[CertfsMount]:
    """Give a mount whose bundle has two authorities, one of which has issued the server's certificate."""

    def prepare(tree: Tree) -> None:
        (tree.certs / "other.pem").write_bytes(OTHER.pem)
        (tree.certs / "issuer.pem").write_bytes(ISSUER.pem)

    with mounted(prepare=prepare) as made:
        yield made


@contextmanager
def tls_server(work: Path) -> Iterator[int]:
    """Run a TLS server on the loopback, openssl's; yield its port."""
    need_program("openssl")
    own = work / "server.pem"
    own.write_bytes(pki.issue("server", issuer=ISSUER, host_names=("localhost",)).host_pem)
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = int(probe.getsockname()[1])
    process = subprocess.Popen(
        ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-cert", own, "-key", own, "-quiet", "-www"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def listens() -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", port)) == 0

    try:
        wait_until(listens, seconds=60, what="openssl s_server")
        yield port
    finally:
        process.kill()
        process.wait()


def reader(kind: str, work: Path) -> list[str]:
    """Return the command of a reader, built where that is needed."""
    if kind == "python":
        return [sys.executable, "-c", _PYTHON]
    need_program(kind)
    if kind == "node":
        return ["node", "-e", _NODE]
    source = work / "connect.go"
    source.write_text(_GO)
    subprocess.run(["go", "build", "-o", work / "connect", source], check=True, timeout=170)
    return [str(work / "connect")]


@pytest.mark.parametrize("kind", ["python", *(["node", "go"] if IS_NIGHTLY else [])])
def test_a_program_that_reads_the_bundle_for_each_connection_follows_it(
    mount: CertfsMount, work: Path, kind: str
) -> None:
    """One process accepts a server, refuses it once its CA is removed, and accepts it again."""
    with tls_server(work) as port:
        command = [*reader(kind, work), str(mount.tree.user_bundle), str(port)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            source = mount.tree.certs / "issuer.pem"

            def verdict() -> bytes:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(b"connect\n")
                process.stdin.flush()
                return process.stdout.readline()

            assert verdict() == b"accepted\n"
            source.unlink()
            assert verdict() == b"refused\n"
            source.write_bytes(ISSUER.pem)
            assert verdict() == b"accepted\n"
            process.stdin.close()


@pytest.mark.skipif(not IS_NIGHTLY, reason="needs a JDK: part watchers of scripts/nightly")
def test_a_jvm_trusts_what_was_exported(mount: CertfsMount, work: Path) -> None:
    """A JVM that starts after `certfs export` accepts a server, and refuses it once its CA is removed."""
    need_program("javac", "java")
    source, store = work / "Connect.java", work / "pool.p12"
    source.write_text(_JAVA)
    subprocess.run(["javac", "-d", work, source], check=True, timeout=120)

    def verdict(port: int) -> str:
        export = [certfs_program(), "export", str(mount.tree.user_bundle), "--format", "pkcs12"]
        subprocess.run(
            [*export, "--output", str(store)], check=True, stdout=subprocess.DEVNULL, timeout=60
        )
        trust = f"-Djavax.net.ssl.trustStore={store}"
        return subprocess.run(
            ["java", trust, "-cp", str(work), "Connect", str(port)],
            check=True, capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip

    with tls_server(work) as port:
        assert verdict(port) == "accepted\n"
        (mount.tree.certs / "issuer.pem").unlink()
        assert verdict(port) == "refused\n"
