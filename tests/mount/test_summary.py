"""What everybody may know of a mount, and what only root and the owner of the store."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from certfs import __version__
from certfs.cli.json_forms import FORMS
from certfs.moment import written
from tests.support import pki
from tests.support.host import Host, host, kill
from tests.support.mounts import CertfsMount, need_program_for_all, need_root, wait_until

pytestmark = [pytest.mark.mount, pytest.mark.namespace]

NOBODY = 65534
TIMES = {"since", "server_since", "changed", "at", "next_start", "last_success"}
SUMMARY = "/run/certfs/dom0/summary.json"


def as_nobody(made: Host, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command on a host as an ordinary user.

    Its lines are not counted: this user cannot write what coverage counted, and coverage may say so between the lines
    of the command.
    """
    need_program_for_all()
    who = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    unset = ["XDG_RUNTIME_DIR", *(name for name in os.environ if name.startswith("COVERAGE_"))]
    options = [word for name in unset for word in ("-u", name)]
    return made.run("setpriv", *who, "env", *options, *command)


def status(made: Host) -> tuple[int, dict[str, Any]]:
    """Return exit code and answer of `certfs status --json` for an ordinary user."""
    result = as_nobody(made, *made.program(), "status", "--json")
    answer = json.loads(result.stdout)
    msgspec.convert(answer, FORMS["status"])
    return result.returncode, answer


def test_a_monitor_without_privilege_gets_a_true_answer(dom0: Host) -> None:
    """An ordinary user is told whether the host's directories are served, since when, and what the bundles hold."""
    (dom0.tree.certs_pool / "junk.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nnothing")
    count = dom0.tree.pool_bundle.read_bytes().count(b"BEGIN")

    def is_told() -> bool:
        _, answer = status(dom0)
        (bundle,) = (each for each in answer["bundles"] if "pool" in each["bundle"])
        return (bundle["certificates"], bundle["left_out_count"]) == (count, 1)

    wait_until(is_told, what="a summary of now")
    code, answer = status(dom0)
    assert (code, answer["phase"], answer["answering"]) == (0, "serving", True)
    assert answer["since"] == written(dom0.state()["since"])
    assert answer["server"]["version"] == __version__
    assert f", certfs {__version__}\n" in dom0.certfs("status")
    assert "junk" not in json.dumps(answer)
    paths = {each["path"] for each in answer["bundles"]}
    assert "/etc/stunnel/xapi-pool-ca-bundle.pem" in paths
    assert all(os.path.isabs(path) for path in paths)
    assert as_nobody(dom0, *dom0.program(), "status", "/etc/stunnel").returncode == 0
    text = as_nobody(dom0, *dom0.program(), "status")
    assert text.returncode == 0, text.stderr
    assert "junk" not in text.stdout


@pytest.mark.parametrize("variable", ["XDG_RUNTIME_DIR", "CERTFS_RUNTIME_DIR"])
def test_a_monitor_that_kept_the_environment_of_root_gets_it_as_well(
    dom0: Host, variable: str
) -> None:
    """After su a variable names root's runtime directory: no bug, and the host's answer is the same (I9)."""
    roots = dom0.inside("/run/user/0/certfs")
    roots.mkdir(parents=True)
    roots.parent.chmod(0o700)
    place = roots.parent if variable.startswith("XDG") else roots

    def call(*words: str) -> subprocess.CompletedProcess[str]:
        setting = f"{variable}={place.relative_to(dom0.inside('/'))}".replace("=", "=/")
        return as_nobody(dom0, "env", setting, *dom0.program(), *words)

    answer = call("status")
    assert answer.returncode == 0, answer.stderr
    assert "/etc/stunnel" in answer.stdout
    dom0.certfs("unmount")
    for words in (
        ["status"],
        ["unmount", "--all"],
        ["restart", "/srv"],
        ["mount", "--store", "/srv", "/tmp"],
    ):
        refused = call(*words)
        assert refused.returncode == 10, refused.stderr
        assert re.fullmatch(
            rf"certfs: /run/user/0/certfs: Permission denied: .*{variable}.*\n", refused.stderr
        )
    dom0.certfs("mount")


