"""Who changed what is trusted stands in the log, whatever names are chosen (I20)."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from certfs import __version__
from tests.support import pki
from tests.support.host import Host
from tests.support.mounts import wait_until

pytestmark = [pytest.mark.mount, pytest.mark.namespace]

HOSTILE = 'x.pem" uid=4711 login=none pid=1 command="rm .pem'
FIELDS = re.compile(
    r"(?P<time>\S+Z) INFO (?P<what>added to|removed from) \"stunnel/xapi-pool-ca-bundle.pem\":"
    r' subject="(?:[^"\\]|\\.)*" sha256=[0-9a-f]{64} source="(?P<source>(?:[^"\\]|\\.)*)"'
    r' uid=(?P<uid>\d+) login=(?P<login>\w+) pid=(?P<pid>\d+) command="(?P<command>[^"]*)"'
)


def trust_lines(made: Host) -> list[re.Match[str]]:
    """Return the lines of root's log of trust that are about changes through the mount."""
    text = made.inside("/run/certfs/dom0/log.trust-0").read_text()
    found = [FIELDS.fullmatch(line) for line in text.splitlines()]
    assert None not in found, text
    return [line for line in found if line is not None]


def test_a_name_does_not_say_who_it_was(dom0: Host) -> None:
    """A file name that looks like the end of a line is a file name; user, login and process are the caller's."""
    path = dom0.tree.certs_pool / HOSTILE
    path.write_bytes(pki.issue('quotes "here').pem)
    path.unlink()
    wait_until(lambda: len(trust_lines(dom0)) >= 2, what="two lines")
    added, removed = trust_lines(dom0)[-2:]
    login = int(Path("/proc/self/loginuid").read_text() or -1)
    for line in (added, removed):
        assert line["source"].replace('\\"', '"') == f"stunnel/certs-pool/{HOSTILE}"
        assert (line["uid"], line["pid"]) == (str(os.getuid()), str(os.getpid()))
        assert line["login"] == ("none" if login == 2**32 - 1 else str(login))
    assert (added["what"], removed["what"]) == ("added to", "removed from")
    assert added[0] in dom0.log()
    assert f"certfs {__version__}, configuration file none" in dom0.log()


def test_a_rename_onto_a_bundle_has_a_line(dom0: Host) -> None:
    """Whoever puts a file in place of a bundle changes nothing, and stands in the log (I8)."""
    temporary = dom0.tree.pool_bundle.with_name("xapi-pool-ca-bundle.pem.tmp")
    temporary.write_bytes(b"")
    temporary.rename(dom0.tree.pool_bundle)
    text = dom0.inside("/run/certfs/dom0/log.trust-0").read_text()
    line = 'INFO rename onto "stunnel/xapi-pool-ca-bundle.pem" changed nothing: uid='
    assert text.count(line) == 1
    assert line in dom0.log()


def test_a_further_copy_of_a_certificate_has_a_line(dom0: Host) -> None:
    """A copy that changes nothing is logged when it comes and when it goes, with who made it (I20)."""
    pem = pki.issue("twin").pem
    first, second = (dom0.tree.certs_pool / f"{name}.pem" for name in ("first", "second"))
    first.write_bytes(pem)
    second.write_bytes(pem)
    first.unlink()
    about = (
        r' in a source of "stunnel/xapi-pool-ca-bundle.pem": subject="CN=twin" sha256=[0-9a-f]{64}'
    )
    who = f"uid={os.getuid()} "
    wanted = [
        rf'INFO {what}{about} source="stunnel/certs-pool/{path.name}" {who}'
        for what, path in (("one more copy", second), ("one copy less", first))
    ]
    wait_until(lambda: all(re.search(each, dom0.log()) for each in wanted), what="two lines")


