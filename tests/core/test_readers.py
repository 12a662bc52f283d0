"""What GnuTLS and Java refuse: the rules are held against the real certtool and keytool."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from certfs.core.certificate import Severity, parse_source
from certfs.core.der import read_element, read_elements
from certfs.core.pem import render
from certfs.core.readers import Reader, refusals
from tests.support import libcrypto, mounts, pki, pki_deviations, pki_raw
from tests.support.pki_raw import attribute, certificate, element, name, sequence

_NAME = name(attribute(b"a name"))
_CONSTRAINTS = bytes.fromhex("0603551d13")
_ALTERNATIVE = bytes.fromhex("0603551d11")
_CRITICAL = b"\x01\x01\xff"
_JAVA, _GNUTLS = Reader.JAVA, Reader.GNUTLS
_BOTH = frozenset({_JAVA, _GNUTLS})
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def _point(form: serialization.PublicFormat) -> bytes:
    return pki.ec_key().public_key().public_bytes(serialization.Encoding.X962, form)


_COMPRESSED = _point(serialization.PublicFormat.CompressedPoint)
_UNCOMPRESSED = _point(serialization.PublicFormat.UncompressedPoint)


def _elliptic(point: bytes, curve: str = "06082a8648ce3d030107") -> bytes:
    algorithm = sequence(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex(curve))
    return certificate(_NAME, key=sequence(algorithm, element(0x03, b"\0", point)))


def _pieces(tag: int, *contents: bytes) -> bytes:
    """Encode a string in pieces, which BER allows (X.690, 8.7.3)."""
    return element(tag, *(element(tag & 0x1F, content) for content in contents))


def _signed(signature: bytes) -> bytes:
    """Give a certificate with another encoding of a signature in its place."""
    der = certificate(_NAME)
    signed, algorithm, _ = read_elements(der, read_element(der, 0, len(der)))
    return sequence(der[signed.start : algorithm.end], signature)


def _elliptic_pieces() -> bytes:
    algorithm = sequence(bytes.fromhex("06072a8648ce3d0201"), bytes.fromhex("06082a8648ce3d030107"))
    key = _pieces(0x23, b"\0" + _UNCOMPRESSED[:30], b"\0" + _UNCOMPRESSED[30:])
    return certificate(_NAME, key=sequence(algorithm, key))


def _rsa(*numbers: bytes) -> bytes:
    key = sequence(sequence(pki_raw.RSA, b"\x05\x00"), element(0x03, b"\0", *numbers))
    return certificate(_NAME, key=key)


def _extended(
    identifier: bytes,
    value: bytes,
    *,
    version: bytes = b"\xa0\x03\x02\x01\x02",
    critical: bytes = _CRITICAL,
) -> bytes:
    extension = sequence(identifier, critical, element(0x04, value))
    return certificate(_NAME, version=version, extensions=[extension])


def _other_key(algorithm: str, key: bytes) -> bytes:
    return certificate(
        _NAME, key=sequence(sequence(bytes.fromhex(algorithm)), element(0x03, b"\0", key))
    )


def _dated(*dates: bytes) -> bytes:
    return certificate(_NAME, dates=sequence(*dates))


def _identifier(number: int) -> bytes:
    """Encode the OBJECT IDENTIFIER 1.2 with one more number."""
    octets = [number & 0x7F]
    while number := number >> 7:
        octets.insert(0, 0x80 | number & 0x7F)
    return element(0x06, bytes((0x2A, *octets)))


def _unique(version: bytes, identifier: bytes) -> bytes:
    """Put a unique identifier of the issuer behind the key."""
    der = certificate(_NAME, version=version)
    signed, algorithm, signature = read_elements(der, read_element(der, 0, len(der)))
    return sequence(
        sequence(der[signed.content : signed.end], identifier),
        der[algorithm.start : signature.end],
    )


_TOO_LARGE = 1 << 64
_JAVA_ALONE = frozenset({_JAVA})
_PSS = bytes.fromhex("06092a864886f70d01010a")
_MODULUS = pki_raw.integer(1 << 2047 | 1)
_EXPONENT = pki_raw.integer(65537)
_LATER = element(0x17, b"440101000000Z")


_ODD = pki_deviations.every()
_REFUSED = {
    "version 1 with extensions": (_ODD["version 1 with extensions"], _BOTH),
    "version 2 with extensions": (
        _extended(_CONSTRAINTS, sequence(), version=b"\xa0\x03\x02\x01\x01"),
        _BOTH,
    ),
    "extension twice": (_ODD["extension twice"], _BOTH),
    "dates that are none": (_ODD["dates that are none"], _BOTH),
    "two signature algorithms": (_ODD["two signature algorithms"], _BOTH),
    "broken subjectAltName": (_extended(_ALTERNATIVE, b"\x30\x05"), _BOTH),
    "dates with an offset": (_ODD["dates with an offset"], frozenset({_GNUTLS})),
    "length left open": (_ODD["length left open"], frozenset({_GNUTLS})),
    "name in pieces": (_ODD["name in pieces"], frozenset({_GNUTLS})),
    "signature in pieces": (_signed(_pieces(0x23, b"\0", b"\0x")), _BOTH),
    "key in pieces": (_elliptic_pieces(), _BOTH),
    "date in pieces": (
        certificate(
            _NAME,
            dates=sequence(element(0x17, b"240101000000Z"), _pieces(0x37, b"440101", b"000000Z")),
        ),
        _BOTH,
    ),
    "extension in pieces": (
        certificate(
            _NAME, extensions=[sequence(_CONSTRAINTS, _pieces(0x24, b"\x30\x03", b"\x01\x01\xff"))]
        ),
        frozenset({_GNUTLS}),
    ),
    "length left open in the key": (
        certificate(_NAME, key=b"\x30\x80" + pki_raw.ec_key()[2:] + b"\0\0"),
        _BOTH,
    ),
    "length of a name left open": (
        certificate(_NAME, issuer=b"\x30\x80" + _NAME[2:] + b"\0\0"),
        _BOTH,
    ),
    "negative version": (
        certificate(_NAME, version=b"\xa0\x03\x02\x01\x82"),
        frozenset({_GNUTLS}),
    ),
    "broken critical extension": (_extended(_CONSTRAINTS, b"\x30"), frozenset({_JAVA})),
    "compressed key": (_elliptic(_COMPRESSED), frozenset({_JAVA})),
    "short key": (_elliptic(_UNCOMPRESSED[:-3]), frozenset({_JAVA})),
    "other curve": (_elliptic(_UNCOMPRESSED, "06082a811ccf5501822d"), frozenset({_JAVA})),
    "empty names": (certificate(name()), frozenset({_JAVA})),
    "empty issuer": (certificate(_NAME, issuer=name()), frozenset({_JAVA})),
    "RSA of 20,000 bits": (certificate(_NAME, key=pki_raw.rsa_key(20_000)), frozenset({_JAVA})),
    "RSA of 500 bits": (certificate(_NAME, key=pki_raw.rsa_key(500)), frozenset({_JAVA})),
    "RSA with a large exponent": (
        certificate(_NAME, key=pki_raw.rsa_key(4096, (1 << 65) + 1)),
        frozenset({_JAVA}),
    ),
    "RSA key that is none": (_rsa(b"junk"), frozenset({_JAVA})),
    **{kind: (_ODD[kind], frozenset({_JAVA})) for kind in _ODD if "in a tag of" in kind},
    "alternative name that is empty": (
        _extended(_ALTERNATIVE, sequence(b"\x82\x00"), critical=b""),
        frozenset({_GNUTLS}),
    ),
    "alternative name without an address": (
        _extended(_ALTERNATIVE, sequence(b"\x87\x00"), critical=b""),
        frozenset({_GNUTLS}),
    ),
    "alternative name of no known type": (
        _extended(_ALTERNATIVE, sequence(b"\x89\x01a"), critical=b""),
        frozenset({_GNUTLS}),
    ),
    "alternative names that are none": (
        _extended(_ALTERNATIVE, b"\x05\x00", critical=b""),
        frozenset({_GNUTLS}),
    ),
    "critical alternative names that are no names": (
        _extended(_ALTERNATIVE, sequence()),
        frozenset({_JAVA}),
    ),
    "critical alternative name with half an address": (
        _extended(_ALTERNATIVE, sequence(b"\x87\x03abc")),
        frozenset({_JAVA}),
    ),
    "critical alternative name with a path for a URI": (
        _extended(_ALTERNATIVE, sequence(b"\x86\x02/x")),
        frozenset({_JAVA}),
    ),
    "critical alternative name that is empty": (
        _extended(_ALTERNATIVE, sequence(b"\x81\x00")),
        _BOTH,
    ),
    "broken issuerAltName": (
        _extended(bytes.fromhex("0603551d12"), b"\x30\x05", critical=b""),
        frozenset({_GNUTLS}),
    ),
    "date with a fraction": (
        _dated(element(0x18, b"20240101000000.5Z"), _LATER),
        frozenset({_GNUTLS}),
    ),
    "version of two octets": (
        certificate(_NAME, version=b"\xa0\x04\x02\x02\x01\x00"),
        frozenset({_GNUTLS}),
    ),
    "critical key usage of another type": (
        _extended(bytes.fromhex("0603551d0f"), b"\x04\x01\x06"),
        frozenset({_JAVA}),
    ),
    "critical identifier of another type": (
        _extended(bytes.fromhex("0603551d0e"), sequence()),
        frozenset({_JAVA}),
    ),
    "critical access to information of another type": (
        _extended(bytes.fromhex("06082b06010505070101"), b"\x05\x00"),
        frozenset({_JAVA}),
    ),
    "issuer without attributes": (
        certificate(_NAME, issuer=sequence(element(0x31))),
        frozenset({_JAVA}),
    ),
    "Ed25519 of 33 bytes": (_other_key("06032b6570", b"x" * 33), frozenset({_JAVA})),
    "X448 of 3 bytes": (_other_key("06032b656f", b"xxx"), frozenset({_JAVA})),
    "RSA of three numbers": (_rsa(sequence(_MODULUS, _EXPONENT, _EXPONENT)), frozenset({_JAVA})),
    "bytes behind an RSA key": (
        _rsa(sequence(_MODULUS, _EXPONENT), b"\x05\x00"),
        frozenset({_JAVA}),
    ),
    "RSA with more exponent than modulus": (
        certificate(_NAME, key=pki_raw.rsa_key(1024, (1 << 1030) + 1)),
        frozenset({_JAVA}),
    ),
    "number of 65 bits in an identifier": (
        certificate(name(attribute(b"x", identifier=_identifier(_TOO_LARGE)))),
        frozenset({_GNUTLS}),
    ),
    "number of 65 bits in another name": (
        _extended(
            _ALTERNATIVE,
            sequence(element(0xA0, _identifier(_TOO_LARGE), element(0xA0, b"\x0c\x01x"))),
            critical=b"",
        ),
        frozenset({_GNUTLS}),
    ),
    "alternative name that is no name": (
        _extended(_ALTERNATIVE, sequence(element(0xA4)), critical=b""),
        frozenset({_GNUTLS}),
    ),
    "unique identifier in version 1": (_unique(b"", b"\x81\x02\0\1"), _BOTH),
    "unique identifier in pieces": (
        _unique(b"\xa0\x03\x02\x01\x02", b"\xa1\x04\x03\x02\0\1"),
        frozenset({_GNUTLS}),
    ),
    "version 4 with extensions": (
        _extended(_CONSTRAINTS, sequence(), version=b"\xa0\x03\x02\x01\x03"),
        frozenset({_JAVA}),
    ),
    "date with a leap second": (_dated(element(0x17, b"240101000060Z"), _LATER), _JAVA_ALONE),
    "date without seconds and with an offset": (
        _dated(element(0x17, b"2401010000+0100"), _LATER),
        _BOTH,
    ),
    "Diffie-Hellman without parameters": (
        _other_key("06092a864886f70d010301", pki_raw.integer(5)),
        _JAVA_ALONE,
    ),
    "DSA with a key that is none": (
        certificate(_NAME, key=sequence(sequence(pki_raw.DSA), element(0x03, b"\0junk"))),
        _JAVA_ALONE,
    ),
    "RSASSA-PSS with a salt below zero": (
        certificate(
            _NAME,
            key=sequence(
                sequence(_PSS, sequence(element(0xA2, b"\x02\x01\xff"))),
                element(0x03, b"\0", sequence(_MODULUS, _EXPONENT)),
            ),
        ),
        _JAVA_ALONE,
    ),
    "sequence without its bit": (
        certificate(sequence(b"\x11" + element(0x31, attribute(b"x"))[1:])),
        _BOTH,
    ),
    "outermost tag in two octets": (_ODD["outermost tag in two octets"], frozenset({_JAVA})),
    "very padded length": (_ODD["very padded length"], frozenset({_JAVA})),
}
_ACCEPTED = {
    "date of the 31st of February": _dated(element(0x17, b"240231000000Z"), _LATER),
    "date of the year 0": _dated(element(0x18, b"00000101000000Z"), _LATER),
    "number of 64 bits in an identifier": certificate(
        name(attribute(b"x", identifier=_identifier(_TOO_LARGE - 1)))
    ),
    "RSA with a modulus below zero": _rsa(sequence(element(2, b"\xff" * 256), _EXPONENT)),
    "Diffie-Hellman": certificate(
        _NAME,
        key=sequence(
            sequence(bytes.fromhex("06092a864886f70d010301"), sequence(_MODULUS, _EXPONENT)),
            element(0x03, b"\0", pki_raw.integer(5)),
        ),
    ),
    **{kind: der for kind, der in _ODD.items() if kind not in _REFUSED and kind != "empty name"},
    "empty subject": certificate(name(), issuer=_NAME),
    "unknown critical extension": _extended(bytes.fromhex("06032a0304"), b"\x30"),
    "RSA of 511 bits": certificate(_NAME, key=pki_raw.rsa_key(511)),
    "constraints on names, critical": _extended(
        bytes.fromhex("0603551d1e"), sequence(element(0xA0, sequence(b"\x82\x02.x")))
    ),
    "alternative names of many types": _extended(
        _ALTERNATIVE,
        sequence(
            b"\x82\x05*.a.b",
            b"\x81\x03a@b",
            element(0x86, b"http://a/"),
            element(0x87, b"\0" * 16),
            b"\x88\x02\x2a\x03",
            element(0xA4, _NAME),
        ),
    ),
    "Ed25519": _other_key("06032b6570", b"\1" * 32),
    "empty set among those of a name": certificate(
        sequence(element(0x31), element(0x31, attribute(b"x")))
    ),
    "until 9999": _dated(element(0x17, b"240101000000Z"), element(0x18, b"99991231235959Z")),
    "MD5 and RSA": certificate(
        _NAME, algorithm=bytes.fromhex("300d06092a864886f70d0101040500"), signature=b"\1" * 64
    ),
    "RSA of 16,384 bits": certificate(_NAME, key=pki_raw.rsa_key(16_384)),
    "DSA of 10,000 bits": pki_raw.large_dsa("large", 1),
    "version 2": certificate(_NAME, version=b"\xa0\x03\x02\x01\x01"),
    "name in closed pieces": certificate(
        name(sequence(pki_raw.COMMON_NAME, b"\x2c\x06\x0c\x01a\x0c\x01b"))
    ),
    "padded length in one algorithm": certificate(
        _NAME, outer_algorithm=b"\x30\x82\x00\x0a" + pki_raw.SHA256_ECDSA[2:]
    ),
    "brainpool": _elliptic(_UNCOMPRESSED, "06092b2403030208010107"),
    "secp256k1": _elliptic(_UNCOMPRESSED, "06052b8104000a"),
    "ordinary": pki.authority("ordinary").der,
    "of a pool": pki.pool_certificate(key=pki.ec_key()).der,
}
# Values of critical extensions, as Java 17 takes or refuses each.
_TAKEN = {
    "551d13": ("3000", "3003020103", "30060101ff0201ff", "30080101ff0201010500", "3003010101"),
    "551d0f": ("030100", "0303070000", "030607ffffffffff"),
    "551d25": ("3000", "300506032a0304"),
    "551d1e": (
        *("3000", "3002a000", "3007a0053003820178", "300aa008300687040a000000"),
        *("3006a00430028200", "300aa0083006820178800101", "300ba00930078605782e792e7a"),
    ),
    "551d24": ("3000", "30038001ff"),
    "551d20": ("3000", "3006300406022a03"),
    "551d36": ("0201ff", "020100"),
    "551d23": ("3000", "3003820105", "30028000"),
    "551d1f": ("3000", "3010300ea00ca00a8608687474703a2f2f61"),
    "551d10": ("3000", "3011800f32303234303130313030303030305a"),
    "551d21": ("3000", "300a300806022a0306022a04"),
    "551d0e": ("0400",),
    "2a0304": ("", "30", "ff"),
}
_NOT_TAKEN = {
    "551d13": (
        "300401020101",
        "30020100",
        "30050101ff0200",
        "30060101ff0a0101",
        "300a0101ff02050080000000",
    ),
    "551d0f": ("0300", "03020980", "030101", "030207800500"),
    "551d25": ("30020500", "300506032a8003", "30020600", "300406022a83", "3007300506032a0304"),
    "551d1e": (
        *("3009a007300587030a0000", "3006a00430028700", "3006a00430028100", "3007a2053003820178"),
        *("300ea00c300a8608687474703a2f2f61", "3008a006300486026120", "3007a0053003890178"),
        *("3004a0023000", "3004a0020500", "300ea0053003820178a0053003820178"),
    ),
    "551d24": ("3003820100", "30028000", "300780050101010101"),
    "551d20": ("30023000", "300406022a03", "3008300606022a033000"),
    "551d36": ("0200", "0201fe", "02050100000000"),
    "551d23": ("3003830105", "3002a100", "30028200", "3005a003860178"),
    "551d1f": ("30023000", "30063004810205a0", "30043002a000", "300b3009a007a0058603616263"),
    "551d10": ("300680046a756e6b", "300f800d3234303130313030303030305a"),
    "551d21": ("30023000", "3006300406022a03"),
    "551d0e": ("0401780500",),
    "551d11": ("300f860d687474703a2f2f612f257a7a2f", "3002a000", "3003880183"),
}


def _values(table: dict[str, tuple[str, ...]]) -> list[bytes]:
    """Give each value to a certificate."""
    return [
        _extended(element(0x06, bytes.fromhex(identifier)), bytes.fromhex(value))
        for identifier, values in table.items()
        for value in values
    ]


_EXTENSIONS = _values(_TAKEN)


@pytest.mark.parametrize("der", _EXTENSIONS)
def test_a_critical_extension_that_java_parses_is_no_reason(der: bytes) -> None:
    """I4: odd as it may be; the program is asked below."""
    assert _JAVA not in {each.reader for each in refusals(der)}


@pytest.mark.parametrize("der", _values(_NOT_TAKEN))
def test_a_critical_extension_that_java_does_not_parse_is_a_reason(der: bytes) -> None:
    """I4: each was held against Java 17; OpenSSL loads them."""
    assert libcrypto.loads(der)
    assert _JAVA in {each.reader for each in refusals(der)}


_QUICK = {**os.environ, "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"}


def _reads(reader: Reader, bundle: Path) -> bool:
    """Whether the reader's own program takes a bundle."""
    if reader is Reader.GNUTLS:
        command = ["certtool", "--certificate-info", "--infile", str(bundle)]
    else:
        command = ["keytool", "-printcert", "-file", str(bundle)]
    mounts.need_program(command[0])
    ended = subprocess.run(command, check=False, capture_output=True, env=_QUICK, timeout=120)
    return ended.returncode == 0


