"""``certfs list`` and ``certfs check``: what is trusted, what was left out and why, as text, JSON and exit code."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from certfs.cli.check import judge_incomplete, judge_readers
from certfs.cli.places import Incomplete
from certfs.cli.places import Place as ServedPlace
from certfs.config import load_config
from certfs.protocol.notify_state import Entry
from tests.support import mounts, pki, pki_deviations, pki_forms
from tests.support.identity import run_certfs
from tests.support.mounts import certfs_program
from tests.support.tree import Tree

pytestmark = pytest.mark.counted

ONE, TWO = (pki.authority(f"inspect {number}") for number in range(2))

_CONFIG = '[[bundle]]\nsource = "certs"\nbundle = "bundle.pem"\n'
_UNPRINTABLE = re.compile(r"[^\n\t\x20-\x7e\u00a0-\uffff]")
KEYS = {
    "bundle": str,
    "source": str,
    "line": int,
    "subject": str,
    "issuer": str,
    "sha256": str,
    "not_before": str,
    "not_after": str,
    "days_left": int,
    "included": bool,
    "severity": str,
    "reason": str,
    "duplicate_of": str,
}
"""The schema of ``certfs list --json`` as docs/bundles.md states it."""


class Place:
    """A store with one bundle and no host, and the commands on it."""

    def __init__(self, root: Path) -> None:
        self.store = root / "store"
        self.certs = self.store / "certs"
        self.certs.mkdir(parents=True)
        self.config = root / "certfs.toml"
        self.config.write_text(_CONFIG, encoding="ascii")

    def put(self, name: str | bytes, data: bytes) -> None:
        """Write a source."""
        path = os.fsencode(self.certs) + b"/" + os.fsencode(name)
        with open(path, "wb") as file:
            file.write(data)

    def run(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the store."""
        return run(command, "--store", str(self.store), "--config", str(self.config), *options)

    def rows(self) -> list[list[str]]:
        """Give the lines of ``certfs list``, piped."""
        ended = self.run("list")
        assert (ended.returncode, ended.stderr) == (0, "")
        return [line.split("\t") for line in ended.stdout.splitlines()]

    def objects(self) -> list[dict[str, Any]]:
        """Give the objects of ``certfs list --json``."""
        ended = self.run("list", "--json")
        assert (ended.returncode, ended.stderr) == (0, "")
        answer: list[dict[str, Any]] = json.loads(ended.stdout)
        return [self._below(each) for each in answer]

    def _below(self, answer: dict[str, Any]) -> dict[str, Any]:
        """Give an object with its absolute paths as seen from the store."""
        keys = [key for key in ("bundle", "source", "duplicate_of", "file") if answer.get(key)]
        assert all(answer[key].startswith(f"{self.store}/") for key in keys)
        return answer | {key: answer[key].removeprefix(f"{self.store}/") for key in keys}

    def check(self) -> tuple[int, list[dict[str, Any]]]:
        """Give exit code and findings of ``certfs check``."""
        ended = self.run("check", "--json")
        answer = json.loads(ended.stdout)
        assert ended.stderr == ""
        assert answer["exit_code"] == ended.returncode
        assert answer["status"] == ("ok", "warning", "critical")[ended.returncode]
        return ended.returncode, [self._below(each) for each in answer["findings"]]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``certfs``."""
    return run_certfs(*arguments)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Give an empty store."""
    return Place(tmp_path)


# --- list ----------------------------------------------------------------------


def test_piped_each_entry_is_a_line_of_six_fields(place: Place) -> None:
    """Bundle, source, subject, days left, SHA-256, reason; for cut(1) and awk(1)."""
    place.put("a.pem", ONE.pem + b"\n-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----\n")
    lines = len((ONE.pem + b"\n").splitlines())
    first, second = place.rows()
    assert first[:3] == ["bundle.pem", "certs/a.pem", "CN=inspect 0"]
    assert int(first[3]) in range(3640, 3651)
    assert first[4:] == [ONE.sha256, ""]
    assert second[:5] == ["bundle.pem", "certs/a.pem", "", "", ""]
    assert second[5].startswith(f"line {lines + 1}: CERTIFICATE has ")


