"""Tests of the platform's checks: each of its error names on files that `openssl` made."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certfs.identity import errors
from certfs.identity.errors import CertificateError
from certfs.identity.privatekey import RsaKeyShape, read_shape
from certfs.identity.validate import (
    Document,
    validate_chain,
    validate_name,
    validate_private_key,
    validate_server_certificate,
)
from tests.support.openssl import OpenSsl, Pair


def _document(path: Path) -> Document:
    return Document(path, path.read_bytes())


def _text(data: bytes) -> Document:
    return Document(Path("given.pem"), data)


def _check_pair(pair: Pair) -> None:
    key = validate_private_key(_document(pair.key))
    validate_server_certificate(_document(pair.certificate), key)


@pytest.mark.parametrize("bits", [2048, 3072, 4096])
def test_rsa_keys_of_supported_length_are_accepted(openssl: OpenSsl, bits: int) -> None:
    """RSA keys from 2048 to 4096 bits are accepted."""
    path = openssl.key(f"rsa{bits}", "-pkeyopt", f"rsa_keygen_bits:{bits}")
    assert validate_private_key(_document(path)).key_size == bits


def test_traditional_key_is_accepted(openssl: OpenSsl) -> None:
    """A key in the traditional form (RSA PRIVATE KEY) is accepted like PKCS #8."""
    traditional = openssl.run("pkey", "-in", openssl.key(), "-traditional")
    assert validate_private_key(_text(traditional)).key_size == 2048


def test_key_with_text_and_crlf_is_accepted(openssl: OpenSsl) -> None:
    """Text around the key and CRLF do not matter."""
    data = b"Bag Attributes\n" + openssl.key().read_bytes() + b"end\n"
    assert validate_private_key(_text(data.replace(b"\n", b"\r\n"))).key_size == 2048


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "no private key"),
        (b"\x30\x82\x04\xa4 DER", "no private key"),
        (b"-----BEGIN PRIVATE KEY-----\nMIIB\n", "has no END"),
        (b"-----BEGIN PRIVATE KEY-----\n!!!!\n-----END PRIVATE KEY-----\n", "not base64"),
        (b"-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\n", "cannot be read"),
    ],
)
def test_what_is_no_key_is_invalid(data: bytes, said: str) -> None:
    """SERVER_CERTIFICATE_KEY_INVALID: what is not a key in PEM form is refused, and said why."""
    with pytest.raises(errors.ServerKeyInvalidError, match=said):
        validate_private_key(_text(data))


def test_two_keys_are_invalid(openssl: OpenSsl) -> None:
    """SERVER_CERTIFICATE_KEY_INVALID: two keys in one file are refused."""
    data = openssl.key().read_bytes() + openssl.key("other").read_bytes()
    with pytest.raises(errors.ServerKeyInvalidError, match="2 private keys"):
        validate_private_key(_text(data))


@pytest.mark.parametrize("form", [(), ("-traditional",)])
def test_encrypted_key_is_invalid(openssl: OpenSsl, form: tuple[str, ...]) -> None:
    """SERVER_CERTIFICATE_KEY_INVALID: an encrypted key is refused, with the command that decrypts it."""
    encrypted = openssl.run("pkey", "-in", openssl.key(), "-aes256", "-passout", "pass:x", *form)
    with pytest.raises(errors.ServerKeyInvalidError, match="encrypted: decrypt it with: openssl"):
        validate_private_key(_text(encrypted))


