"""Signatures as ``ssh-keygen -Y sign`` makes them, and the list of those who may sign (ssh-keygen(1), ALLOWED SIGNERS).

Owns the two forms (PROTOCOL.sshsig of OpenSSH) and what of them is accepted; the cryptography is that of the package.
ssh-keygen makes a signature, where the person's keys and their agent are. It does not check them: a host of the
platform has one that is too old (8.1 is needed), and a program would have to be started for each name.
"""

import base64
import binascii
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from certfs.core.text import printable
from certfs.pool.keys import PoolError

NAMESPACE: Final = "certfs-pool"
"""What signatures of approvals are for: one that was made for something else is none."""

_ARMOR: Final = re.compile(
    rb"\s*-----BEGIN SSH SIGNATURE-----\n([A-Za-z0-9+/=\n]+)\n-----END SSH SIGNATURE-----\s*"
)
_MAGIC: Final = b"SSHSIG"
_DIGESTS: Final = {b"sha256": hashlib.sha256, b"sha512": hashlib.sha512}
_RSA: Final[dict[bytes, hashes.HashAlgorithm]] = {
    b"rsa-sha2-256": hashes.SHA256(),
    b"rsa-sha2-512": hashes.SHA512(),
}
_CURVES: Final[dict[str, tuple[bytes, hashes.HashAlgorithm]]] = {
    "secp256r1": (b"ecdsa-sha2-nistp256", hashes.SHA256()),
    "secp384r1": (b"ecdsa-sha2-nistp384", hashes.SHA384()),
    "secp521r1": (b"ecdsa-sha2-nistp521", hashes.SHA512()),
}
_LEAST_RSA_BITS: Final = 2048
_MOST_BYTES: Final = 16 << 10

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True, slots=True)
class Signers:
    """Who may sign: public keys as SSH has them, by their encoding."""

    keys: dict[bytes, PublicKey]

    def verify(self, armored: bytes, message: bytes) -> str:
        """Return why this is no signature of one of them over ``message`` in our namespace, empty if it is."""
        try:
            encoded, signed, signature = _parse(_armored(armored), message)
        except (ValueError, binascii.Error):
            return "its signature cannot be read"
        key = self.keys.get(encoded)
        if key is None:
            return "it is signed with a key that is not in the list of signers"
        return "" if _verifies(key, signature, signed) else "its signature does not fit"


def read_signers(text: str) -> Signers:
    """Return the signers of a file in the form of ALLOWED SIGNERS; ValueError names the line that cannot be used.

    Of its options only ``namespaces`` is known: one that would restrict a key must not be overlooked.
    """
    keys: dict[bytes, PublicKey] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.split()
        kind = next((at for at, word in enumerate(words) if at and _is_kind(word)), 0)
        options = words[1:kind]
        if kind == 0 or len(words) <= kind + 1:
            raise ValueError(f"line {number} is not: PRINCIPAL KEY-TYPE KEY")
        if any(not option.startswith("namespaces=") for option in options):
            raise ValueError(f"line {number}: {options[0]} is not supported")
        named = options[0].removeprefix("namespaces=").strip('"').split(",") if options else ()
        if options and NAMESPACE not in named:
            continue
        try:
            encoded = base64.b64decode(words[kind + 1], validate=True)
            key = serialization.load_ssh_public_key(" ".join(words[kind : kind + 2]).encode())
        except (ValueError, UnsupportedAlgorithm, binascii.Error):
            raise ValueError(f"line {number}: its key cannot be read") from None
        if not isinstance(key, PublicKey):
            raise ValueError(f"line {number}: a key of type {words[kind]} is not supported")  # noqa: TRY004 - of a file
        if isinstance(key, rsa.RSAPublicKey) and key.key_size < _LEAST_RSA_BITS:
            raise ValueError(f"line {number}: an RSA key of less than {_LEAST_RSA_BITS} bits")
        keys[encoded] = key
    if not keys:
        raise ValueError(f"it names no key for {NAMESPACE}")
    return Signers(keys)


def sign(key: Path, messages: Sequence[bytes]) -> list[str]:
    """Return a signature for each message, made by ssh-keygen with this key; PoolError."""
    if not messages:
        return []
    with tempfile.TemporaryDirectory() as directory:
        files = [Path(directory, str(number)) for number in range(len(messages))]
        for file, message in zip(files, messages, strict=True):
            file.write_bytes(message)
        command = ["ssh-keygen", "-Y", "sign", "-n", NAMESPACE, "-f", str(key), *map(str, files)]
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except FileNotFoundError:
            raise PoolError("ssh-keygen is not here", advice="apt install openssh-client") from None
        if done.returncode:
            said = printable(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "")
            raise PoolError(
                f"{key}: ssh-keygen did not sign: {said}", advice="name an SSH key, or run ssh-add"
            )
        return [file.with_name(f"{file.name}.sig").read_text(encoding="ascii") for file in files]


def _is_kind(word: str) -> bool:
    return word.startswith(("ssh-", "ecdsa-sha2-", "sk-"))


def _armored(text: bytes) -> bytes:
    found = _ARMOR.fullmatch(text) if len(text) <= _MOST_BYTES else None
    if found is None:
        raise ValueError("no armored signature")
    return base64.b64decode(found[1].replace(b"\n", b""), validate=True)


def _parse(blob: bytes, message: bytes) -> tuple[bytes, bytes, bytes]:
    """Return the encoded public key, what was signed, and the signature in its own form."""
    if not blob.startswith(_MAGIC + b"\0\0\0\1"):
        raise ValueError("another version")
    encoded, used, reserved, digest, signature, rest = _strings(blob[len(_MAGIC) + 4 :], 5)
    if rest or used != NAMESPACE.encode() or digest not in _DIGESTS:
        raise ValueError("another namespace or digest")
    hashed = _DIGESTS[digest](message).digest()
    signed = _MAGIC + b"".join(map(_string, (used, reserved, digest, hashed)))
    return encoded, signed, signature


def _verifies(key: PublicKey, signature: bytes, signed: bytes) -> bool:
    try:
        kind, raw, rest = _strings(signature, 2)
        if rest:
            return False
        if isinstance(key, rsa.RSAPublicKey):
            if kind not in _RSA:
                return False
            key.verify(raw, signed, padding.PKCS1v15(), _RSA[kind])
        elif isinstance(key, ec.EllipticCurvePublicKey):
            name, digest = _CURVES[key.curve.name]
            first, second, rest = _strings(raw, 2)
            if kind != name or rest:
                return False
            numbers = (int.from_bytes(part, signed=True) for part in (first, second))
            key.verify(encode_dss_signature(*numbers), signed, ec.ECDSA(digest))
        else:
            if kind != b"ssh-ed25519":
                return False
            key.verify(raw, signed)
    except (InvalidSignature, ValueError, KeyError):
        return False
    return True


def _strings(data: bytes, count: int) -> list[bytes]:
    """Return so many strings (RFC 4251, section 5) and what is behind them; ValueError."""
    found = []
    for _ in range(count):
        size = int.from_bytes(data[:4])
        if len(data) < 4 + size:
            raise ValueError("it ends too early")
        found.append(data[4 : 4 + size])
        data = data[4 + size :]
    return [*found, data]


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4) + data
