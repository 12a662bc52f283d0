"""I4, I6, I9: no content of a source file does harm beyond that file, and each has a reason."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

import pytest

from tests.support import listing, mounts, peer, pki, pki_forms, stunnel
from tests.support.mounts import CertfsMount
from tests.support.peer import Peer
from tests.support.pki_forms import Form
from tests.support.stunnel import Verdict
from tests.support.tree import Tree

pytestmark = pytest.mark.mount

FORMS = pki_forms.every()


@pytest.fixture(scope="module")
def hostile_mount() -> Iterator[CertfsMount]:
    """Mount once; bad input is what these tests are about, so warnings are expected."""
    with mounts.mounted() as mount:
        mount.expected_log.append("stunnel/certs/")
        yield mount


@pytest.fixture
def tree(hostile_mount: CertfsMount) -> Iterator[Tree]:
    """Give the tree with one good certificate in `certs`, and nothing else."""
    tree = hostile_mount.tree
    (tree.certs / "m-good.pem").write_bytes(good().pem)
    yield tree
    for name in os.listdir(tree.certs):
        (tree.certs / name).unlink()


def good() -> pki.Identity:
    """Give the certificate that must stay, whatever is beside it."""
    return _GOOD


_GOOD = pki.authority("the good one", key=pki.ec_key(200))


def _bundle(tree: Tree, process: Peer) -> list[str]:
    return pki.certificates_in(process.call(peer.read_or_none, str(tree.user_bundle)) or b"")


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_gives_its_certificates_and_takes_nothing_else_with_it(
    tree: Tree, other_process: Peer, form: Form
) -> None:
    """I4: with this file beside a good one, the bundle is the good one and the file's own."""
    (tree.certs / "x.pem").write_bytes(form.data)
    expected = [good().sha256, *(one.sha256 for one in form.included)]
    assert _bundle(tree, other_process) == expected


@pytest.mark.slow
def test_every_form_at_once_is_listed_with_its_reason(
    tree: Tree, other_process: Peer, hostile_mount: CertfsMount
) -> None:
    """I9: with all forms in one directory the list has every certificate and every defect."""
    names = {f"{number:03}.pem": form for number, form in enumerate(FORMS)}
    for name, form in names.items():
        (tree.certs / name).write_bytes(form.data)
    expected = {good().sha256} | {one.sha256 for form in FORMS for one in form.included}
    assert set(_bundle(tree, other_process)) == expected
    rows = [row for row in listing.rows_of(tree) if row.bundle.endswith("stunnel-ca-bundle.pem")]
    assert {row.sha256 for row in rows if row.included} == expected
    left_out = {os.path.basename(row.source) for row in rows if not row.included and row.reason}
    silent = [
        form.name
        for name, form in names.items()
        if (form.defect or form.secrets) and name not in left_out
    ]
    assert silent == []
    assert listing.check(tree)[0] == 1
    del hostile_mount


@pytest.mark.slow
def test_no_private_key_is_ever_repeated(hostile_mount: CertfsMount, tree: Tree) -> None:
    """I4: not one line of a key is in the bundle, the log, the list, the check or the status."""
    with_keys = pki_forms.with_keys()
    for number, form in enumerate(with_keys):
        (tree.certs / f"{number:03}.pem").write_bytes(form.data)
    status = (tree.root / ".certfs" / "status.json").read_bytes()
    copy = tree.store / "stunnel" / tree.user_bundle.name
    mounts.wait_until(
        lambda: copy.exists() and copy.read_bytes() == tree.user_bundle.read_bytes(),
        what="the plain copy, which is written a moment later",
    )
    said = b"\n".join(
        [
            tree.user_bundle.read_bytes(),
            copy.read_bytes(),
            hostile_mount.read_log().encode(),
            listing.text_of(tree).encode(),
            repr(listing.rows_of(tree)).encode(),
            repr(listing.check(tree)).encode(),
            status,
        ]
    )
    secrets = {line for form in with_keys for line in form.secrets}
    assert len(secrets) > 20
    assert [line for line in secrets if line in said] == []
    rows = listing.rows_of(tree)
    warned = {os.path.basename(row.source) for row in rows if row.reason and "KEY" in row.reason}
    plain_keys = {
        f"{number:03}.pem" for number, form in enumerate(with_keys) if "alone" in form.name
    }
    assert plain_keys <= warned


@pytest.mark.parametrize("form", pki_forms.layouts(), ids=lambda form: form.name)
@pytest.mark.slow
def test_what_is_accepted_goes_through_every_reader(tree: Tree, form: Form) -> None:
    """I4: OpenSSL and GnuTLS read from the bundle exactly what was accepted."""
    mounts.need_program("certtool")
    (tree.certs / "x.pem").write_bytes(form.data)
    expected = [good().sha256, *(one.sha256 for one in form.included)]
    assert pki.certificates_openssl_reads(str(tree.user_bundle)) == expected
    assert pki.certificates_gnutls_reads(str(tree.user_bundle)) == expected


