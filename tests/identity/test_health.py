"""Tests of the health check and of repair: what the field has seen is found, named and mended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from certfs.identity import refresh
from certfs.identity.finding import Finding, Severity
from certfs.identity.health import judge
from certfs.identity.paths import HostPaths
from certfs.identity.repair import repair
from certfs.linux.processes import in_child
from tests.support.identity import UUID
from tests.support.mounts import need_root, scratch_directory
from tests.support.openssl import OpenSsl, Pair
from tests.support.peer import Peer, User
from tests.support.pki import certificates_in


def _findings(host: HostPaths) -> list[Finding]:
    """Give what is found but the bundle that follows no change here, where nothing is mounted."""
    return [finding for finding in judge(host) if finding.name != "BUNDLE_STALE"]


def _names(host: HostPaths) -> list[str]:
    return [finding.name for finding in _findings(host)]


def _only(host: HostPaths) -> Finding:
    (finding,) = _findings(host)
    return finding


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that is there be old enough to be a leftover."""
    monkeypatch.setattr("certfs.identity.leftovers._SETTLED_SECONDS", -1.0)


def test_healthy_host(host: HostPaths) -> None:
    """A host as the platform leaves it has no finding, and repair does nothing."""
    assert judge(host) == ()
    assert repair(host).mended == ()


@pytest.mark.parametrize("name", ["certs", "certs-pool"])
def test_missing_source_directory(host: HostPaths, name: str) -> None:
    """A source directory that an upgrade lost is found, and repair makes it anew with its content."""
    shutil.rmtree(host.stunnel / name)
    assert _names(host)[0] == "SOURCE_DIRECTORY_MISSING"
    assert repair(host).left == ()
    assert (host.stunnel / name).stat().st_mode & 0o777 == 0o700
    assert judge(host) == ()


def test_missing_server_key(host: HostPaths, openssl: OpenSsl) -> None:
    """A missing server key is found, and repair makes one as the platform does at boot."""
    (host.xensource / "xapi-ssl.pem").unlink()
    assert _names(host) == ["SERVER_KEY_MISSING"]
    repair(host)
    assert openssl.is_pair(host.xensource / "xapi-ssl.pem")
    assert judge(host) == ()


def test_missing_pool_key_of_a_host_alone(host: HostPaths, openssl: OpenSsl) -> None:
    """A pool key that an upgrade lost is made anew, with its certificate, where no other host is concerned."""
    (host.xensource / "xapi-pool-tls.pem").unlink()
    (host.root or Path()).joinpath(".certfs").mkdir()
    (host.root or Path()).joinpath(".certfs/host-uuid").write_text(UUID)
    assert _names(host) == ["POOL_KEY_MISSING"]
    repair(host)
    assert judge(host) == ()
    pool = host.xensource / "xapi-pool-tls.pem"
    assert openssl.fingerprint(pool) == openssl.fingerprint(host.certs_pool / f"{UUID}.pem")


def test_missing_pool_key_in_a_pool_is_left_to_the_admin(host: HostPaths, server: Pair) -> None:
    """Where other hosts would have to be told, repair makes no pool key and says what to do."""
    shutil.copy(server.certificate, host.certs_pool / "other.pem")
    (host.xensource / "xapi-pool-tls.pem").unlink()
    (left,) = repair(host).left
    assert left.name == "POOL_KEY_MISSING"
    assert "certfs mount --store" in left.mend  # what first tells the UUID of this host
    (host.root or Path()).joinpath(".certfs").mkdir()
    (host.root or Path()).joinpath(".certfs/host-uuid").write_text(UUID)
    (left,) = repair(host).left
    assert "gencert" in left.mend


@pytest.mark.parametrize("copy", ["xapi-pool-tls.new", "xapi-pool-tls.bak"])
def test_pool_key_lost_between_two_renames_comes_back(
    host: HostPaths, server: Pair, copy: str
) -> None:
    """A trusted pool key that the platform's refresh left under another name is put back, also in a pool."""
    shutil.copy(server.certificate, host.certs_pool / "other.pem")
    (host.xensource / "xapi-pool-tls.pem").rename(host.xensource / copy)
    (host.root or Path()).joinpath(".certfs").mkdir()
    (host.root or Path()).joinpath(".certfs/host-uuid").write_text(UUID)
    assert _names(host) == ["POOL_KEY_MISSING"]
    repair(host)
    assert judge(host) == ()


