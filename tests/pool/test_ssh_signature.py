"""Signatures of real ssh-keygen runs, and lists of signers (I22)."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfs.pool.keys import PoolError
from certfs.pool.ssh_signature import Signers, read_signers, sign

MESSAGE = b"certfs approval 1\npool test\n"
KINDS = (
    ("ed25519",),
    ("ecdsa", "-b", "256"),
    ("ecdsa", "-b", "384"),
    ("ecdsa", "-b", "521"),
    ("rsa", "-b", "2048"),
)


def new_key(directory: Path, *kind: str) -> Path:
    """Make an SSH key and return its path."""
    path = directory / "-".join(kind)
    command: list[str | Path] = [
        "ssh-keygen",
        "-q",
        "-N",
        "",
        "-C",
        "someone",
        "-f",
        path,
        "-t",
        *kind,
    ]
    subprocess.run(command, check=True, timeout=60)
    return path


def signers_of(*keys: Path) -> Signers:
    """Return the list of these keys."""
    return read_signers("".join(f"admin {key.with_suffix('.pub').read_text()}" for key in keys))


@pytest.mark.parametrize("kind", KINDS, ids="".join)
def test_a_signature_counts_for_its_message_and_key_alone(
    tmp_path: Path, kind: tuple[str, ...]
) -> None:
    """What ssh-keygen signs is accepted of a listed key over that message, and of nothing else (I22)."""
    key, other = new_key(tmp_path, *kind), new_key(tmp_path, "ed25519", "-a", "1")
    first, second = sign(key, [MESSAGE, b"another"])
    signers = signers_of(key)
    assert signers.verify(first.encode(), MESSAGE) == ""
    assert "fit" in signers.verify(second.encode(), MESSAGE)
    assert "list" in signers_of(other).verify(first.encode(), MESSAGE)


def test_a_signature_for_another_purpose_is_none(tmp_path: Path) -> None:
    """What the same key has signed for git or a file is no approval (I22)."""
    key, file = new_key(tmp_path, "ed25519"), tmp_path / "message"
    file.write_bytes(MESSAGE)
    command: list[str | Path] = ["ssh-keygen", "-q", "-Y", "sign", "-n", "file", "-f", key, file]
    subprocess.run(command, check=True, timeout=60)
    signed = file.with_name("message.sig").read_bytes()
    assert signers_of(key).verify(signed, MESSAGE) == "its signature cannot be read"


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Signers, bytes]:
    """Make a list of every kind of key, and the bytes of a signature of each."""
    directory = tmp_path_factory.mktemp("keys")
    keys = [new_key(directory, *kind) for kind in KINDS]
    raw = b"".join(sign(key, [MESSAGE])[0].encode() for key in keys)
    return signers_of(*keys), raw


@given(st.data())
def test_damage_of_any_kind_is_refused(signed: tuple[Signers, bytes], data: st.DataObject) -> None:
    """A signature of which any byte was changed, lost or added is refused, without an exception (I22)."""
    signers, raw = signed
    begin, end = b"-----BEGIN SSH SIGNATURE-----\n", b"-----END SSH SIGNATURE-----"
    lines = data.draw(st.sampled_from(raw.split(begin)[1:])).split(end)[0]
    blob = base64.b64decode(lines.replace(b"\n", b""))
    at = data.draw(st.integers(0, len(blob) - 1))
    how = data.draw(st.sampled_from(("change", "lose", "add", "cut")))
    damaged = {
        "change": blob[:at] + bytes([blob[at] ^ data.draw(st.integers(1, 255))]) + blob[at + 1 :],
        "lose": blob[:at] + blob[at + 1 :],
        "add": blob[:at] + data.draw(st.binary(min_size=1, max_size=4)) + blob[at:],
        "cut": blob[:at],
    }[how]
    armored = begin + base64.b64encode(damaged) + b"\n" + end
    if damaged != blob:
        assert signers.verify(armored, MESSAGE)
    assert signers.verify(data.draw(st.binary(max_size=200)), MESSAGE)


def test_the_list_of_signers_has_no_line_that_is_overlooked(tmp_path: Path) -> None:
    """Comments and keys for other purposes are passed over; what restricts a key, and what is none, is an error."""
    public = new_key(tmp_path, "ed25519").with_suffix(".pub").read_text().strip()
    fine = f'# who\n\nadmin namespaces="file,certfs-pool" {public}\nssh-admin {public}\n'
    assert len(read_signers(fine).keys) == 1
    short = new_key(tmp_path, "rsa", "-b", "1024").with_suffix(".pub").read_text()
    for text, why in (
        ("", "no key"),
        (f'admin namespaces="git" {public}', "no key"),
        (f"admin valid-before=20300101 {public}", "valid-before=20300101"),
        (f"admin cert-authority {public}", "cert-authority"),
        (public, "line 1"),
        ("admin ssh-ed25519", "line 1"),
        ("admin ssh-ed25519 AAAA", "cannot be read"),
        ("admin ssh-dss AAAA", "cannot be read"),
        (f"admin {short}", "2048"),
    ):
        with pytest.raises(ValueError, match=why):
            read_signers(text)


def test_a_key_that_cannot_sign_is_an_error(tmp_path: Path) -> None:
    """A file that is no SSH key is named, with what ssh-keygen said (I22)."""
    file = tmp_path / "no-key"
    file.write_text("nothing")
    with pytest.raises(PoolError, match="no-key"):
        sign(file, [MESSAGE])