def test_the_json_has_its_schema(place: Place) -> None:
    """Every object has every key; what does not apply is null."""
    place.put("a.pem", ONE.pem)
    place.put("b.pem", ONE.pem + b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n")
    place.put("c.pem", b"junk")
    objects = place.objects()
    assert len(objects) == 4
    for each in objects:
        assert each.keys() == KEYS.keys()
        for key, value in each.items():
            assert value is None or type(value) is KEYS[key], key
    good = objects[0]
    assert good["included"]
    assert good["reason"] is None
    assert good["issuer"] == good["subject"] == "CN=inspect 0"
    assert datetime.fromisoformat(good["not_before"]) == ONE.certificate.not_valid_before_utc
    assert datetime.fromisoformat(good["not_after"]) == ONE.certificate.not_valid_after_utc
    assert [each["severity"] for each in objects] == ["note", "note", "note", "defect"]


def test_the_order_is_the_bundle_s(place: Place) -> None:
    """I5: ``*.new.pem`` first, then by name, within a file as written."""
    place.put("b.pem", ONE.pem)
    place.put("z.new.pem", TWO.pem)
    place.put("a.pem", b"junk")
    assert [each["source"] for each in place.objects()] == [
        "certs/z.new.pem",
        "certs/a.pem",
        "certs/b.pem",
    ]


def test_a_duplicate_names_its_original(place: Place) -> None:
    """I9: the file that the certificate is taken from."""
    place.put("a.pem", ONE.pem)
    place.put("b.pem", ONE.pem)
    _, duplicate = place.objects()
    assert not duplicate["included"]
    assert duplicate["duplicate_of"] == "certs/a.pem"
    assert duplicate["reason"] == "duplicate of certs/a.pem"
    assert duplicate["sha256"] == ONE.sha256
    assert place.rows()[1][5] == "duplicate of certs/a.pem"


_EVIL_NAMES = [
    b"\x1b[31mred\x1b[0m.pem",
    b"two\nlines\t.pem",
    b"\xff\xfe.pem",
    b"\xe2\x80\xaegnp.pem",
    b"\x9b31m.pem",
    b"[red]markup.pem",
    b"back\\slash.pem",
]


def test_a_name_is_never_printed_raw(place: Place) -> None:
    """Escapes, newlines, right-to-left marks and bytes that are no text are written out."""
    for name in _EVIL_NAMES:
        place.put(name, b"junk")
    for options in ((), ("--json",)):
        for command in ("list", "check"):
            said = place.run(command, *options).stdout
            assert not _UNPRINTABLE.search(said), said
            assert "\u202e" not in said
            assert "31mred" in said
    assert len(place.rows()) == len(_EVIL_NAMES)
    assert {each["source"] for each in place.objects()} >= {
        "certs/[red]markup.pem",
        "certs/\\xff\\xfe.pem",
    }


def test_a_subject_is_never_printed_raw(place: Place) -> None:
    """Who can have a certificate installed cannot write on the admin's terminal."""
    evil = pki.issue("\x1b[2J\x1b]0;title\x07 trusted\u202e", ca=True)
    place.put("a.pem", evil.pem)
    for options in ((), ("--json",)):
        said = place.run("list", *options).stdout
        assert not _UNPRINTABLE.search(said)
        assert "\u202e" not in said
        assert "trusted" in said


def test_a_private_key_is_named_and_never_shown(place: Place) -> None:
    """I4: not one line of it, in any form of any answer."""
    secrets: set[bytes] = set()
    for number, form in enumerate(pki_forms.with_keys()):
        place.put(f"{number:02}.pem", form.data)
        secrets |= set(form.secrets)
    for command in ("list", "check"):
        for options in ((), ("--json",)):
            ended = place.run(command, *options)
            said = ended.stdout + ended.stderr
            assert "PRIVATE KEY" in said
            assert [line for line in secrets if line.decode() in said] == []


def test_an_odd_certificate_causes_no_noise(place: Place) -> None:
    """A serial number that is not positive is OpenSSL's to judge, and no Python warning."""
    der = bytearray(pki.issue("odd serial", extensions=False).der)
    # Not any negative number: 0xff and a byte of 0x80 or more is no DER, and one in 256 serial numbers would be that.
    der[der.index(b"\xa0\x03\x02\x01\x02\x02") + 7] = 0x80
    place.put("a.pem", pki_forms.block(b"CERTIFICATE", bytes(der)))
    for command in ("list", "check"):
        ended = place.run(command)
        assert (ended.returncode, ended.stderr) == (0, "")


def test_real_authorities_cause_no_noise(place: Place) -> None:
    """Debian's CA certificates, some with the serial number 0, leave nothing on standard error."""
    authorities = Path("/etc/ssl/certs/ca-certificates.crt")
    place.put("all.pem", authorities.read_bytes())
    for arguments in (
        ("list", "--store", str(place.store), "--config", str(place.config)),
        ("check", "--store", str(place.store), "--config", str(place.config)),
        ("certificate-show", str(authorities)),
    ):
        assert run(*arguments).stderr == ""


def test_a_reader_that_has_seen_enough_is_no_error(place: Place) -> None:
    """``certfs list | head -1`` ends without a traceback."""
    place.put("a.pem", b"".join(each.pem for each in pki.many(1000)))
    shell = f"{certfs_program()} list --store {place.store} --config {place.config} | head -1"
    ended = subprocess.run(
        ["sh", "-c", shell], check=True, capture_output=True, text=True, timeout=60
    )
    assert ended.stderr == ""
    assert ended.stdout.count("\n") == 1


def on_a_terminal(*arguments: str) -> str:
    """Run ``certfs`` on a terminal of 200 columns and give what it wrote."""
    try:
        ours, theirs = pty.openpty()
    except OSError:
        pytest.skip("there is no terminal to be had here: /dev/pts is not mounted")
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "200", "LINES": "50"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [certfs_program(), *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
    )
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 65536):
            said += piece
    except OSError:
        pass  # EIO: the other end is closed (tty_ioctl(4))
    os.close(ours)
    assert process.wait(60) == 0
    return said.decode()