@pytest.mark.parametrize("name", ["xapi-ssl.pem", "xapi-pool-tls.pem"])
def test_key_of_another_certificate(
    host: HostPaths, openssl: OpenSsl, server: Pair, name: str
) -> None:
    """A key that does not match its certificate is found; which of them is wrong is the admin's to say."""
    path = host.xensource / name
    path.unlink()
    path.write_bytes(openssl.key("other").read_bytes() + server.certificate.read_bytes())
    path.chmod(0o400)
    finding = _only(host)
    assert finding.name in {"SERVER_KEY_MISMATCH", "POOL_KEY_MISMATCH"}
    assert (finding.severity, finding.file, finding.remedy) == (Severity.CRITICAL, path, None)


@pytest.mark.parametrize("content", [b"", b"no PEM", b"-----BEGIN CERTIFICATE-----\nMI\n"])
def test_broken_key_file(host: HostPaths, content: bytes) -> None:
    """A key file that stunnel cannot start with is found and named."""
    path = host.xensource / "xapi-ssl.pem"
    path.chmod(0o600)
    path.write_bytes(content)
    assert _only(host).name == "SERVER_KEY_FILE_BROKEN"


def test_empty_pool_certificate_of_another_host(host: HostPaths) -> None:
    """An empty certificate of another host is found; only that host can give it."""
    (host.certs_pool / "other.pem").touch()
    finding = _only(host)
    assert (finding.name, finding.remedy) == ("POOL_CERTIFICATE_EMPTY", None)


def test_empty_pool_certificate_of_this_host(host: HostPaths) -> None:
    """This host's own empty certificate is found, and repair writes it from the key's file."""
    (host.certs_pool / f"{UUID}.pem").write_bytes(b"")
    assert _only(host).name == "POOL_CERTIFICATE_EMPTY"
    repair(host)
    assert judge(host) == ()


def test_own_certificate_missing_from_the_pools(host: HostPaths, openssl: OpenSsl) -> None:
    """A host whose certificate is not in certs-pool is found, and repair publishes it."""
    (host.certs_pool / f"{UUID}.pem").unlink()
    assert _only(host).name == "POOL_CERTIFICATE_MISSING"
    repair(host)
    published = openssl.fingerprint(host.certs_pool / f"{UUID}.pem")
    assert published == openssl.fingerprint(host.xensource / "xapi-pool-tls.pem")


def test_own_certificate_is_another(host: HostPaths, server: Pair) -> None:
    """A certificate in certs-pool that is not the one of the pool key is found and replaced."""
    shutil.copy(server.certificate, host.certs_pool / f"{UUID}.pem")
    assert _only(host).name == "POOL_CERTIFICATE_DIFFERS"
    repair(host)
    assert judge(host) == ()


def test_unfinished_refresh(host: HostPaths) -> None:
    """A refresh whose old certificate is still trusted is found, with the command that finishes it."""
    refresh.begin(host, host_uuid=UUID)
    finding = _only(host)
    assert (finding.name, finding.severity) == ("REFRESH_UNFINISHED", Severity.WARNING)
    assert "--finish" in finding.mend


def test_interrupted_refresh(host: HostPaths) -> None:
    """A refresh that died before the switch is found, with the command that takes it up."""
    refresh.begin(host, host_uuid=UUID)
    pool = host.xensource / "xapi-pool-tls.pem"
    pool.rename(host.xensource / "xapi-pool-tls.new")
    (host.xensource / "xapi-pool-tls.bak").rename(pool)
    assert _only(host).name == "REFRESH_INTERRUPTED"


def test_stale_new_certificate(host: HostPaths, server: Pair) -> None:
    """A second certificate of this host that no key belongs to is found and left to the admin."""
    shutil.copy(server.certificate, host.certs_pool / f"{UUID}.new.pem")
    finding = _only(host)
    assert (finding.name, finding.remedy) == ("STALE_NEW_CERTIFICATE", None)


def test_unfinished_refresh_of_another_host(host: HostPaths, server: Pair) -> None:
    """A second certificate of another host is found, and what to run there is said."""
    shutil.copy(server.certificate, host.certs_pool / "other.new.pem")
    assert _only(host).name == "OTHER_HOST_REFRESH_UNFINISHED"