def test_a_monitor_hears_of_a_mount_that_does_not_serve(dom0: Host) -> None:
    """Where the processes are stopped, dead, or unmounted, the summary that is left does not say otherwise."""
    server, supervisor = dom0.server(), dom0.supervisor()
    for pid in (supervisor, server):
        os.kill(pid, signal.SIGSTOP)
    code, answer = status(dom0)
    assert (code, answer["answering"]) == (9, False)
    os.kill(server, signal.SIGCONT)
    kill(server)
    wait_until(lambda: status(dom0)[1]["phase"] in {"plain", "dead"}, what="plain directories")
    assert status(dom0)[0] == 9
    os.kill(supervisor, signal.SIGCONT)
    wait_until(lambda: status(dom0)[0] == 0, what="the live mount", seconds=20)
    dom0.certfs("unmount")
    assert not dom0.inside(SUMMARY).exists()
    assert as_nobody(dom0, *dom0.program(), "status").returncode == 7


def _findings(done: subprocess.CompletedProcess[str]) -> set[tuple[str, str]]:
    answer = json.loads(done.stdout)
    msgspec.convert(answer, FORMS["check"])
    assert answer["exit_code"] == done.returncode
    return {(each["severity"], each["name"]) for each in answer["findings"]}


def _call(
    command: Callable[[], subprocess.CompletedProcess[str]],
) -> subprocess.CompletedProcess[str]:
    return command()


def test_one_command_tells_a_monitor_that_nothing_serves(dom0: Host) -> None:
    """`certfs check` is critical for whoever asks, where the mount hangs or is dead; no command hangs with it (I15)."""
    check = [*dom0.program(), "check", "--json"]
    dom0.inside("/etc/trusted-certs").mkdir()
    dom0.certfs("restart")
    assert ("critical", "NOT_SERVING") not in _findings(as_nobody(dom0, *check))
    for pid in (dom0.supervisor(), dom0.server()):
        os.kill(pid, signal.SIGSTOP)
    judging = [
        *(partial(as_nobody, dom0, *check, *words) for words in ([], ["/etc/stunnel"])),
        *(partial(dom0.command, "check", "--json", *words) for words in ([], ["/etc/stunnel"])),
    ]
    looking = [
        partial(dom0.command, *words, seconds=20)
        for words in (["list"], ["repair", "--dry-run"], ["pool-certificate-list"])
    ]
    with ThreadPoolExecutor() as at_once:
        judged, looked = at_once.map(_call, judging), at_once.map(_call, looking)
        for done in judged:
            assert _findings(done) == {("critical", "NOT_SERVING")}
        assert [done.returncode for done in looked] == [9, 9, 9]
    kill(*dom0.processes())
    wait_until(lambda: status(dom0)[1]["phase"] == "dead", what="the death of all")
    for judge in judging:
        assert _findings(judge()) == {("critical", "NOT_SERVING")}
    bundle = "/etc/stunnel/xapi-pool-ca-bundle.pem"
    for words in (
        ["list"],
        ["repair"],
        ["pool-certificate-list"],
        ["host-get-server-certificate"],
        ["certificate-show", bundle],
        ["export", bundle, "--output", "/run/exported.pem"],
    ):
        done = dom0.command(*words)
        assert done.returncode == 9, done.stderr
        assert "certfs mount serves it again" in done.stderr
    assert "/etc/trusted-certs" in dom0.certfs("mount")
    assert dom0.certfs("list")


READ = """
import os, sys
for path in sys.argv[1:]:
    try:
        print(os.listdir(path) if os.path.isdir(path) else len(open(path).read()))
    except OSError as error:
        print(error.errno)
"""