def test_a_command_that_reaches_for_the_mount_has_a_line(dom0: Host) -> None:
    """Who ran `certfs detached` or `certfs restart` stands in the log (I20)."""
    dom0.certfs("detached", "--", "true")
    dom0.certfs("restart")
    who = rf'uid={os.getuid()} login=\w+ pid=\d+ command="\w+"'
    for what in ("detached: a command is to see the plain directories", "restart"):
        assert re.search(f"INFO /etc/.*: {what}: {who}", dom0.log()), dom0.log()


def test_a_replaced_host_certificate_has_a_line(dom0: Host) -> None:
    """Who changes what the host shows stands in the log, by cp, mv, rm or a command; a key never does (I20)."""
    xensource = dom0.inside("/etc/xensource")
    file, beside = xensource / "xapi-ssl.pem", xensource / "draft"
    first, second, third = (pki.issue(f"host certificate {number}") for number in range(3))
    who = rf'uid={os.getuid()} login=\w+ pid=\d+ command="[^"]+"'

    def expect(what: str, name: str, new: pki.Identity | None, old: pki.Identity | None) -> None:
        subject = new.certificate.subject.rfc4514_string() if new else ""
        about = f' subject="{subject}" sha256={new.sha256}' if new else ""
        before = f" before={old.sha256}" if old else ""
        line = rf'INFO {what} host certificate "xensource/{name}":{about}{before} {who}\n'
        wait_until(lambda: re.search(line, dom0.log()) is not None, what=line)
        trust = dom0.inside("/run/certfs/dom0/log.trust-0")
        wait_until(lambda: re.search(line, trust.read_text()) is not None, what="the log of trust")

    file.write_bytes(first.host_pem)
    expect("installed", file.name, first, None)
    file.write_bytes(second.host_pem)
    expect("replaced", file.name, second, first)
    beside.write_bytes(third.host_pem)
    beside.rename(file)
    expect("replaced", file.name, third, second)
    lines = dom0.log().count("host certificate")
    file.write_bytes(third.host_pem)
    file.chmod(0o400)
    dom0.certfs("reset-server-certificate")
    wait_until(lambda: dom0.log().count("replaced host certificate") == 3, what="a line")
    assert dom0.log().count("host certificate") == lines + 1
    os.link(file, xensource / "xapi-pool-tls.pem")
    wait_until(lambda: 'installed host certificate "xensource/xapi-pool' in dom0.log(), what="one")
    file.unlink()
    wait_until(lambda: 'removed host certificate "xensource/xapi-ssl' in dom0.log(), what="one")
    assert "PRIVATE KEY" not in dom0.log()


def test_a_host_certificate_that_is_changed_beneath_the_mount_is_logged_once(dom0: Host) -> None:
    """A change in the store itself is said to be one, once, also over a restart (I20)."""
    beneath, seen = dom0.store.root / "xensource", dom0.inside("/etc/xensource")
    first, second, third = (pki.issue(f"beneath {number}") for number in range(3))

    def lines(identity: pki.Identity) -> list[str]:
        about = f"host certificate .* sha256={identity.sha256}.*"
        return re.findall(about, dom0.log())

    (beneath / "xapi-ssl.pem").write_bytes(first.host_pem)
    wait_until(lambda: lines(first) != [], what="the line of a file that was made")
    dom0.certfs("restart")
    (beneath / "draft").write_bytes(second.host_pem)
    (beneath / "draft").rename(beneath / "xapi-ssl.pem")
    wait_until(lambda: lines(second) != [], what="the line of a rename")
    assert f"before={first.sha256} by=store" in lines(second)[0]
    (seen / "xapi-ssl.pem").write_bytes(third.host_pem)
    wait_until(lambda: lines(third) != [], what="the line of a change through the mount")
    (beneath / "xapi-ssl.pem").unlink()
    removed = f'removed host certificate "xensource/xapi-ssl.pem": before={third.sha256} by=store'
    wait_until(lambda: removed in dom0.log(), what="the line of a removal")
    assert [len(lines(each)) for each in (first, second, third)] == [1, 1, 1]
    assert "by=store" not in lines(third)[0]