@pytest.mark.parametrize("mode", [0o404, 0o444, 0o640, 0o644, 0o660, 0o666])
@pytest.mark.parametrize("name", ["xapi-ssl.pem", "xapi-pool-tls.pem"])
def test_key_that_others_can_read(host: HostPaths, name: str, mode: int) -> None:
    """A private key that others can get at is found and closed; a group that may read it is fine."""
    path = host.xensource / name
    path.chmod(mode)
    findings = judge(host)
    assert [one.name for one in findings] == ([] if mode == 0o640 else ["PRIVATE_KEY_EXPOSED"])
    repair(host)
    assert path.stat().st_mode & 0o777 == mode & 0o740


def test_old_pool_key_that_others_can_read(host: HostPaths) -> None:
    """The backup of a pool key is a private key, too."""
    backup = host.xensource / "xapi-pool-tls.bak"
    shutil.copy(host.xensource / "xapi-pool-tls.pem", backup)
    backup.chmod(0o644)
    assert _only(host).file == backup


@pytest.mark.usefixtures("settled")
def test_backup_directory_that_holds_nothing_else(host: HostPaths) -> None:
    """A leftover D.bk of which everything is in D, also in Merge's nested form, is found and removed."""
    shutil.copytree(host.certs_pool, host.stunnel / "certs-pool.bk/certs-pool")
    assert _only(host).name == "LEFTOVER_BACKUP_DIRECTORY"
    repair(host)
    assert not (host.stunnel / "certs-pool.bk").exists()


def _sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 1 << 40)


def _nested(path: Path) -> None:
    path.mkdir()
    (path / "x.pem").touch()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("make", [_sparse, os.mkfifo, _nested])
def test_backup_directory_with_what_nobody_reads(
    host: HostPaths, make: Callable[[Path], None]
) -> None:
    """I6, I18: what is no small file is not compared but left to the admin, however alike both directories are."""
    (host.stunnel / "certs-pool.bk").mkdir()
    for directory in ("certs-pool", "certs-pool.bk"):
        make(host.stunnel / directory / "x")

    def mend() -> None:
        assert [one.name for one in repair(host).left] == ["LEFTOVER_BACKUP_DIRECTORY"]

    assert in_child(mend, 20) is None
    assert (host.stunnel / "certs-pool.bk/x").exists()


@pytest.mark.usefixtures("settled")
def test_backup_directory_with_other_certificates(host: HostPaths, server: Pair) -> None:
    """A leftover D.bk with certificates that D has not is left to the admin: it is a matter of trust."""
    (host.stunnel / "certs-pool.bk").mkdir()
    shutil.copy(server.certificate, host.stunnel / "certs-pool.bk/other.pem")
    (left,) = repair(host).left
    assert (left.name, left.remedy) == ("LEFTOVER_BACKUP_DIRECTORY", None)
    assert (host.stunnel / "certs-pool.bk/other.pem").exists()


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("name", ["certs", "certs-pool", "crls"])
def test_backup_directory_alone_comes_back(host: HostPaths, name: str) -> None:
    """Where only D.bk is left of a replacement, it becomes D again."""
    directory = host.stunnel / name
    directory.mkdir(exist_ok=True)
    directory.rename(host.stunnel / f"{name}.bk")
    assert "LEFTOVER_BACKUP_DIRECTORY" in _names(host)
    repair(host)
    assert judge(host) == ()
    assert directory.is_dir()


def test_replacement_that_is_going_on_is_no_finding(host: HostPaths) -> None:
    """In the middle of the platform's replacement of a directory nothing is found."""
    host.certs.rename(host.stunnel / "certs.bk")
    assert judge(host) == ()


@pytest.mark.usefixtures("settled")
def test_unfinished_temporary_file(host: HostPaths) -> None:
    """What a killed command left is found and removed."""
    leftover = host.xensource / ".certfs-0123456789abcdef.tmp"
    leftover.touch(0o400)
    assert _only(host).name == "LEFTOVER_TEMPORARY_FILE"
    repair(host)
    assert not leftover.exists()


