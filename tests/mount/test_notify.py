"""Readers that keep a bundle are told of a change: real servers, through the whole of certfs (I21)."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import mounts, pki
from tests.support.forked import run_forked
from tests.support.mounts import (
    CertfsMount,
    certfs_program,
    need_program,
    scratch_directory,
    wait_until,
)
from tests.support.tree import Tree

pytestmark = [pytest.mark.mount, pytest.mark.counted]

FIRST, SECOND = pki.authority("notify first"), pki.authority("notify second")
BUNDLE = '[[bundle]]\nsource = "trusted"\nbundle = "ca.pem"\n'
QUICK = "delay = 0.05\nmax_delay = 0.5\nmin_interval = 0.2\n"


class Scene:
    """A place for a configuration, for what readers write, and for further copies."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls = root / "calls"
        self.config = root / "certfs.toml"

    def noting(self, name: str = "hook") -> str:
        """Make a program that notes what it was told; return its `[[notify]]`."""
        program = self.root / name
        program.write_text(
            f'#!/bin/sh\necho {name} "$CERTFS_SHA256" "$CERTFS_PATH" "$(nice)" >>{self.calls}\n'
        )
        program.chmod(0o755)
        return f'[[notify]]\ncommand = ["{program}"]\n{QUICK}'

    def told(self) -> list[list[str]]:
        """Return the calls so far, as words."""
        with suppress(FileNotFoundError):
            return [line.split(" ") for line in self.calls.read_text().splitlines()]
        return []

    def is_told_of(self, bundle: Path) -> bool:
        """Whether the last call was about what the bundle is now."""
        with suppress(
            OSError
        ):  # in the middle of a fault it may be missing: the store is new, and so its plain copy
            now = hashlib.sha256(bundle.read_bytes()).hexdigest()
            return [words[1] for words in self.told()][-1:] == [now]
        return False

    @contextmanager
    def mounted(self, text: str) -> Iterator[CertfsMount]:
        """Mount a store with one source, one bundle and this further configuration."""
        self.config.write_text(text if "[[bundle]]" in text else BUNDLE + text)

        def prepare(tree: Tree) -> None:
            (tree.store / "trusted").mkdir()
            (tree.store / "trusted" / "first.pem").write_bytes(FIRST.pem)

        with mounts.mounted("--config", str(self.config), prepare=prepare, standard=False) as mount:
            if "[[notify]]" in text:
                told = mount.tree.root.with_name("run")
                wait_until(lambda: any(told.glob("notify-*")), seconds=60, what="the notifier")
                mount.count_descriptors()
            yield mount


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Give a scene in a directory that no other user may write to."""
    root = scratch_directory()
    yield Scene(root)
    shutil.rmtree(root, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """Return the hash of a file as a reader computes it."""
    done = subprocess.run(
        ["sha256sum", path], check=True, capture_output=True, text=True, timeout=60
    )
    return done.stdout.split(" ")[0]


def server_of(mount: CertfsMount) -> int:
    """Return the pid of the server, 0 while there is none."""
    (path,) = mount.tree.root.with_name("run").glob("at-*/state.json")
    server = json.loads(path.read_bytes())["server"]
    return int(server["pid"]) if server else 0


def test_a_command_is_told_of_a_change_made_through_the_mount(scene: Scene) -> None:
    """It reads the new bundle at the path that it is given, and is not urgent as certfs's own processes are."""
    with scene.mounted(scene.noting()) as mount:
        (mount.tree.root / "trusted" / "second.pem").write_bytes(SECOND.pem)
        bundle = mount.tree.root / "ca.pem"
        wait_until(lambda: scene.told() != [], seconds=60, what="a call")
        assert scene.told() == [["hook", sha256_of(bundle), str(bundle), "0"]]


def test_a_reader_that_cannot_be_told_is_seen(scene: Scene) -> None:
    """Both `status` and `check` name it, with the reason (I9)."""
    reader = scene.noting()
    Path(scene.root / "hook").write_text("#!/bin/sh\nexit 3\n")
    with scene.mounted(reader) as mount:
        mount.expected_log += ["exit status 3"]
        (mount.tree.root / "trusted" / "second.pem").write_bytes(SECOND.pem)

        def failures() -> int:
            done = command("status", mount, "--json")
            return int(json.loads(done.stdout)["notify"][0]["failures"])

        wait_until(lambda: failures() > 0, seconds=60, what="a failure")
        text = command("status", mount).stdout
        assert "exit status 3" in text
        attempts = re.search(r"hook \(ca\.pem\): told not yet; (\d+) attempts so far", text)
        assert attempts
        assert int(attempts[1]) > 0
        check = command("check", mount)
        assert check.returncode == 1
        assert "hook could not be told of a change" in check.stdout
        findings = json.loads(command("check", mount, "--json").stdout)["findings"]
        assert "NOTIFY_FAILING" in {finding["name"] for finding in findings}


