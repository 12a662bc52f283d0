"""PEM files as people and programs really leave them, and what each should give.

Owns the table of forms: sloppy but good, partly broken, wholly broken, and
files with secrets. Each form says which certificates a bundle must hold after
the file was copied in (I4), and whether a defect has to be reported (I9).
"""

from __future__ import annotations

import base64
import functools
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from cryptography.hazmat.primitives.serialization import pkcs7

from tests.support import pki

_BEGIN = b"-----BEGIN CERTIFICATE-----\n"
_END = b"-----END CERTIFICATE-----\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One way to write a PEM file."""

    name: str
    data: bytes
    included: tuple[pki.Identity, ...] = ()
    """The certificates that must reach the bundle, in this order."""
    defect: bool = False
    """Whether something a writer meant as a certificate is left out."""
    secrets: tuple[bytes, ...] = ()
    """Lines of private keys, which nothing may ever repeat."""
    openssl_reads: bool = True
    """Whether OpenSSL itself gets the included certificates out of the file."""


@functools.cache
def first() -> pki.Identity:
    """Give the certificate that most forms are about."""
    return pki.authority("form first", key=pki.ec_key(101))


@functools.cache
def second() -> pki.Identity:
    """Give the good neighbour in the same file."""
    return pki.authority("form second", key=pki.ec_key(102))


def body_of(pem: bytes) -> bytes:
    """Give the base64 lines of a block, without its BEGIN and END lines."""
    return b"".join(pem.splitlines(keepends=True)[1:-1])


def block(label: bytes, der: bytes) -> bytes:
    """Write any DER as a PEM block of any label."""
    encoded = base64.b64encode(der)
    lines = [encoded[at : at + 64] + b"\n" for at in range(0, len(encoded), 64)]
    return b"-----BEGIN %s-----\n%s-----END %s-----\n" % (label, b"".join(lines), label)


def _openssl(*arguments: str, stdin: bytes = b"") -> bytes:
    return subprocess.run(
        ["openssl", *arguments], input=stdin, check=True, capture_output=True, timeout=60
    ).stdout


@functools.cache
def trusted(identity: pki.Identity, *options: str) -> bytes:
    """Write a TRUSTED CERTIFICATE with the real openssl and its trust options."""
    return _openssl("x509", "-trustout", *options, stdin=identity.pem)


def secret_lines(pem: bytes) -> tuple[bytes, ...]:
    """Give the base64 lines of a private key block: what must not be repeated."""
    return tuple(line for line in body_of(pem).splitlines() if len(line) > 16 and b":" not in line)


def layouts() -> list[Form]:
    """Give the forms in which every certificate is good, only written differently."""
    one, two = first(), second()
    body = body_of(one.pem)
    joined = body.replace(b"\n", b"")
    narrow = b"".join(joined[at : at + 20] + b"\n" for at in range(0, len(joined), 20))
    wide = b"".join(joined[at : at + 76] + b"\n" for at in range(0, len(joined), 76))
    indented = b"".join(b"   " + line for line in one.pem.splitlines(keepends=True))
    bags = b"Bag Attributes\n    friendlyName: x\nsubject=CN = form\n\nissuer=CN = form\n\n"
    return [
        Form(name="plain", data=one.pem, included=(one,)),
        Form(name="crlf", data=one.pem.replace(b"\n", b"\r\n"), included=(one,)),
        Form(name="bom", data=b"\xef\xbb\xbf" + one.pem, included=(one,)),
        Form(name="leading text", data=b"Our CA, ask Bob\n\n" + one.pem, included=(one,)),
        Form(name="trailing text", data=one.pem + b"\nkept by Bob\n", included=(one,)),
        Form(name="text between", data=one.pem + b"next\n" + two.pem, included=(one, two)),
        Form(name="latin-1 text", data=b"Zertifikat f\xfcr uns\n" + one.pem, included=(one,)),
        Form(name="bag attributes", data=bags + one.pem, included=(one,)),
        Form(name="indented", data=indented, included=(one,), openssl_reads=False),
        Form(name="no final newline", data=one.pem.rstrip(b"\n"), included=(one,)),
        Form(name="several", data=one.pem + two.pem, included=(one, two)),
        Form(name="several, other order", data=two.pem + one.pem, included=(two, one)),
        Form(
            name="no newline between END and BEGIN",
            data=one.pem.rstrip(b"\n") + two.pem,
            included=(one, two),
            openssl_reads=False,
        ),
        Form(name="duplicate", data=one.pem + one.pem, included=(one,)),
        Form(name="x509 label", data=block(b"X509 CERTIFICATE", one.der), included=(one,)),
        Form(name="trusted, server", data=trusted(one, "-addtrust", "serverAuth"), included=(one,)),
        Form(name="narrow lines", data=_BEGIN + narrow + _END, included=(one,)),
        Form(name="wide lines", data=_BEGIN + wide + _END, included=(one,)),
        Form(
            name="trailing blanks",
            data=one.pem.replace(b"\n", b" \t\n"),
            included=(one,),
        ),
        Form(
            name="bytes after the DER",
            data=block(b"CERTIFICATE", one.der + b"more") + two.pem,
            included=(one, two),
        ),
        Form(name="blank lines around", data=b"\n\n" + one.pem + b"\n\n", included=(one,)),
    ]