@pytest.mark.parametrize("kind", _REFUSED)
def test_the_rules_name_who_refuses_a_certificate(kind: str) -> None:
    """I4: one reason for each reader; OpenSSL loads all of these."""
    der, readers = _REFUSED[kind]
    assert libcrypto.loads(der)
    found = refusals(der)
    assert {each.reader for each in found} == readers
    assert all(each.reason for each in found)


@pytest.mark.parametrize("kind", _ACCEPTED)
def test_no_rule_is_against_what_all_readers_take(kind: str) -> None:
    """I4: nothing is warned of or left out without need."""
    assert refusals(_ACCEPTED[kind]) == ()


@pytest.mark.parametrize(
    "kind, reader",
    [(kind, reader) for kind, (_, readers) in _REFUSED.items() for reader in sorted(readers)],
)
def test_a_program_refuses_what_a_rule_is_against(
    kind: str, reader: Reader, tmp_path: Path
) -> None:
    """I4: one such certificate beside a good one, and the reader refuses the whole bundle."""
    der, _ = _REFUSED[kind]
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(pki.authority("good").pem + render(der))
    assert not _reads(reader, bundle)


@pytest.mark.parametrize("reader", [Reader.GNUTLS, Reader.JAVA])
def test_a_program_takes_what_no_rule_is_against(reader: Reader, tmp_path: Path) -> None:
    """I4: all of them in one bundle, with those that are for the other reader alone to refuse."""
    others = [der for der, readers in _REFUSED.values() if reader not in readers]
    values = [der for der in _EXTENSIONS if reader not in {each.reader for each in refusals(der)}]
    bundle = tmp_path / "bundle.pem"
    bundle.write_bytes(b"".join(map(render, (*_ACCEPTED.values(), *others, *values))))
    assert _reads(reader, bundle)


def test_no_rule_is_against_debians_authorities() -> None:
    """Real input: check stays quiet on the authorities of a distribution."""
    if not _AUTHORITIES.exists():
        mounts.missing(str(_AUTHORITIES))
    content = parse_source(_AUTHORITIES.read_bytes())
    assert {
        each.fingerprint: refusals(each.der) for each in content.certificates if refusals(each.der)
    } == {}


@pytest.mark.parametrize("kind", _REFUSED)
def test_what_a_named_reader_refuses_is_left_out(kind: str) -> None:
    """I4, I9: with the name of the reader; the others stay."""
    der, readers = _REFUSED[kind]
    good = pki.authority("good")
    data = good.pem + render(der)
    for named in ((), (Reader.GNUTLS,), (Reader.JAVA,), (Reader.GNUTLS, Reader.JAVA)):
        content = parse_source(data, named)
        is_refused = bool(readers & set(named))
        assert [each.der for each in content.certificates] == [good.der, der][: 2 - is_refused]
        assert bool(content.remarks) is is_refused
        for remark in content.remarks:
            assert remark.severity is Severity.WARNING
            assert remark.line == good.pem.count(b"\n") + 1
            assert any(each.value in remark.reason.lower() for each in readers & set(named))