def command(name: str, mount: CertfsMount, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a command on the mount."""
    return run_forked([name, mount.tree.root, *options], env=mount.environment)


def test_a_death_of_the_server_loses_no_call(scene: Scene) -> None:
    """The change before a kill is told, and so is the one after."""
    with scene.mounted(scene.noting()) as mount:
        mount.expected_log += ["was killed", "the supervisor is gone", "plain directories"]
        bundle = mount.tree.root / "ca.pem"
        (mount.tree.root / "trusted" / "second.pem").write_bytes(SECOND.pem)
        server = server_of(mount)
        os.kill(server, signal.SIGKILL)

        wait_until(lambda: server_of(mount) not in {0, server}, seconds=60, what="a new server")
        wait_until(partial(scene.is_told_of, bundle), seconds=60, what="a call")
        (mount.tree.root / "trusted" / "second.pem").unlink()
        wait_until(partial(scene.is_told_of, bundle), seconds=60, what="a call")


def test_a_restart_takes_readers_from_the_configuration_anew(scene: Scene) -> None:
    """Another reader is told from then on, and the one before no more."""
    with scene.mounted(scene.noting("before")) as mount:
        scene.config.write_text(BUNDLE + scene.noting("after"))
        subprocess.run(
            [certfs_program(), "restart", mount.tree.root],
            check=True, env=mount.environment, timeout=60, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(lambda: len(_notifiers(mount)) == 1, seconds=60, what="one notifier")
        (mount.tree.root / "trusted" / "second.pem").write_bytes(SECOND.pem)
        wait_until(lambda: scene.told() != [], seconds=60, what="a call")
        assert [words[0] for words in scene.told()] == ["after"]


def _notifiers(mount: CertfsMount) -> list[int]:
    found = []
    for pid in mount.pids:
        with suppress(OSError):
            if b"certfs.notifier.main" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def test_without_readers_there_is_no_notifier(scene: Scene) -> None:
    """A process that has nothing to do is not there (I18)."""
    with scene.mounted("") as mount:
        assert _notifiers(mount) == []


def test_a_notifier_that_is_killed_is_started_again(scene: Scene) -> None:
    """Nothing that happened meanwhile is lost."""
    with scene.mounted(scene.noting()) as mount:
        wait_until(lambda: len(_notifiers(mount)) == 1, seconds=60, what="the notifier")
        os.kill(_notifiers(mount)[0], signal.SIGKILL)
        (mount.tree.root / "trusted" / "second.pem").write_bytes(SECOND.pem)
        wait_until(lambda: scene.told() != [], seconds=60, what="a call")


def test_a_further_copy_follows_the_bundle(scene: Scene) -> None:
    """It is a plain file, replaced as a whole, wherever it is wanted (I12)."""
    copy = scene.root / "copy.pem"
    text = f'{BUNDLE}copy = "{copy}"\n'
    with scene.mounted(text) as mount:
        wait_until(copy.exists, seconds=60, what="the copy")
        (mount.tree.root / "trusted" / "second.pem").write_bytes(SECOND.pem)
        bundle = mount.tree.root / "ca.pem"
        wait_until(lambda: copy.read_bytes() == bundle.read_bytes(), seconds=60, what="the copy")


def test_a_further_copy_is_never_made_in_a_mount_of_certfs(scene: Scene) -> None:
    """It could never be a plain file there; `status` and `check` say where and why (I9, I12)."""
    with scene.mounted("") as other:
        for place in (other.tree.root, other.tree.root / "trusted"):
            with scene.mounted(f'{BUNDLE}copy = "{place}/copy.pem"\n') as mount:
                mount.expected_log += ["inside of a certfs mount"]
                wait_until(partial(_is_failing, mount), seconds=60, what="the refusal")
                assert f"{place} is inside of a certfs mount" in command("status", mount).stdout
                assert command("check", mount).returncode == 1
        assert {path.name for path in other.tree.root.iterdir()} == {"ca.pem", "trusted"}
        assert [path.name for path in (other.tree.root / "trusted").iterdir()] == ["first.pem"]


def _is_failing(mount: CertfsMount) -> bool:
    """Whether the only reader could not be told."""
    readers = json.loads(command("status", mount, "--json").stdout)["notify"]
    return [bool(reader["failures"]) for reader in readers] == [True]


@contextmanager
def stunnel_server(scene: Scene, bundle: Path) -> Iterator[tuple[int, Path, Path]]:
    """Run a stunnel server that asks clients for a certificate; yield its port, pid file and log."""
    need_program("stunnel")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    own, configuration = scene.root / "server.pem", scene.root / "stunnel.conf"
    own.write_bytes(pki.issue("server", host_names=("localhost",)).host_pem)
    pid_file, log = scene.root / "stunnel.pid", scene.root / "stunnel.log"
    configuration.write_text(
        f"foreground = yes\npid = {pid_file}\ndebug = info\noutput = {log}\n"
        f"[test]\naccept = 127.0.0.1:{port}\ncert = {own}\nsslVersionMax = TLSv1.2\n"
        f"CAfile = {bundle}\nverifyChain = yes\nexec = /bin/echo\nexecArgs = echo welcome\n"
    )
    process = subprocess.Popen(
        ["stunnel", configuration], stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(
            lambda: has_written(pid_file) and configured(log) == 1, seconds=60, what="stunnel"
        )
        yield port, pid_file, log
    finally:
        process.terminate()
        process.wait()


def has_written(pid_file: Path) -> bool:
    """Whether a program has made its pid file and written it, which is not one step."""
    return pid_file.exists() and pid_file.stat().st_size > 0


def configured(log: Path) -> int:
    """Return how often a stunnel server has read its configuration."""
    return len(re.findall("Configuration successful", log.read_text())) if log.exists() else 0


def accepts(scene: Scene, port: int, client: pki.Identity) -> bool:
    """Whether the server lets a client with this certificate in."""
    own = scene.root / "client.pem"
    own.write_bytes(client.host_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(own)
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=30) as plain:
                break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    try:
        with (
            socket.create_connection(("127.0.0.1", port), timeout=30) as plain,
            context.wrap_socket(plain) as secured,
        ):
            return secured.recv(100) == b"welcome\n"
    except (ssl.SSLError, ConnectionError):
        return False


@pytest.mark.stunnel
def test_a_running_stunnel_server_accepts_a_client_after_its_reload(scene: Scene) -> None:
    """A client that was refused is accepted, and the server was not restarted."""
    pid_file = scene.root / "stunnel.pid"
    text = f'[[notify]]\npid_file = "{pid_file}"\nprocess = "stunnel"\n{QUICK}'
    with (
        scene.mounted(text) as mount,
        stunnel_server(scene, mount.tree.root / "ca.pem") as (port, _pid_file, log),
    ):
        client = pki.issue("client", issuer=SECOND)
        before = pid_file.read_text()
        assert not accepts(scene, port, client)
        (mount.tree.root / "trusted" / "second.pem").write_bytes(SECOND.pem)
        wait_until(lambda: configured(log) == 2, seconds=60, what="the reload")
        assert accepts(scene, port, client)
        assert pid_file.read_text() == before


@contextmanager
def nginx(scene: Scene, bundle: Path) -> Iterator[tuple[int, Path]]:
    """Run an nginx that asks clients for a certificate; yield its port and its configuration file."""
    need_program("nginx")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    own, configuration = scene.root / "server.pem", scene.root / "nginx.conf"
    own.write_bytes(pki.issue("server", host_names=("localhost",)).host_pem)
    temporary = "\n".join(
        f"{name}_temp_path {scene.root}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    configuration.write_text(
        f"daemon off; pid {scene.root}/nginx.pid; error_log {scene.root}/nginx.log notice;\n"
        f"events {{}}\nhttp {{ access_log off; {temporary}\n"
        f"server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {own}; ssl_certificate_key {own};\n"
        f"ssl_client_certificate {bundle}; ssl_verify_client on; return 200 welcome; }} }}\n"
    )
    process = subprocess.Popen(
        ["/usr/sbin/nginx", "-c", configuration],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until((scene.root / "nginx.pid").exists, seconds=60, what="nginx")
        yield port, configuration
    finally:
        process.terminate()
        process.wait()


def welcomes(scene: Scene, port: int, client: pki.Identity) -> bool:
    """Whether the web server lets a client with this certificate in."""
    return answer_to(scene, port, client) == http.HTTPStatus.OK


def answer_to(scene: Scene, port: int, client: pki.Identity) -> int:
    """Return the status of the answer that a client with this certificate gets, 0 where it gets none."""
    own = scene.root / "client.pem"
    own.write_bytes(client.host_pem)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.load_cert_chain(own)
    connection = http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=30)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def test_a_running_nginx_accepts_a_client_after_its_reload(scene: Scene) -> None:
    """A client that was refused is welcomed, and one whose CA was removed is refused."""
    program = f'["/usr/sbin/nginx", "-c", "{scene.root}/nginx.conf", "-s", "reload"]'
    text = f"[[notify]]\ncommand = {program}\n{QUICK}"
    with (
        scene.mounted(text) as mount,
        nginx(scene, mount.tree.root / "ca.pem") as (port, _configuration),
    ):
        client, source = (
            pki.issue("client", issuer=SECOND),
            mount.tree.root / "trusted" / "second.pem",
        )
        assert not welcomes(scene, port, client)
        source.write_bytes(SECOND.pem)
        wait_until(lambda: welcomes(scene, port, client), seconds=60, what="a welcome")
        source.unlink()
        wait_until(lambda: _is_told_of(mount), seconds=60, what="the end of the run")
        # Not just no answer, as there may be none in the middle of a reload.
        refused = http.HTTPStatus.BAD_REQUEST
        wait_until(lambda: answer_to(scene, port, client) == refused, seconds=60, what="a refusal")


def test_a_new_host_certificate_is_told(scene: Scene) -> None:
    """Whoever shows it to clients is told once it is installed, made anew, or replaced by any other program."""
    hook = scene.noting().replace("[[notify]]", '[[notify]]\non = "host-certificate"')
    scene.config.write_text(hook)
    pair = pki.issue("installed host", key=pki.rsa_key())
    certificate, key = scene.root / "host.pem", scene.root / "host.key"
    certificate.write_bytes(pair.pem)
    key.write_bytes(pair.key_pem)
    with mounts.mounted("--config", str(scene.config)) as mount:
        wait_until(lambda: len(_notifiers(mount)) == 1, seconds=60, what="the notifier")
        own = mount.tree.root / "xensource" / "xapi-ssl.pem"
        store = ("--store", mount.tree.root)
        install = ("--certificate", certificate, "--private-key", key)
        ways: tuple[Callable[[], object], ...] = (
            partial(certfs, mount, "host-server-certificate-install", *install, *store),
            partial(certfs, mount, "reset-server-certificate", *store),
            partial(own.write_bytes, pair.host_pem),
        )
        for number, way in enumerate(ways, 1):
            way()
            wait_until(partial(_is_call, scene, number), seconds=60, what="a call")
            assert scene.told()[-1][1:3] == [sha256_of(own), str(own)]


def test_a_host_certificate_that_changes_before_the_first_look_is_told(scene: Scene) -> None:
    """What counts is what the server began with, also where no notifier has looked at it before."""
    hook = scene.noting().replace("[[notify]]", '[[notify]]\non = "host-certificate"')
    scene.config.write_text(hook)
    with mounts.mounted("--config", str(scene.config)) as mount:
        wait_until(lambda: len(_notifiers(mount)) == 1, seconds=60, what="the notifier")
        # As if it had been killed before it looked: stopped, and its state gone.
        os.kill(_notifiers(mount)[0], signal.SIGSTOP)
        for state in mount.tree.root.with_name("run").glob("notify-*"):
            state.unlink()
        certfs(mount, "reset-server-certificate", "--store", mount.tree.root)
        os.kill(_notifiers(mount)[0], signal.SIGKILL)
        wait_until(partial(_is_call, scene, 1), seconds=60, what="a call")


def _is_call(scene: Scene, number: int) -> bool:
    return len(scene.told()) == number


def certfs(mount: CertfsMount, *words: str | Path) -> None:
    """Run a command of certfs."""
    done = run_forked(words, env=mount.environment)
    assert done.returncode == 0, done.stderr


@contextmanager
def haproxy(scene: Scene, bundle: Path) -> Iterator[int]:
    """Run a haproxy, as its unit does, that asks clients for a certificate; yield its port."""
    need_program("haproxy")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    own, configuration = scene.root / "server.pem", scene.root / "haproxy.cfg"
    own.write_bytes(pki.issue("server", host_names=("localhost",)).host_pem)
    configuration.write_text(
        "defaults\n mode http\n timeout client 30s\n timeout server 30s\n timeout connect 30s\n"
        f"frontend test\n bind 127.0.0.1:{port} ssl crt {own} ca-file {bundle} verify required\n"
        ' http-request return status 200 content-type text/plain string "welcome"\n'
    )
    pid_file = scene.root / "haproxy.pid"
    process = subprocess.Popen(
        ["/usr/sbin/haproxy", "-Ws", "-f", configuration, "-p", pid_file],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: has_written(pid_file), seconds=60, what="haproxy")
        yield port
    finally:
        process.terminate()
        process.wait()


def test_a_running_haproxy_accepts_a_client_after_its_reload(scene: Scene) -> None:
    """SIGUSR2 to its master is what its unit's reload does."""
    text = f'[[notify]]\npid_file = "{scene.root}/haproxy.pid"\nprocess = "haproxy"\nsignal = "USR2"\n{QUICK}'
    with scene.mounted(text) as mount, haproxy(scene, mount.tree.root / "ca.pem") as port:
        client, source = (
            pki.issue("client", issuer=SECOND),
            mount.tree.root / "trusted" / "second.pem",
        )
        assert not welcomes(scene, port, client)
        source.write_bytes(SECOND.pem)
        wait_until(lambda: welcomes(scene, port, client), seconds=60, what="a welcome")
        source.unlink()
        # Three in a row: there may be no answer in the middle of a reload.
        for _ in range(3):
            wait_until(lambda: not welcomes(scene, port, client), seconds=60, what="a refusal")
        wait_until(lambda: _is_told_of(mount), seconds=60, what="the end of the run")


def order_of(mount: CertfsMount) -> dict[str, Any]:
    """Return what the state file says of the only reader."""
    states = mount.tree.root.with_name("run").glob("notify-*")
    (state,) = (path for path in states if path.suffix != ".new")  # that is a draft, for a moment
    (order,) = json.loads(state.read_bytes())["orders"].values()
    return dict(order)


def _is_told_of(mount: CertfsMount) -> bool:
    """Whether the only reader was told of what there is now."""
    order = order_of(mount)
    there = f"{sha256_of(mount.tree.root / 'ca.pem')} ca.pem"
    return bool(order["told"] == hashlib.sha256(there.encode()).hexdigest() and not order["dirty"])


KILLS = int(os.environ.get("CERTFS_TEST_KILLS", "5"))
"""One of each process and one of the hook; the nightly run kills them at more points."""


def test_whatever_is_killed_the_last_change_is_told(scene: Scene) -> None:
    """Each process of the mount, or the hook, at another point each time: the reader has the last content."""
    reader = scene.noting()
    with (scene.root / "hook").open("a") as hook:
        hook.write(f"sleep 0.05\nwhile [ -e {scene.root}/held ]; do sleep 0.05; done\n")
    held = scene.root / "held"
    with scene.mounted(reader) as mount:
        mount.expected_log += [".*"]
        source, bundle = mount.tree.root / "trusted" / "second.pem", mount.tree.root / "ca.pem"
        victim = 0
        for number in range(KILLS):
            # One fault at a time: two at once leave plain files, and no process to tell anybody.
            wait_until(partial(_are_whole, mount, victim), seconds=60, what="all four processes")
            victim = (*_four(mount), 0)[number % 5]
            if not victim:
                held.touch()
            source.write_bytes(pki.issue(f"kill {number}").pem)
            if victim:
                # At another point each time: a hook is told some 0.15 s after a change, and takes 0.05 s.
                time.sleep(0.03 * (number // 5 % 9))
                os.kill(victim, signal.SIGKILL)
            else:
                wait_until(partial(_kills_hook, mount), seconds=60, what="a hook to kill")
                held.unlink()
            wait_until(partial(scene.is_told_of, bundle), seconds=60, what="the last content")
            wait_until(partial(_is_told_of, mount), seconds=60, what="the end of the run")
        wait_until(lambda: 0 not in _four(mount), seconds=60, what="all four")


def _kills_hook(mount: CertfsMount) -> bool:
    """Kill the hook that is under way, if there is one."""
    order = order_of(mount)
    if order["process"] is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(order["process"]["pid"], signal.SIGKILL)
        return True
    return False


def _four(mount: CertfsMount) -> tuple[int, ...]:
    """Return the pids of the server, the supervisor, the janitor and the notifier, 0 for one that is not there."""
    notifiers = _notifiers(mount)
    (path,) = mount.tree.root.with_name("run").glob("at-*/state.json")
    state = json.loads(path.read_bytes())
    three = (
        state[name]["pid"] if state[name] else 0 for name in ("server", "supervisor", "janitor")
    )
    return (*three, notifiers[0] if len(notifiers) == 1 else 0)


def _are_whole(mount: CertfsMount, victim: int) -> bool:
    """Whether there is one of each, the successor of `victim` among them."""
    four = _four(mount)
    return victim not in (four if victim else ()) and 0 not in four