def test_on_a_terminal_there_are_columns_and_colours(place: Place) -> None:
    """What was left out stands out, and a name brings no escapes of its own."""
    place.put("a.pem", ONE.pem)
    place.put(b"\x1b[35mevil[red].pem", b"junk")
    said = on_a_terminal("list", "--store", str(place.store), "--config", str(place.config))
    assert "days left" in said
    assert ONE.sha256[:16] in said
    assert "no PEM block" in said
    assert "\x1b[33m" in said  # yellow is ours
    assert "\x1b[35m" not in said  # magenta is the name's
    assert "evil[red]" in said


# --- check ---------------------------------------------------------------------


def lasting(days: float) -> pki.Identity:
    """Issue a certificate with so many days left."""
    end = pki.NOW + days * pki.DAY
    return pki.issue(f"{days} days", ca=True, not_before=pki.NOW - 100 * pki.DAY, not_after=end)


@pytest.mark.parametrize(
    "days, code, name",
    [(400, 0, None), (31, 0, None), (29, 1, "EXPIRING"), (0.5, 1, "EXPIRING"), (-1, 1, "EXPIRED")],
)
def test_validity_decides(place: Place, days: float, code: int, name: str | None) -> None:
    """Among others, a certificate with less than 30 days left, or none, is a warning."""
    place.put("a.pem", lasting(days).pem)
    place.put("good.pem", lasting(1000).pem)
    found, findings = place.check()
    assert found == code
    assert [each["name"] for each in findings] == ([name] if name else [])