@pytest.mark.parametrize(
    "remaining,name,severity",
    [
        (timedelta(days=30), None, None),
        (timedelta(days=30, seconds=-1), "EXPIRING_30", Severity.WARNING),
        (timedelta(days=14), "EXPIRING_30", Severity.WARNING),
        (timedelta(days=14, seconds=-1), "EXPIRING_14", Severity.WARNING),
        (timedelta(days=7), "EXPIRING_14", Severity.WARNING),
        (timedelta(days=7, seconds=-1), "EXPIRING_07", Severity.CRITICAL),
        (timedelta(0), "EXPIRING_07", Severity.CRITICAL),
        (timedelta(seconds=-1), "EXPIRED", Severity.CRITICAL),
    ],
)
@pytest.mark.parametrize(
    "place,subject",
    [
        ("xensource/xapi-ssl.pem", "HOST_SERVER_CERTIFICATE"),
        ("stunnel/certs/root.pem", "POOL_CA_CERTIFICATE"),
        ("stunnel/certs-pool/other.pem", "HOST_INTERNAL_CERTIFICATE"),
    ],
)
def test_expiry_is_alerted_as_the_platform_does(  # noqa: PLR0913 - the table's columns
    host: HostPaths,
    server: Pair,
    *,
    place: str,
    subject: str,
    remaining: timedelta,
    name: str | None,
    severity: Severity | None,
) -> None:
    """Certificates of host, pool and CAs are alerted at 30, 14 and 7 days and when expired (2099-01-01)."""
    path = (host.root or Path()) / place
    path.unlink(missing_ok=True)
    path.write_bytes(server.key.read_bytes() if "ssl" in place else b"")
    path.chmod(0o600)
    path.write_bytes(path.read_bytes() + server.certificate.read_bytes())
    now = datetime(2099, 1, 1, tzinfo=UTC) - remaining
    found = [(one.name, one.severity) for one in judge(host, now=now) if one.file == path]
    assert found == ([(f"{subject}_{name}", severity)] if name else [])


def test_pool_certificate_is_alerted_once(host: HostPaths) -> None:
    """This host's own pool certificate is alerted for its key's file, not twice."""
    now = datetime.now(UTC) + timedelta(days=3649)
    files = [one.file.name for one in judge(host, now=now)]
    assert sorted(files) == ["xapi-pool-tls.pem", "xapi-ssl.pem"]


def test_validity_that_starts_in_the_future(host: HostPaths) -> None:
    """A certificate made by a clock that was ahead is found, and the clock is named first."""
    findings = judge(host, now=datetime.now(UTC) - timedelta(days=365))
    assert {one.name for one in findings} == {
        "HOST_SERVER_CERTIFICATE_NOT_VALID_YET",
        "HOST_INTERNAL_CERTIFICATE_NOT_VALID_YET",
    }
    assert all("timedatectl" in one.mend for one in findings)


def test_worst_comes_first(host: HostPaths, server: Pair) -> None:
    """Findings are sorted by how bad they are."""
    shutil.copy(server.certificate, host.certs_pool / "other.new.pem")
    (host.xensource / "xapi-ssl.pem").unlink()
    assert [one.severity for one in _findings(host)] == [Severity.CRITICAL, Severity.WARNING]


def test_bundle_that_does_not_follow_its_sources(host: HostPaths, server: Pair) -> None:
    """Where no certfs is mounted a bundle of yesterday's certificates is found and written anew."""
    shutil.copy(server.certificate, host.certs / "root.pem")
    (host.certs_pool / f"{UUID}.pem").rename(host.certs_pool / f"{UUID}.bak")
    assert [one.name for one in judge(host)].count("BUNDLE_STALE") == 2
    repair(host)
    assert judge(host) == ()
    assert len(certificates_in((host.stunnel / "xapi-stunnel-ca-bundle.pem").read_bytes())) == 1


def test_bundle_as_the_platforms_script_writes_it_is_not_stale(host: HostPaths) -> None:
    """How a bundle is written does not matter, only which certificates are in it."""
    bundle = host.stunnel / "xapi-pool-ca-bundle.pem"
    bundle.write_bytes(b"# by the script\n" + bundle.read_bytes().replace(b"\n", b"\r\n"))
    assert judge(host) == ()