def test_details_are_for_root_and_the_hidden_mount_is_no_way_in(dom0: Host) -> None:
    """An ordinary user reads the summary, passes `df`, and reaches nothing through the runtime directory (I19)."""
    hidden = dom0.state()["mountpoint"]
    paths = [SUMMARY, hidden, f"{hidden}/.certfs/status.json", f"{hidden}/stunnel"]
    private = ["state.json", "settings.json", "log", "lock", "undo-log"]
    result = as_nobody(
        dom0, sys.executable, "-c", READ, *paths, *(f"/run/certfs/dom0/{name}" for name in private)
    )
    size, *refused = result.stdout.split()
    assert int(size) > 100, result
    assert set(refused) <= {"13", "2"}, result.stdout
    assert as_nobody(dom0, "df", hidden).returncode == 0
    assert as_nobody(dom0, "stat", "-f", hidden).returncode == 0
    for name in os.listdir(dom0.inside("/run/certfs/dom0")):
        path = dom0.inside(f"/run/certfs/dom0/{name}")
        public = 0o644 if name == "summary.json" else 0o700
        if not name.startswith("mount-"):
            assert path.stat().st_mode & 0o777 & ~public == 0, name


@pytest.mark.parametrize("options", [(), ("--allow-other",)])
def test_df_of_an_ordinary_user_passes_a_standalone_mount_of_root_s(
    options: tuple[str, ...],
) -> None:
    """`df` answers an ordinary user for each mount, and none is a way around a closed directory above another (I19)."""
    with host() as made:
        closed = made.inside("/etc/closed")
        (closed / "view").mkdir(parents=True)
        closed.chmod(0o700)
        store = made.inside("/etc/plain")
        (store / "trusted").mkdir(parents=True)
        made.certfs("mount", "--store", "/etc/plain", "/etc/closed/view", *options)
        hidden, shown = made.certfs_mounts()
        assert shown == "/etc/closed/view"
        for _ in range(2):
            assert as_nobody(made, "stat", "-f", hidden).returncode == 0
            said = as_nobody(made, "df")
            assert said.returncode == 0, said.stderr
            for place in (
                hidden,
                f"{hidden}/store",
                f"{hidden}/store/trusted",
                f"{hidden}/.certfs",
            ):
                assert as_nobody(made, "ls", place).returncode != 0, place
            made.certfs("restart", "/etc/closed/view")
            hidden, _ = sorted(made.certfs_mounts(), reverse=True)
        assert made.inside("/etc/closed/view").stat().st_ino == store.stat().st_ino
        made.certfs("unmount", "/etc/closed/view")


def test_details_of_a_mount_are_for_root_and_its_owner(certfs_mount: CertfsMount) -> None:
    """In a mount that others see there is a summary for them, and details that they may not read."""
    need_root()
    certfs_mount.expected_log.append("secret-name.pem")
    own = certfs_mount.tree.root / ".certfs"
    (certfs_mount.tree.certs_pool / "secret-name.pem").write_bytes(b"-----BEGIN CERTIFICATE-----")
    (certfs_mount.tree.certs_pool / "a.pem").write_bytes(pki.issue("a").pem)
    summary = json.loads((own / "summary.json").read_bytes())
    assert {bundle["left_out"] for bundle in summary["bundles"]} == {0, 1}
    msgspec.convert(summary, FORMS["summary"])
    assert "secret" not in json.dumps(summary)
    details = subprocess.run(
        [*Host.program(), "status", "--json", certfs_mount.tree.root],
        check=True,
        capture_output=True,
        env=certfs_mount.environment,
    )
    msgspec.convert(json.loads(details.stdout), FORMS["status"])
    assert b"secret" in (own / "status.json").read_bytes()
    store = certfs_mount.tree.store.stat()
    status_file = (own / "status.json").stat()
    assert (status_file.st_mode & 0o777, status_file.st_uid) == (0o400, store.st_uid)
    assert (own / "summary.json").stat().st_mode & 0o777 == 0o444 | 0o200


