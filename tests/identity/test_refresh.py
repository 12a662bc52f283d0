"""Tests of the refresh of a pool certificate: at every step the served certificate is trusted."""

from __future__ import annotations

import stat

import pytest

from certfs.identity import refresh
from certfs.identity.errors import NotDistributedError, NotInUseError
from certfs.identity.paths import HostPaths
from certfs.identity.refresh import Stage
from tests.support.identity import UUID
from tests.support.openssl import OpenSsl
from tests.support.pki import certificates_in


def _trusted(host: HostPaths, openssl: OpenSsl) -> list[str]:
    names = sorted(path for path in host.certs_pool.iterdir() if path.name.endswith(".pem"))
    return [openssl.fingerprint(path) for path in names]


def test_begin_trusts_both_and_uses_the_new(host: HostPaths, openssl: OpenSsl) -> None:
    """After the first part the new key is in use and both certificates are trusted, the new one first."""
    pool = host.xensource / "xapi-pool-tls.pem"
    old = openssl.fingerprint(pool)
    report = refresh.begin(host, host_uuid=UUID)
    new = openssl.fingerprint(pool)
    assert new != old
    assert openssl.is_pair(pool)
    assert report.stage is Stage.SWITCHED
    assert openssl.fingerprint(host.certs_pool / f"{UUID}.new.pem") == new
    assert openssl.fingerprint(host.certs_pool / f"{UUID}.pem") == old
    assert openssl.fingerprint(host.xensource / "xapi-pool-tls.bak") == old
    bundle = certificates_in((host.stunnel / "xapi-pool-ca-bundle.pem").read_bytes())
    assert [one.upper() for one in bundle] == [new.replace(":", ""), old.replace(":", "")]


def test_finish_trusts_only_the_new(host: HostPaths, openssl: OpenSsl) -> None:
    """After the second part only the new certificate is trusted, under the host's name."""
    refresh.begin(host, host_uuid=UUID)
    report = refresh.finish(host, host_uuid=UUID)
    new = openssl.fingerprint(host.xensource / "xapi-pool-tls.pem")
    assert (report.stage, report.changed) == (Stage.IDLE, True)
    assert _trusted(host, openssl) == [new]
    assert len(certificates_in((host.stunnel / "xapi-pool-ca-bundle.pem").read_bytes())) == 1
    assert (host.certs_pool / f"{UUID}.bak").exists()