def test_a_bundle_of_expired_certificates_is_critical(place: Place) -> None:
    """Where nothing is left that is valid, connections fail; each certificate has its line as well."""
    for number, days in enumerate((-1, -3)):
        place.put(f"{number}.pem", lasting(days).pem)
    code, findings = place.check()
    assert code == 2
    assert [each["name"] for each in findings if each["severity"] == "critical"] == ["ALL_EXPIRED"]
    assert place.run("check").stdout.splitlines()[0].startswith("CRITICAL: ")


def test_days_and_severity_are_configured(place: Place, tmp_path: Path) -> None:
    """[check] says from when on a certificate is named, and how bad that is."""
    for number, days in enumerate((400, 50, -3)):
        place.put(f"{number}.pem", lasting(days).pem)
    file = tmp_path / "check.toml"
    file.write_text(
        f'{place.config.read_text()}\n[check]\nexpiring_days = 60\nexpiring = "critical"\nexpired = "note"\n'
    )
    answer = place.run("check", "--json", "--config", str(file))
    found = {each["name"]: each["severity"] for each in json.loads(answer.stdout)["findings"]}
    assert found == {"EXPIRING": "critical", "EXPIRED": "note"}


def test_the_worst_decides(place: Place) -> None:
    """One finding that is critical among others decides, and each has its line."""
    for number, days in enumerate((400, 10, -3)):
        place.put(f"{number}.pem", lasting(days).pem)
    place.put("junk.pem", b"junk")
    code, findings = place.check()
    assert code == 1
    assert {each["name"] for each in findings} == {"EXPIRED", "EXPIRING", "LEFT_OUT"}


def test_an_empty_directory_is_fine(place: Place) -> None:
    """I7: no source, no bundle, nothing to say."""
    assert place.check() == (0, [])
    assert place.run("check").stdout == "OK\n"


def test_sources_that_give_nothing_are_critical(place: Place) -> None:
    """An admin who copied something in expects it to be trusted."""
    place.put("a.pem", b"junk")
    code, findings = place.check()
    assert code == 2
    assert {each["name"] for each in findings} == {"BUNDLE_EMPTY", "LEFT_OUT"}


def test_something_left_out_is_a_warning(place: Place) -> None:
    """I9: a good neighbour keeps the bundle alive, and the file is named."""
    place.put("a.pem", ONE.pem)
    place.put("b.pem", b"junk")
    code, findings = place.check()
    assert code == 1
    assert [(each["file"], each["severity"]) for each in findings] == [("certs/b.pem", "warning")]
    assert findings[0]["mend"]


def test_what_nobody_means_as_trust_is_no_warning(place: Place) -> None:
    """Duplicates, CRLs and what is commented out are left out quietly."""
    place.put("a.pem", ONE.pem)
    place.put("b.pem", ONE.pem + b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n")
    place.put("c.pem", TWO.pem + b"# " + ONE.pem)
    assert place.check() == (0, [])


def test_a_certificate_of_the_future_is_a_warning(place: Place) -> None:
    """More likely this host's clock is wrong than the certificate."""
    place.put("a.pem", pki.issue("later", ca=True, not_before=pki.NOW + 5 * pki.DAY).pem)
    code, findings = place.check()
    assert (code, findings[0]["name"]) == (1, "NOT_VALID_YET")


def test_a_private_key_is_a_warning(place: Place) -> None:
    """I4: it should not be here, and the file is named."""
    place.put("a.pem", ONE.host_pem)
    code, findings = place.check()
    assert (code, findings[0]["file"]) == (1, "certs/a.pem")


# --- where to look -------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, code, expected",
    [
        (("--store", "/nonexistent/store"), 4, "/nonexistent/store: No such file"),
        (("/nonexistent/mount",), 7, "/nonexistent/mount is not a certfs mount"),
        (("/etc",), 7, "/etc is not a certfs mount"),
        (("--store", "/etc", "/etc"), 2, "exclude each other"),
        (("--store", "/etc", "--config", "/nonexistent.toml"), 3, "/nonexistent.toml"),
        (("--store", "/etc/passwd"), 4, "/etc/passwd: Not a directory"),
    ],
)
@pytest.mark.parametrize("command", ["list", "check"])
def test_a_wrong_place_is_one_clear_line(
    command: str, arguments: tuple[str, ...], code: int, expected: str
) -> None:
    """The exit code says what kind of mistake it is, and nothing is printed for a program to misread."""
    ended = run(command, *arguments)
    assert ended.returncode == code
    assert expected in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