def test_a_host_that_is_set_up_and_not_served_is_critical(dom0: Host) -> None:
    """`certfs check` says so where the unit is enabled; a host on which nobody set it up is none of its business."""

    def names() -> set[str]:
        answer = json.loads(dom0.command("check", "--json").stdout)
        assert "findings" in answer, answer
        return {each["name"] for each in answer["findings"] if each["severity"] == "critical"}

    enabled = dom0.directory / "etc/systemd/system/multi-user.target.wants"
    enabled.mkdir(parents=True, exist_ok=True)
    link = enabled / "certfs.service"
    link.unlink(missing_ok=True)
    link.symlink_to("../certfs.service")
    assert "NOT_SERVING" not in names()
    dom0.certfs("unmount")
    assert "NOT_SERVING" in names()
    link.unlink()
    assert "NOT_SERVING" not in names()


def test_a_configuration_that_certfs_would_not_start_with_is_found_before(dom0: Host) -> None:
    """`certfs check` warns of it while certfs serves by the one before, and is critical where it does not serve."""
    check = [*dom0.program(), "check", "--json"]
    file = dom0.store.root / "certfs.toml"
    file.write_text("no_such_key = 1\n")
    for done in (dom0.run(*check), as_nobody(dom0, *check)):
        assert ("warning", "CONFIGURATION_BROKEN") in _findings(done)
    file.chmod(0o600)
    assert "CONFIGURATION_BROKEN" not in str(_findings(as_nobody(dom0, *check)))
    dom0.certfs("unmount")
    assert _findings(dom0.run(*check)) == {("critical", "CONFIGURATION_BROKEN")}
    assert "no_such_key" in dom0.certfs("check", "--config", "/etc/certfs.toml", expect=3)
    file.unlink()
    assert "CONFIGURATION_BROKEN" not in str(_findings(dom0.run(*check)))


def _texts(answer: object, key: str = "") -> Iterator[tuple[str, object]]:
    match answer:
        case dict():
            for name, value in answer.items():
                yield from _texts(value, name)
        case list():
            for value in answer:
                yield from _texts(value, key)
        case _:
            yield key, answer


def test_a_status_has_the_one_form_of_times(dom0: Host) -> None:
    """Times are RFC 3339 in UTC for root, for a monitor and in text, whatever the time zone."""
    dom0.certfs("restart")
    said = json.loads(dom0.certfs("status", "--json"))
    _, summarised = status(dom0)
    file = json.loads(dom0.inside("/run/certfs/dom0/summary.json").read_bytes())
    assert said["events"]
    for answer in (said, summarised, file):
        times = {key: value for key, value in _texts(answer) if key in TIMES and value is not None}
        assert {"since", "changed"} <= times.keys()
        for value in times.values():
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", str(value)), times
    text = dom0.run("env", "TZ=Asia/Tokyo", *dom0.program(), "status").stdout
    assert f"since        {said['since']}" in text
    assert f"{said['events'][-1]['at']}  restarted" in text


def test_the_last_change_survives_whatever_is_started_anew(dom0: Host) -> None:
    """A restart, a crash and another mount change no bundle, and status says so (I17)."""

    def changes() -> tuple[str, int]:
        said = json.loads(dom0.certfs("status", "--json"))
        (moment,) = (one["changed"] for one in said["bundles"] if "pool" in one["bundle"])
        return moment, dom0.tree.pool_bundle.stat().st_mtime_ns

    before = changes()
    dom0.certfs("restart")
    assert changes() == before
    server = dom0.server()
    dom0.live_again(kill(server), not_pid=server)
    assert changes() == before
    dom0.certfs("unmount")
    dom0.certfs("mount")
    assert changes() == before
    (dom0.tree.certs_pool / "more.pem").write_bytes(pki.issue("more").pem)
    assert changes()[1] > before[1]