def _lose(*names: str) -> Callable[[HostPaths], None]:
    """Give a function that removes files and directories of a host."""

    def lose(host: HostPaths) -> None:
        for name in names:
            path = host.xensource.parent / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return lose


def _other_key(host: HostPaths) -> None:
    refresh.begin(host, host_uuid=UUID)
    (host.certs_pool / f"{UUID}.new.pem").unlink()


def _only_the_backup(host: HostPaths) -> None:
    host.certs_pool.rename(host.stunnel / "certs-pool.bk")


def _only_an_empty_backup(host: HostPaths) -> None:
    _lose("stunnel/certs-pool")(host)
    (host.stunnel / "certs-pool.bk").mkdir()


def _pool_key_is_only_the_new_one(host: HostPaths) -> None:
    refresh.begin(host, host_uuid=UUID)
    host.pool_pem.rename(host.xensource / "xapi-pool-tls.new")


_POOL_PEM = "xensource/xapi-pool-tls.pem"
_BUNDLE = "stunnel/xapi-pool-ca-bundle.pem"


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize(
    "harm",
    [
        _lose("stunnel/certs-pool"),
        _lose("stunnel/certs-pool", _BUNDLE),
        _lose("stunnel/certs-pool", "stunnel/certs", _POOL_PEM, "xensource/xapi-ssl.pem", _BUNDLE),
        _lose(_POOL_PEM),
        _lose(_POOL_PEM, f"stunnel/certs-pool/{UUID}.pem"),
        _lose(f"stunnel/certs-pool/{UUID}.pem", _BUNDLE),
        _lose(_BUNDLE),
        _other_key,
        _only_the_backup,
        _only_an_empty_backup,
        _pool_key_is_only_the_new_one,
    ],
)
def test_dry_run_names_what_a_repair_does(
    host: HostPaths, harm: Callable[[HostPaths], None]
) -> None:
    """A dry run lists each deed of the repair that follows it, in the same order, what follows from others included."""
    assert host.root is not None
    (host.root / ".certfs").mkdir(exist_ok=True)
    (host.root / ".certfs/host-uuid").write_text(UUID)
    harm(host)
    announced = [(f.name, str(f.remedy)) for f in repair(host, dry_run=True).mended]
    assert announced
    assert [(f.name, str(f.remedy)) for f in repair(host).mended] == announced
    assert all(finding.remedy is None for finding in judge(host))


def test_dry_run_changes_nothing(host: HostPaths) -> None:
    """A dry run names what it would mend and leaves everything as it is."""
    (host.xensource / "xapi-ssl.pem").unlink()
    assert [one.name for one in repair(host, dry_run=True).mended] == ["SERVER_KEY_MISSING"]
    assert _names(host) == ["SERVER_KEY_MISSING"]


def test_every_finding_says_what_mends_it(host: HostPaths, server: Pair) -> None:
    """Every finding of a thoroughly broken host names its file and what mends it."""
    shutil.rmtree(host.certs)
    (host.xensource / "xapi-ssl.pem").unlink()
    (host.xensource / "xapi-pool-tls.pem").chmod(0o666)
    (host.certs_pool / "other.pem").touch()
    shutil.copy(server.certificate, host.certs_pool / f"{UUID}.pem")
    findings = judge(host)
    assert len(findings) == 6
    assert all(one.mend and one.what and one.file.is_absolute() for one in findings)


def judge_names(root: str) -> list[tuple[str, int]]:
    """Give the names and severities of the findings on a store; run in another process."""
    return [(one.name, int(one.severity)) for one in judge(HostPaths.of_store(Path(root)))]


def test_user_who_may_not_read_the_keys_raises_no_alarm(host: HostPaths) -> None:
    """To a monitoring agent without rights what it cannot read is not broken but not checked."""
    need_root()
    host.certs_pool.chmod(0o700)
    # Not in pytest's own directory: every run of pytest that begins closes that to other users.
    place = scratch_directory()
    try:
        shutil.copytree(host.root or Path(), place, dirs_exist_ok=True)
        place.chmod(0o755)
        with Peer(user=User(uid=65534, gid=65534)) as agent:
            found = agent.call(judge_names, str(place))
    finally:
        shutil.rmtree(place)
    assert found == [("NOT_CHECKED", 0)] * 3