@pytest.mark.parametrize("command", ["list", "check", "status"])
def test_an_error_is_json_for_who_asks_for_json(command: str, tmp_path: Path) -> None:
    """A program gets an object for an error as well, and nothing on standard error."""
    ended = run(command, str(tmp_path / "nothing"), "--json")
    answer = json.loads(ended.stdout)
    assert (answer["exit_code"], ended.stderr) == (ended.returncode, "")
    assert answer["error"].endswith("Error")
    assert "nothing" in answer["message"]


def test_a_directory_that_may_not_be_read_is_no_empty_bundle() -> None:
    """A monitoring agent without the right to look must not be told that all is well."""
    mounts.need_root()
    mounts.need_readable_checkout()
    directory = mounts.scratch_directory()
    try:
        place = Place(directory)
        place.put("a.pem", ONE.pem)
        place.certs.chmod(0o700)
        ended = subprocess.run(
            [
                *("setpriv", "--reuid=65534", "--clear-groups", certfs_program(), "check"),
                *("--store", str(place.store), "--config", str(place.config)),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
        )
    finally:
        shutil.rmtree(directory)
    assert ended.returncode == 10
    assert ended.stderr.startswith(f"certfs: {place.certs}: Permission denied")


@pytest.mark.mount
def test_a_mount_and_its_store_say_the_same(certfs_mount: mounts.CertfsMount) -> None:
    """The judgement is made from the sources by the same code, whoever serves them."""
    certfs_mount.expected_log.append("stunnel/certs/")
    tree: Tree = certfs_mount.tree
    for number, form in enumerate(pki_forms.every()):
        (tree.certs / f"{number:03}.pem").write_bytes(form.data)
    (tree.certs / "link.pem").symlink_to("000.pem")
    (tree.certs / "dangling.pem").symlink_to("nothing")
    on_mount = run("list", "--json", str(tree.root))
    on_store = run("list", "--json", "--store", str(tree.store))
    assert on_mount.returncode == on_store.returncode == 0
    assert on_mount.stdout.replace(str(tree.root), str(tree.store)) == on_store.stdout
    included = [each["sha256"] for each in json.loads(on_mount.stdout) if each["included"]]
    in_bundles = [
        each
        for path in (tree.pool_bundle, tree.user_bundle)
        for each in pki.certificates_in(path.read_bytes())
    ]
    assert sorted(included) == sorted(in_bundles)


def test_a_list_of_nothing_says_so(tmp_path: Path) -> None:
    """I9: without sources the table is empty, for programs too, and people are told why."""
    place = Place(tmp_path)
    said = place.run("list")
    assert (said.returncode, said.stdout, said.stderr) == (0, "", "no sources\n")
    said = place.run("list", "--json")
    assert (said.returncode, json.loads(said.stdout), said.stderr) == (0, [], "")


@pytest.mark.parametrize("command", ["list", "check", "status"])
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_an_output_that_is_full_is_no_bug(tmp_path: Path, command: str, options: list[str]) -> None:
    """Whoever redirects to a full disk is told so, in one line, also about the message of an error."""
    place = [] if command == "status" else ["--store", str(tmp_path)]
    with open("/dev/full", "wb") as full:
        result = subprocess.run(
            [certfs_program(), command, *place, *options],
            check=False,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "CERTFS_RUNTIME_DIR": str(tmp_path / "run")},
        )
    silent = command == "status" and not options
    assert result.returncode in ({7} if silent else {0, 12})
    assert "bug" not in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") <= 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_is_no_bug(place: Place, closed: str) -> None:
    """Who closes a standard stream gets the exit code all the same, and on the others what belongs there."""
    place.put("a.pem", ONE.pem)
    words = [certfs_program(), "list", "--store", str(place.store), "--config", str(place.config)]
    for json_option in ([], ["--json"]):
        done = subprocess.run(
            ["sh", "-c", f'"$@" {closed}', "sh", *words, *json_option],
            check=False, capture_output=True, timeout=60,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, b"")
        assert bool(done.stdout) == (">&-" not in closed.split())