def test_owner_and_mode_of_the_key_stay(host: HostPaths) -> None:
    """The new key has the mode of the old one, less what others could do with it."""
    pool = host.xensource / "xapi-pool-tls.pem"
    pool.chmod(0o446)
    refresh.begin(host, host_uuid=UUID)
    for path in (pool, host.xensource / "xapi-pool-tls.bak"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o440


def test_begin_again_changes_nothing(host: HostPaths, openssl: OpenSsl) -> None:
    """Before the old certificate is gone, beginning again does nothing: it may still be served."""
    refresh.begin(host, host_uuid=UUID)
    before = _trusted(host, openssl)
    assert refresh.begin(host, host_uuid=UUID).changed is False
    assert _trusted(host, openssl) == before


def test_finish_without_a_refresh_changes_nothing(host: HostPaths, openssl: OpenSsl) -> None:
    """Finishing when nothing is under way does nothing."""
    before = _trusted(host, openssl)
    assert refresh.finish(host, host_uuid=UUID).changed is False
    assert _trusted(host, openssl) == before


def test_finish_before_the_switch_is_refused(host: HostPaths) -> None:
    """The old certificate is not taken out of trust while its key is in use."""
    _as_if_interrupted_before_the_switch(host)
    with pytest.raises(NotInUseError, match="still the old certificate"):
        refresh.finish(host, host_uuid=UUID)
    (host.certs_pool / "other.pem").write_bytes((host.certs_pool / f"{UUID}.pem").read_bytes())
    with pytest.raises(NotDistributedError, match="--distributed"):
        refresh.finish(host, host_uuid=UUID)


def test_interrupted_refresh_is_taken_up(host: HostPaths, openssl: OpenSsl) -> None:
    """A refresh whose certificate is trusted already goes on with that key."""
    expected = _as_if_interrupted_before_the_switch(host, openssl)
    refresh.begin(host, host_uuid=UUID)
    assert openssl.fingerprint(host.xensource / "xapi-pool-tls.pem") == expected
    assert not (host.xensource / "xapi-pool-tls.new").exists()


def test_platforms_gap_between_two_renames_is_closed(host: HostPaths, openssl: OpenSsl) -> None:
    """A platform's refresh that died without a pool key in place is completed."""
    expected = _as_if_interrupted_before_the_switch(host, openssl)
    (host.xensource / "xapi-pool-tls.pem").rename(host.xensource / "xapi-pool-tls.bak")
    refresh.begin(host, host_uuid=UUID)
    assert openssl.fingerprint(host.xensource / "xapi-pool-tls.pem") == expected


def test_key_that_nobody_was_told_of_is_made_anew(host: HostPaths, openssl: OpenSsl) -> None:
    """A .new from a refresh that came to nothing is not put in use, however old it is."""
    stale = _as_if_interrupted_before_the_switch(host, openssl)
    (host.certs_pool / f"{UUID}.new.pem").unlink()
    refresh.begin(host, host_uuid=UUID)
    assert openssl.fingerprint(host.xensource / "xapi-pool-tls.pem") != stale


def test_new_key_that_does_not_load_is_made_anew(host: HostPaths, openssl: OpenSsl) -> None:
    """A .new that stunnel could not start with is not put in use."""
    _as_if_interrupted_before_the_switch(host)
    new = host.xensource / "xapi-pool-tls.new"
    new.chmod(0o600)
    new.write_bytes(new.read_bytes()[:1000])
    refresh.begin(host, host_uuid=UUID)
    assert openssl.is_pair(host.xensource / "xapi-pool-tls.pem")


@pytest.fixture
def pool(host: HostPaths) -> HostPaths:
    """Give a host whose pool has two others, one of them in a refresh of its own."""
    (host.certs_pool / "other.pem").write_bytes(b"")
    (host.certs_pool / "third.new.pem").write_bytes(b"")
    return host


@pytest.mark.parametrize("distributed", [False, True])
def test_begin_in_a_pool_stops_before_the_switch(
    pool: HostPaths, openssl: OpenSsl, *, distributed: bool
) -> None:
    """With other hosts the new certificate is trusted here and not used, whatever they are said to have."""
    before = openssl.fingerprint(pool.xensource / "xapi-pool-tls.pem")
    with pytest.raises(NotDistributedError, match="2 other hosts in certs-pool") as raised:
        refresh.begin(pool, host_uuid=UUID, distributed=distributed)
    assert str(pool.certs_pool / f"{UUID}.new.pem") in raised.value.message
    assert refresh.read_stage(pool, host_uuid=UUID) is Stage.PREPARED
    assert openssl.fingerprint(pool.xensource / "xapi-pool-tls.pem") == before
    bundle = certificates_in((pool.stunnel / "xapi-pool-ca-bundle.pem").read_bytes())
    assert len(bundle) == 2


def test_begin_again_without_a_word_stays_where_it_is(pool: HostPaths) -> None:
    """As long as nobody says that the others have it, the same new certificate waits."""
    for _ in range(2):
        with pytest.raises(NotDistributedError):
            refresh.begin(pool, host_uuid=UUID)
        waiting = (pool.certs_pool / f"{UUID}.new.pem").read_bytes()
    assert (pool.certs_pool / f"{UUID}.new.pem").read_bytes() == waiting


def test_begin_goes_on_when_the_others_have_it(pool: HostPaths, openssl: OpenSsl) -> None:
    """Told that the other hosts have the waiting certificate, a refresh puts its key in use."""
    with pytest.raises(NotDistributedError):
        refresh.begin(pool, host_uuid=UUID)
    expected = openssl.fingerprint(pool.certs_pool / f"{UUID}.new.pem")
    report = refresh.begin(pool, host_uuid=UUID, distributed=True)
    assert (report.stage, report.others) == (Stage.SWITCHED, ("other", "third"))
    assert openssl.fingerprint(pool.xensource / "xapi-pool-tls.pem") == expected


def test_host_without_a_pool_key_gets_one(host: HostPaths, openssl: OpenSsl) -> None:
    """A refresh also serves a host whose pool key and certificate are lost."""
    (host.xensource / "xapi-pool-tls.pem").unlink()
    (host.certs_pool / f"{UUID}.pem").unlink()
    refresh.begin(host, host_uuid=UUID)
    refresh.finish(host, host_uuid=UUID)
    assert _trusted(host, openssl) == [openssl.fingerprint(host.xensource / "xapi-pool-tls.pem")]


def _as_if_interrupted_before_the_switch(host: HostPaths, openssl: OpenSsl | None = None) -> str:
    """Undo the switch of a refresh; give the new certificate's fingerprint."""
    refresh.begin(host, host_uuid=UUID)
    pool = host.xensource / "xapi-pool-tls.pem"
    pool.rename(host.xensource / "xapi-pool-tls.new")
    (host.xensource / "xapi-pool-tls.bak").rename(pool)
    return openssl.fingerprint(host.xensource / "xapi-pool-tls.new") if openssl else ""