@pytest.fixture(scope="module")
def good_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stunnel.Server]:
    """Run a host that shows the good certificate."""
    mounts.need_program("stunnel")
    directory = tmp_path_factory.mktemp("server")
    host = directory / "good.pem"
    host.write_bytes(good().host_pem)
    host.chmod(0o400)
    with stunnel.server(api=host, pool=host, directory=directory) as server:
        yield server


@pytest.mark.stunnel
@pytest.mark.slow
def test_stunnel_trusts_the_good_one_beside_every_form(
    tree: Tree, good_server: stunnel.Server
) -> None:
    """I4: whatever is in the directory, first or last, a real stunnel accepts the good peer."""
    refused = []
    for number, form in enumerate(FORMS):
        source = tree.certs / ("z.pem" if number % 2 else "a.pem")
        source.write_bytes(form.data)
        outcome = stunnel.connect_pool(good_server.port, tree.user_bundle)
        if outcome.verdict != Verdict.ACCEPTED:
            refused.append(f"{form.name} as {source.name}: {outcome.reason}")
        source.unlink()
    assert refused == []


@pytest.mark.stunnel
def test_stunnel_trusts_the_good_one_beside_all_forms_and_strange_files(
    tree: Tree, good_server: stunnel.Server
) -> None:
    """I4, I6: FIFO, directory, dangling link, loop and every form together do no harm."""
    for number, form in enumerate(FORMS):
        (tree.certs / f"{number:03}.pem").write_bytes(form.data)
    os.mkfifo(tree.certs / "a-fifo.pem")
    (tree.certs / "a-directory.pem").mkdir()
    (tree.certs / "a-dangling.pem").symlink_to("nowhere")
    (tree.certs / "a-loop.pem").symlink_to("a-loop.pem")
    expired = pki.issue("expired", not_before=pki.NOW - 4000 * pki.DAY)
    (tree.certs / "a-expired.pem").write_bytes(expired.pem)
    outcome = stunnel.connect_pool(good_server.port, tree.user_bundle)
    (tree.certs / "a-directory.pem").rmdir()
    assert outcome.verdict == Verdict.ACCEPTED, outcome.reason


@pytest.mark.stunnel
def test_a_directory_of_revocation_lists_is_what_its_owner_put_there(
    tree: Tree, good_server: stunnel.Server
) -> None:
    """XAPI gives stunnel a CRLpath when `crls` is not empty: a name of ours would end all trust."""
    crls = tree.stunnel / "crls"
    crls.mkdir(exist_ok=True)
    outcomes = []
    for name in (None, "somebody's"):
        if name is not None:
            (crls / name).touch()
        if os.listdir(crls):
            outcome = stunnel.connect_with_crls(good_server.port, tree.user_bundle, crls)
        else:
            outcome = stunnel.connect_pool(good_server.port, tree.user_bundle)
        outcomes.append(outcome.verdict)
    (crls / "somebody's").unlink()
    assert outcomes == [Verdict.ACCEPTED, Verdict.REFUSED]


@pytest.mark.stunnel
def test_without_the_good_one_there_is_no_bundle_that_stunnel_starts_with(
    tree: Tree, good_server: stunnel.Server
) -> None:
    """I7: a directory of hopeless files is no bundle at all; stunnel says so and ends."""
    (tree.certs / "m-good.pem").unlink()
    for number, form in enumerate(pki_forms.hopeless()):
        (tree.certs / f"{number}.pem").write_bytes(form.data)
    outcome = stunnel.connect_pool(good_server.port, tree.user_bundle)
    assert outcome.verdict == Verdict.NOT_STARTED
    assert not tree.user_bundle.exists()


@pytest.mark.parametrize("age", [400, 4000], ids=["valid", "expired"])
def test_an_expired_certificate_is_kept(tree: Tree, other_process: Peer, age: int) -> None:
    """A clock may be wrong: an expired certificate stays in the bundle, and `check` says so."""
    old = pki.issue("old", not_before=pki.NOW - age * pki.DAY)
    (tree.certs / "old.pem").write_bytes(old.pem)
    assert old.sha256 in _bundle(tree, other_process)
    assert listing.check(tree)[0] == (1 if age == 4000 else 0)


def test_nothing_unprintable_is_printed(tree: Tree, hostile_mount: CertfsMount) -> None:
    """I9: names and subjects with terminal escapes reach neither the terminal nor the log raw."""
    evil = pki.issue("\x1b[31mred\x07\r\nforged: line")
    (tree.certs / "\x1b[2J\nname\x9b.pem").write_bytes(evil.pem)
    (tree.certs / "\x1b[2J\nbad.pem").write_bytes(b"\x1b[31m-----BEGIN \x1b CERTIFICATE-----\n")
    os.rename(tree.certs / "m-good.pem", os.fsencode(tree.certs) + b"/\xff\xfe.pem")
    said = listing.text_of(tree) + hostile_mount.read_log()
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)
    assert not re.search(r"^forged", said, re.MULTILINE)
    assert evil.sha256 in said