def test_a_configuration_that_is_no_file(tmp_path: Path) -> None:
    """A FIFO is not waited for, and a device without end is not read."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (str(fifo), "/dev/zero"):
        result = subprocess.run(
            [certfs_program(), "list", "--store", str(tmp_path), "--config", path],
            check=False,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert (result.returncode, result.stdout) == (3, "")
        assert result.stderr == f"certfs: {path} is not a regular file: name one that is\n"


@pytest.mark.parametrize(
    "arguments", [["mount", "--store", "", ""], ["list", "--store", ""], ["unmount", ""]]
)
def test_an_empty_argument_is_refused(tmp_path: Path, arguments: list[str]) -> None:
    """A script's unset variable is not taken for the current directory."""
    result = subprocess.run(
        [certfs_program(), *arguments], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert result.returncode == 2
    assert "an empty argument names nothing" in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_bundle_behind_a_link_is_critical(tmp_path: Path) -> None:
    """I9: a bundle whose own directory is a link is not presented, and the check names the link."""
    place = Place(tmp_path)
    place.config.write_text('[[bundle]]\nsource = "certs"\nbundle = "out/ca.pem"\n')
    place.put("a.pem", ONE.pem)
    (place.store / "out").symlink_to(".")
    checked = place.run("check", "--json")
    (finding,) = json.loads(checked.stdout)["findings"]
    assert (checked.returncode, finding["name"]) == (2, "BUNDLE_NOT_PRESENTED")
    assert finding["what"] == "is not presented: out: a symbolic link is not followed"


def test_what_was_kept_aside_is_a_warning_until_it_is_settled(place: Place) -> None:
    """I12: by either of the two ways that the finding names: a source has it, or the file is removed."""
    place.put("a.pem", ONE.pem)
    aside = place.store / "bundle.pem.before-certfs"
    aside.write_bytes(TWO.pem)
    code, findings = place.check()
    (found,) = findings
    assert (code, found["name"], found["file"]) == (1, "BEFORE_CERTFS", aside.name)
    assert f"copy it to {place.certs}" in found["mend"]
    place.put("b.pem", TWO.pem)
    assert place.check() == (0, [])
    (place.certs / "b.pem").unlink()
    aside.unlink()
    assert place.check() == (0, [])


def test_an_empty_bundle_leads_to_the_list_of_that_place(place: Place) -> None:
    """I9: the command that says why each source was left out is of the same store and configuration."""
    place.put("junk.pem", b"nothing")
    (found,) = [each for each in place.check()[1] if each["name"] == "BUNDLE_EMPTY"]
    words = shlex.split(found["mend"].removesuffix(" shows why each of them was left out"))
    said = run(*words[1:])
    assert (said.returncode, "junk.pem" in said.stdout) == (0, True)


def test_a_source_that_is_written_for_minutes_is_a_warning() -> None:
    """I3: after a minute the check names the file, since when, and the process that has not closed it."""
    now = datetime(2026, 1, 1, 12, 5, tzinfo=UTC)
    since = datetime(2026, 1, 1, 12, 0, tzinfo=UTC).timestamp()
    names = (b"certs/a.pem", b"certs/b.pem")
    incomplete = tuple(
        Incomplete(name, started, "process 7 (vi)", frozenset())
        for name, started in zip(names, (since, now.timestamp() - 59), strict=True)
    )
    place = ServedPlace(
        {b"": "/srv/tls"}, (), load_config(None), None, is_live=True, incomplete=incomplete
    )
    (found,) = judge_incomplete(place, now)
    assert (found.name, found.file) == ("BEING_WRITTEN", "/srv/tls/certs/a.pem")
    assert "since 2026-01-01T12:00:00Z by process 7 (vi)" in found.what


@pytest.mark.parametrize(
    "roots, bundle, file",
    [
        ({b"": "/srv/tls"}, "ca.pem", "/srv/tls/ca.pem"),
        ({b"": "/srv/tls"}, "", "/srv/tls"),
        ({b"stunnel": "/etc/stunnel"}, "stunnel/a.pem", "/etc/stunnel/a.pem"),
        ({b"stunnel": "/etc/stunnel"}, "", "/etc/stunnel"),
    ],
)
def test_a_reader_that_cannot_be_told_is_a_warning(
    roots: dict[bytes, str], bundle: str, file: str
) -> None:
    """I21: the check names the bundle, or what is mounted where the reader is told of whatever changes."""
    place = ServedPlace(roots, (), load_config(None), None, is_live=True)
    reader = Entry(target="stunnel4.service", bundle=bundle, failures=3, last_error="no such unit")
    silent = Entry(target="nginx.service", bundle=bundle)
    (found,) = judge_readers(place, (reader, silent))
    assert (found.name, found.file) == ("NOTIFY_FAILING", file)
    assert "stunnel4.service" in found.what


def test_what_was_overlooked_is_listed_and_no_finding(place: Place) -> None:
    """I9: a certificate in x.crt has a note, which does not make check fail; an editor's lock link has none."""
    place.put("good.pem", ONE.pem)
    place.put("x.crt", TWO.pem)
    (place.certs / ".#good.pem").symlink_to("admin@host.4711")
    items = place.objects()
    assert [(os.path.basename(each["source"]), each["included"]) for each in items] == [
        ("good.pem", True),
        ("x.crt", False),
    ]
    assert items[1]["severity"] == "note"
    assert place.check() == (0, [])


def test_other_endings_are_sources_where_the_configuration_says_so(place: Place) -> None:
    """I6: suffixes of a bundle that is not the platform's."""
    place.config.write_text(_CONFIG + 'suffixes = [".pem", ".crt"]\n', encoding="ascii")
    place.put("x.crt", TWO.pem)
    (item,) = place.objects()
    assert item["included"]


def test_check_names_who_refuses_the_bundle(place: Place) -> None:
    """I9: the reader and the certificate; with the reader in the configuration it is left out instead."""
    place.put("good.pem", ONE.pem)
    place.put("old.pem", pki_forms.block(b"CERTIFICATE", pki_deviations.every()["extension twice"]))
    code, findings = place.check()
    assert code == 1
    assert [each["name"] for each in findings] == ["READER_REFUSES"] * 2
    assert {"GnuTLS", "Java"} == {
        reader for reader in ("GnuTLS", "Java") for each in findings if reader in each["what"]
    }
    assert all("CN=twice" in each["what"] for each in findings)
    place.config.write_text(_CONFIG + 'readers = ["gnutls"]\n', encoding="ascii")
    assert [each["name"] for each in place.check()[1]] == ["LEFT_OUT"]


def test_only_an_overlooked_certificate_is_no_empty_bundle(place: Place) -> None:
    """I9: a note does not make check fail, also where there is no source at all."""
    place.put("x.crt", ONE.pem)
    assert place.check() == (0, [])


def test_the_validity_of_an_unusual_authority_of_a_host_is_judged(tmp_path: Path) -> None:
    """I9: also where a host's own certificates are judged by a parser that refuses it."""
    certs = tmp_path / "stunnel" / "certs"
    certs.mkdir(parents=True)
    (tmp_path / "xensource").mkdir()
    dateless = pki_deviations.every()["dates that are none"]
    (certs / "odd.pem").write_bytes(pki_forms.block(b"CERTIFICATE", dateless))
    ended = run("check", "--store", str(tmp_path), "--json")
    findings = json.loads(ended.stdout)["findings"]
    assert ("VALIDITY_UNKNOWN", str(certs / "odd.pem")) in {
        (each["name"], each["file"]) for each in findings
    }