def broken() -> list[Form]:
    """Give the forms with a bad block; the good neighbour in the file must stay."""
    one, two = first(), second()
    body = body_of(one.pem)
    cut = _BEGIN + body[: len(body) // 2]
    garbled = one.pem.replace(body[10:14], b"%$#@", 1)
    forms = {
        "truncated by the end of file": two.pem + cut,
        "truncated, then another": cut + two.pem,
        "truncated with an END": cut + _END + two.pem,
        "not base64": garbled + two.pem,
        "not base64, last": two.pem + garbled,
        "base64 of junk": block(b"CERTIFICATE", b"this is no certificate") + two.pem,
        "junk inside the DER": block(b"CERTIFICATE", one.der[:40] + b"\0" * 20 + one.der[60:])
        + two.pem,
        "DER cut short": block(b"CERTIFICATE", one.der[:-20]) + two.pem,
        "empty block": _BEGIN + _END + two.pem,
        "END of another label": _BEGIN + body + b"-----END PUBLIC KEY-----\n" + two.pem,
        "NUL in the base64": _BEGIN + body[:70] + b"\0" + body[70:] + _END + two.pem,
        "trusted, server rejected": trusted(one, "-addreject", "serverAuth") + two.pem,
        "trusted, client only": trusted(one, "-addtrust", "clientAuth") + two.pem,
        "trusted, nothing": trusted(one, "-addreject", "anyExtendedKeyUsage") + two.pem,
    }
    return [
        Form(name=name, data=data, included=(two,), defect=True) for name, data in forms.items()
    ]


def stripped() -> list[Form]:
    """Give the forms that OpenSSL reads because it strips what is no printable ASCII at the ends of lines."""
    one, two = first(), second()
    ends = {
        "NBSP": b"\xc2\xa0",
        "zero-width space": b"\xe2\x80\x8b",
        "^Z": b"\x1a",
        "VT": b"\v",
        "Latin-1": b"\xa0\xff",
        "control": b"\x01 \x1b\t",
    }
    forms = {
        f"{name} at line ends": one.pem.replace(b"\n", end + b"\n") + two.pem
        for name, end in ends.items()
    }
    bom = b"\xef\xbb\xbf"
    narrow = b" " * 254  # a piece of a line, as OpenSSL reads it
    return [
        *(Form(name=name, data=data, included=(one, two)) for name, data in forms.items()),
        Form(
            name="BOMs of files joined", data=(bom + one.pem) + (bom + two.pem), included=(one, two)
        ),
        Form(name="NUL hides the rest", data=one.pem.replace(b"\n", b"\0-----\n"), included=(one,)),
        Form(name="BEGIN in a long line", data=narrow + one.pem, included=(one,)),
        Form(
            name="hyphen after the body",
            data=one.pem.replace(_END, b"-x\n" + _END),
            included=(one,),
        ),
    ]


def unclosed() -> list[Form]:
    """Give the forms in which a whole certificate has no END of its own; OpenSSL reads it, and not the next one."""
    one, two = first(), second()
    body = body_of(one.pem)
    forms = {
        "no END": _BEGIN + body + two.pem,
        "END misspelt": _BEGIN + body + b"-----EDN CERTIFICATE-----\n" + two.pem,
        "END indented": _BEGIN + body + b"  " + _END + two.pem,
        "another END within a line": _BEGIN + body + b"  -----END A-----\n" + _END + two.pem,
    }
    return [
        Form(name=name, data=data, included=(one, two), openssl_reads=False)
        for name, data in forms.items()
    ]


def hopeless() -> list[Form]:
    """Give the files without any certificate, whatever their writer meant."""
    one = first()
    forms = {
        "empty file": b"",
        "one newline": b"\n",
        "text only": b"this is not PEM\n",
        "DER": one.der,
        "UTF-16": one.pem.decode().encode("utf-16"),
        "HTML error page": b"<html><body>404 Not Found</body></html>\n",
        "only BEGIN": _BEGIN,
        "only END": _END,
        "NULs": b"\0" * 4096,
        "random": bytes((7 * at * at + 13 * at) % 256 for at in range(5000)),
        "ELF": b"\x7fELF" + b"\x02\x01\x01" + b"\0" * 57,
    }
    return [Form(name=name, data=data, defect=True) for name, data in forms.items()]


def nuls() -> list[Form]:
    """Give the forms with a NUL where OpenSSL would end the file or the line."""
    one, two = first(), second()
    return [
        Form(
            name="NUL at the start of a line",
            data=one.pem + b"\0\n" + two.pem,
            included=(one, two),
            openssl_reads=False,
        ),
        *(
            Form(
                name=f"{name} between END and BEGIN",
                data=one.pem + between + two.pem,
                included=(one, two),
                openssl_reads=False,
            )
            for name, between in {
                "a NUL": b"\0",
                "a sector of NULs": b"\0" * 512,
                "^Z": b"\x1a",
                "^Z on a line of its own and before BEGIN": b"\x1a\r\n\x1a",
            }.items()
        ),
        Form(
            name="NUL in text",
            data=one.pem + b"a\0b\n" + two.pem,
            included=(one, two),
        ),
    ]


def _private_keys() -> dict[str, bytes]:
    rsa_key, ec_key = pki.rsa_key(), pki.ec_key(103)
    plain = serialization.NoEncryption()
    secret = serialization.BestAvailableEncryption(b"secret")
    pem, formats = serialization.Encoding.PEM, serialization.PrivateFormat
    openssh = ed25519.Ed25519PrivateKey.generate()
    small = rsa.generate_private_key(public_exponent=65537, key_size=1024)  # noqa: S505 - fast
    return {
        "PKCS #8 key": rsa_key.private_bytes(pem, formats.PKCS8, plain),
        "RSA key": small.private_bytes(pem, formats.TraditionalOpenSSL, plain),
        "EC key": ec_key.private_bytes(pem, formats.TraditionalOpenSSL, plain),
        "encrypted PKCS #8 key": ec_key.private_bytes(pem, formats.PKCS8, secret),
        "encrypted EC key": ec_key.private_bytes(pem, formats.TraditionalOpenSSL, secret),
        "OpenSSH key": openssh.private_bytes(pem, formats.OpenSSH, plain),
    }


def with_keys() -> list[Form]:
    """Give files that hold a private key before, behind or around a certificate."""
    one, two = first(), second()
    forms = []
    for kind, key in _private_keys().items():
        secrets = secret_lines(key)
        placements = {
            f"{kind}, then certificate": key + one.pem,
            f"certificate, then {kind}": one.pem + key,
            f"{kind} between": one.pem + key + two.pem,
            f"{kind} without its newline": key.rstrip(b"\n") + one.pem,
            f"{kind} with CRLF": (key + one.pem).replace(b"\n", b"\r\n"),
        }
        for name, data in placements.items():
            included = (one, two) if name.endswith("between") else (one,)
            forms.append(
                Form(
                    name=name,
                    data=data,
                    included=included,
                    secrets=secrets,
                    openssl_reads=not name.endswith("newline"),
                )
            )
        forms.append(Form(name=f"{kind} alone", data=key, secrets=secrets))
        forms.append(
            Form(
                name=f"{kind} in a CERTIFICATE block",
                data=_BEGIN + body_of(key) + _END + two.pem,
                included=(two,),
                defect=True,
                secrets=secrets,
            )
        )
        cut = key.splitlines(keepends=True)[: len(key.splitlines()) // 2 + 1]
        forms.append(
            Form(
                name=f"{kind} cut short",
                data=b"".join(cut) + one.pem,
                included=(one,),
                secrets=secrets,
                openssl_reads=False,
            )
        )
    return forms


def other_blocks() -> list[Form]:
    """Give files with known blocks that are no certificates: left out with a note."""
    one = first()
    encoding = serialization.Encoding.PEM
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(pki.name("request"))
        .sign(one.key, hashes.SHA256())
    )
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(one.certificate.subject)
        .last_update(pki.NOW)
        .next_update(pki.NOW + 30 * pki.DAY)
        .sign(one.key, hashes.SHA256())
    )
    public = one.certificate.public_key().public_bytes(
        encoding, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    blocks = {
        "CSR": request.public_bytes(encoding),
        "new CSR": block(
            b"NEW CERTIFICATE REQUEST", request.public_bytes(serialization.Encoding.DER)
        ),
        "CRL": crl.public_bytes(encoding),
        "public key": public,
        "DH parameters": _openssl(
            "genpkey", "-genparam", "-algorithm", "DH", "-pkeyopt", "group:modp_2048"
        ),
        "EC parameters": _openssl("ecparam", "-name", "prime256v1"),
        "PKCS #7": pkcs7.serialize_certificates([second().certificate], encoding),
    }
    return [
        Form(name=f"{kind} {where}", data=data, included=(one,))
        for kind, other in blocks.items()
        for where, data in (("before", other + one.pem), ("behind", one.pem + other))
    ]


def readable() -> list[Form]:
    """Give the forms in which nothing is broken."""
    return [*layouts(), *stripped(), *nuls()]


def every() -> list[Form]:
    """Give all forms; their names are unique."""
    return [
        *layouts(),
        *stripped(),
        *unclosed(),
        *broken(),
        *hopeless(),
        *nuls(),
        *with_keys(),
        *other_blocks(),
    ]


def openssl_reads(form: Form) -> list[str]:
    """Give the SHA-256 of the certificates that the openssl program finds in a form."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "form.pem")
        path.write_bytes(form.data)
        return pki.certificates_openssl_reads(str(path))