def test_key_with_inconsistent_numbers_is_invalid(openssl: OpenSsl) -> None:
    """SERVER_CERTIFICATE_KEY_INVALID: a key whose numbers do not fit together is refused."""
    import base64  # noqa: PLC0415 - for this test alone

    lines = openssl.run("pkey", "-in", openssl.key(), "-traditional").splitlines()
    der = bytearray(base64.b64decode(b"".join(lines[1:-1])))
    der[len(der) // 2] ^= 0xFF
    body = base64.encodebytes(bytes(der))
    data = b"-----BEGIN RSA PRIVATE KEY-----\n" + body + b"-----END RSA PRIVATE KEY-----\n"
    with pytest.raises(errors.ServerKeyInvalidError, match="cannot be read"):
        validate_private_key(_text(data))


@pytest.mark.parametrize(
    "algorithm, options, said",
    [
        ("EC", ("-pkeyopt", "ec_paramgen_curve:P-256"), "EC"),
        ("ED25519", (), "Ed25519"),
        ("ED448", (), "Ed448"),
        ("RSA-PSS", ("-pkeyopt", "rsa_keygen_bits:2048"), "RSASSA-PSS"),
        ("X25519", (), "of the algorithm"),
    ],
)
def test_other_algorithms_are_not_supported(
    openssl: OpenSsl, algorithm: str, options: tuple[str, ...], said: str
) -> None:
    """SERVER_CERTIFICATE_KEY_ALGORITHM_NOT_SUPPORTED: a key that is not RSA is refused and named."""
    path = openssl.key(algorithm, *options, algorithm=algorithm)
    with pytest.raises(errors.ServerKeyAlgorithmError, match=f"is {said}"):
        validate_private_key(_document(path))


def test_traditional_ec_key_is_not_supported(openssl: OpenSsl) -> None:
    """SERVER_CERTIFICATE_KEY_ALGORITHM_NOT_SUPPORTED: also in the traditional form."""
    path = openssl.key("EC", "-pkeyopt", "ec_paramgen_curve:P-256", algorithm="EC")
    with pytest.raises(errors.ServerKeyAlgorithmError, match="is EC"):
        validate_private_key(_text(openssl.run("pkey", "-in", path, "-traditional")))


@pytest.mark.parametrize("bits", [512, 1024, 2040, 4104])
def test_other_lengths_are_not_supported(openssl: OpenSsl, bits: int) -> None:
    """SERVER_CERTIFICATE_KEY_RSA_LENGTH_NOT_SUPPORTED: shorter and longer RSA keys are refused."""
    path = openssl.key(f"rsa{bits}", "-pkeyopt", f"rsa_keygen_bits:{bits}")
    with pytest.raises(errors.ServerKeyLengthError, match=f"has {bits} bits; 2048 to 4096"):
        validate_private_key(_document(path))


@pytest.mark.parametrize("form", [(), ("-traditional",)])
def test_multi_prime_keys_are_not_supported(openssl: OpenSsl, form: tuple[str, ...]) -> None:
    """SERVER_CERTIFICATE_KEY_RSA_MULTI_NOT_SUPPORTED: an RSA key of three primes is refused."""
    path = openssl.key(
        "multi", "-pkeyopt", "rsa_keygen_bits:2048", "-pkeyopt", "rsa_keygen_primes:3"
    )
    with pytest.raises(errors.ServerKeyMultiPrimeError):
        validate_private_key(_text(openssl.run("pkey", "-in", path, *form)))


@pytest.mark.parametrize("digest", ["sha256", "sha512"])
def test_good_certificates_are_accepted(openssl: OpenSsl, authority: Pair, digest: str) -> None:
    """A valid certificate that belongs to the key and is signed with SHA-256 or SHA-512 is accepted."""
    _check_pair(
        openssl.certificate(digest, openssl.key(), issuer=authority, options=("-md", digest))
    )


@pytest.mark.parametrize(
    "options",
    [
        ("-md", "sha1"),
        ("-md", "sha224"),
        ("-md", "sha384"),
        ("-md", "sha256", "-sigopt", "rsa_padding_mode:pss"),
    ],
)
def test_other_signatures_are_not_supported(openssl: OpenSsl, options: tuple[str, ...]) -> None:
    """SERVER_CERTIFICATE_SIGNATURE_NOT_SUPPORTED: only SHA-256 and SHA-512 are accepted."""
    pair = openssl.certificate(
        "signature-" + "-".join(options[1::2]), openssl.key(), options=options
    )
    with pytest.raises(errors.ServerCertificateSignatureError, match="is signed with"):
        _check_pair(pair)


def test_signature_by_an_ed25519_authority_is_not_supported(openssl: OpenSsl) -> None:
    """SERVER_CERTIFICATE_SIGNATURE_NOT_SUPPORTED: a signature without a digest of its own is refused."""
    key = openssl.key("ED25519", algorithm="ED25519")
    issuer = openssl.certificate("ed25519-root", key, ca=True, options=("-md", "null"))
    pair = openssl.certificate("by-ed25519", openssl.key(), issuer=issuer, options=("-md", "null"))
    with pytest.raises(errors.ServerCertificateSignatureError, match="ed25519"):
        _check_pair(pair)


def test_signature_by_an_ec_authority_is_accepted(openssl: OpenSsl) -> None:
    """It is the digest that matters: a CA may sign with ECDSA and SHA-256."""
    key = openssl.key("EC", "-pkeyopt", "ec_paramgen_curve:P-256", algorithm="EC")
    issuer = openssl.certificate("ec-root", key, ca=True)
    _check_pair(openssl.certificate("by-ec", openssl.key(), issuer=issuer))


def test_expired_certificate(openssl: OpenSsl) -> None:
    """SERVER_CERTIFICATE_EXPIRED: names the end and the present time in UTC."""
    pair = openssl.certificate("expired", openssl.key(), end="20200201123000Z")
    with pytest.raises(errors.ServerCertificateExpiredError, match="until 2020-02-01T12:30:00Z"):
        _check_pair(pair)


def test_certificate_that_is_not_valid_yet(openssl: OpenSsl) -> None:
    """SERVER_CERTIFICATE_NOT_VALID_YET: names the beginning and the present time in UTC."""
    pair = openssl.certificate("early", openssl.key(), start="20900201000000Z")
    with pytest.raises(errors.ServerCertificateNotValidYetError, match="from 2090-02-01T00:00:00Z"):
        _check_pair(pair)


def test_validity_includes_its_ends(openssl: OpenSsl) -> None:
    """The first and the last second of the validity are valid, as RFC 5280 and the platform have it."""
    pair = openssl.certificate(
        "ends", openssl.key(), start="20200101000000Z", end="20200201000000Z"
    )
    key = validate_private_key(_document(pair.key))
    for now in (datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 2, 1, tzinfo=UTC)):
        validate_server_certificate(_document(pair.certificate), key, now=now)


def test_key_of_another_certificate(openssl: OpenSsl, server: Pair) -> None:
    """SERVER_CERTIFICATE_KEY_MISMATCH: a key that the certificate was not made for is refused."""
    key = validate_private_key(_document(openssl.key("other")))
    with pytest.raises(errors.ServerKeyMismatchError):
        validate_server_certificate(_document(server.certificate), key)


def test_what_is_no_certificate_is_invalid(openssl: OpenSsl, server: Pair) -> None:
    """SERVER_CERTIFICATE_INVALID: DER, a key, a broken block and several certificates are refused."""
    key = validate_private_key(_document(server.key))
    good = server.certificate.read_bytes()
    der = openssl.run("x509", "-in", server.certificate, "-outform", "DER")
    cases = {
        der: "no certificate in PEM form",
        server.key.read_bytes(): "no certificate in PEM form",
        good[:-40]: "has no END",
        good.replace(b"\nMII", b"\nMIJ", 1): "is not X.509",
        good + good: "holds 2 certificates",
    }
    for data, said in cases.items():
        with pytest.raises(errors.ServerCertificateInvalidError, match=said):
            validate_server_certificate(_text(data), key)


def test_chain_of_certificates_is_accepted(server: Pair, authority: Pair) -> None:
    """A chain is one or more certificates."""
    chain = authority.certificate.read_bytes() + b"text\n" + server.certificate.read_bytes()
    assert len(validate_chain(_text(chain))) == 2


@pytest.mark.parametrize(
    "data, said",
    [
        (b"", "holds no certificate"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", "is not X.509"),
        (b"-----BEGIN CERTIFICATE-----\nMIIB\n", "has no END"),
    ],
)
def test_what_is_no_chain_is_invalid(data: bytes, said: str) -> None:
    """SERVER_CERTIFICATE_CHAIN_INVALID: an empty or broken chain is refused."""
    with pytest.raises(errors.ServerCertificateChainInvalidError, match=said):
        validate_chain(_text(data))


@pytest.mark.parametrize("name", ["a.pem", "A-b_c.9.pem", "-.pem", "_.pem", "a..pem", "x.pem.pem"])
def test_good_names_are_accepted(name: str) -> None:
    """Letters, digits, dot, underscore and hyphen make a name that ends in .pem."""
    validate_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".pem",
        ".a.pem",
        "a",
        "a.crt",
        "a.pem.bak",
        "a/b.pem",
        "../a.pem",
        "a b.pem",
        "ä.pem",
        "a.PEM",
        "a.pem\n",
        "\x00.pem",
        "..pem",
        "x" * 252 + ".pem",
    ],
)
def test_bad_names_are_invalid(name: str) -> None:
    """CERTIFICATE_NAME_INVALID: other characters, a leading dot or another ending are refused."""
    with pytest.raises(errors.CertificateNameInvalidError):
        validate_name(name)


def test_every_error_has_a_name_and_a_code_of_its_own() -> None:
    """Each of the platform's errors has its name, its exit code from 20 on, and one sentence on it."""
    classes = CertificateError.__subclasses__()
    assert [one.exit_code for one in classes] == [*range(20, 35), *range(42, 46)]
    assert len({one.name for one in classes}) == len(classes)
    assert all((one.__doc__ or "").endswith(".") for one in classes)


def test_no_error_about_a_key_says_what_is_in_it(openssl: OpenSsl) -> None:
    """Whatever is wrong with a key, the error and what it came from show nothing of the key."""
    data = openssl.key().read_bytes()
    secret = data.splitlines()[1].decode()
    for broken in (data[:-30], data.replace(b"A", b"!"), data[:200] + data[220:], data + data):
        document = _text(broken)
        with pytest.raises(CertificateError) as caught:
            validate_private_key(document)
        shown = f"{caught.value!s}{caught.value!r}{document!r}"
        assert secret[:20] not in shown
        assert caught.value.__cause__ is None


@given(
    st.binary(max_size=300), st.sampled_from(["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY"])
)
def test_shape_of_arbitrary_bytes_never_raises(der: bytes, label: str) -> None:
    """Telling what kind of key some bytes are gives a value, whatever the bytes are."""
    assert isinstance(read_shape(der, label=label), RsaKeyShape | str | None)
