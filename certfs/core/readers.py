"""What readers other than OpenSSL refuse: for one such certificate they refuse the whole bundle.

Owns the rules, so that what a bundle holds never depends on what a host has installed. They are those of GnuTLS 3.7
(_gnutls_check_cert_sanity in lib/x509/x509.c; wget, apt and curl use it) and of Java 17 (sun.security.x509).
tests/core/test_readers.py holds them against the real certtool and keytool.
"""

import enum
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property

from certfs.core.der import (
    BIT_STRING,
    CONSTRUCTED,
    NULL,
    OBJECT_IDENTIFIER,
    SEQUENCE,
    SET,
    TAG_NUMBER,
    DerError,
    Element,
    content_of,
    read_element,
    read_elements,
    read_first,
    walk,
)
from certfs.core.fields import (
    EXTENSIONS,
    SUBJECT_ALTERNATIVE_NAME,
    Extension,
    Fields,
    read_extensions,
    read_fields,
)
from certfs.core.java import parses_bits, parses_extension, parses_pss

_INTEGER = 0x02
_VERSION_WITH_EXTENSIONS = 3
_LARGEST_VERSION = 128
_BOTH_ALTERNATIVE_NAMES = frozenset((SUBJECT_ALTERNATIVE_NAME, bytes.fromhex("551d12")))
# The types of names (RFC 5280, 4.2.1.6) that both read, and those of them which must not be empty.
_NAMES = frozenset((0x81, 0x82, 0x86, 0x87, 0x88, 0xA0, 0xA4))
_OTHER_NAME, _DIRECTORY_NAME, _REGISTERED_ID = 0xA0, 0xA4, 0x88
_UNIQUE_IDENTIFIERS = frozenset((0x81, 0x82))
_NAMES_WITH_CONTENT = frozenset((0x81, 0x82, 0x86, 0x87))
_RSA = bytes.fromhex("2a864886f70d010101")
_RSA_PSS = bytes.fromhex("2a864886f70d01010a")
_DSA = bytes.fromhex("2a8648ce380401")
_DIFFIE_HELLMAN = frozenset(map(bytes.fromhex, ("2a864886f70d010301", "2a8648ce3e0201")))
_EC = bytes.fromhex("2a8648ce3d0201")
# The curves of today that Java knows by name, with the bytes of a coordinate; older ones are taken for unknown.
_CURVES = {
    bytes.fromhex("2a8648ce3d030101"): 24,  # P-192
    bytes.fromhex("2b81040021"): 28,  # P-224
    bytes.fromhex("2a8648ce3d030107"): 32,  # P-256
    bytes.fromhex("2b81040022"): 48,  # P-384
    bytes.fromhex("2b81040023"): 66,  # P-521
    bytes.fromhex("2b8104000a"): 32,  # secp256k1
    bytes.fromhex("2b2403030208010107"): 32,  # brainpoolP256r1
    bytes.fromhex("2b2403030208010109"): 40,  # brainpoolP320r1
    bytes.fromhex("2b240303020801010b"): 48,  # brainpoolP384r1
    bytes.fromhex("2b240303020801010d"): 64,  # brainpoolP512r1
}
_KEY_LENGTHS = {
    bytes.fromhex("2b656e"): 32,  # X25519
    bytes.fromhex("2b656f"): 56,  # X448
    bytes.fromhex("2b6570"): 32,  # Ed25519
    bytes.fromhex("2b6571"): 57,  # Ed448
}
_UNCOMPRESSED = 0x04
_RSA_BITS = range(505, 16_385)
"""Java counts 512, in whole bytes."""
_LARGE_RSA_BITS = 3072
_LARGE_RSA_EXPONENT_BITS = 64
_MOST_LENGTH_OCTETS = 4
_UTC_TIME, _GENERALIZED_TIME = 0x17, 0x18
_FROM_MONTH_TO_MINUTE = rb"(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:[01]\d|2[0-3])[0-5]\d"
_SUB_IDENTIFIER_BITS = 64


class Reader(enum.StrEnum):
    """A library that reads bundles; OpenSSL, which loads whatever is in one, is always among them."""

    OPENSSL = "openssl"
    GNUTLS = "gnutls"
    JAVA = "java"

    @property
    def label(self) -> str:
        """The name as people write it."""
        return {"openssl": "OpenSSL", "gnutls": "GnuTLS", "java": "Java"}[self.value]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reader that refuses a certificate, and with it the bundle that holds it; and why, for people."""

    reader: Reader
    reason: str


class _Subject:
    """A certificate as the rules look at it; nothing of it is read twice."""

    def __init__(self, der: bytes) -> None:
        self.der = der
        self.fields: Fields = read_fields(der)

    @cached_property
    def extensions(self) -> tuple[Extension, ...]:
        return read_extensions(self.der, self.fields)

    @cached_property
    def elements(self) -> tuple[Element, ...]:
        """All of them, as far as they can be parsed."""
        found: list[Element] = []
        with suppress(DerError):
            found.extend(walk(self.der, read_element(self.der, 0, len(self.der))))
        return tuple(found)

    def algorithm(self, element: Element) -> tuple[bytes, bytes]:
        """The identifier of an algorithm, and its parameters; NULL is the same as none."""
        identifier, *parameters = read_elements(self.der, element)
        given = b"".join(self.der[one.start : one.end] for one in parameters if one.tag != NULL)
        return content_of(self.der, identifier), given

    @cached_property
    def key(self) -> tuple[bytes, bytes, bytes]:
        """The algorithm of the public key, the identifier among its parameters (or nothing), and the key itself."""
        algorithm, bits = read_first(self.der, self.fields.public_key, 2)
        identifier, *parameters = read_elements(self.der, algorithm)
        named = parameters and parameters[0].tag == OBJECT_IDENTIFIER
        return (
            content_of(self.der, identifier),
            content_of(self.der, parameters[0]) if named else b"",
            content_of(self.der, bits)[1:] if bits.tag & ~CONSTRUCTED == BIT_STRING else b"",
        )

    @cached_property
    def key_parameters(self) -> Element | None:
        """The parameters of the public key's algorithm; NULL is the same as none."""
        algorithm = read_first(self.der, self.fields.public_key, 1)[0]
        _, *parameters = read_elements(self.der, algorithm)
        return parameters[0] if parameters and parameters[0].tag != NULL else None


def refusals(der: bytes) -> tuple[Refusal, ...]:
    """Return the readers that refuse the certificate ``der``, which OpenSSL loads; one reason for each."""
    try:
        subject = _Subject(der)
    except DerError:
        return tuple(
            Refusal(reader, "it cannot be parsed") for reader in (Reader.GNUTLS, Reader.JAVA)
        )
    found: dict[Reader, Refusal] = {}
    for reader, rules in _RULES.items():
        for rule in rules:
            try:
                reason = rule(subject)
            except DerError:
                reason = "it cannot be parsed"
            if reason:
                found[reader] = Refusal(reader, reason)
                break
    return tuple(found.values())


def _old_with_extensions(subject: _Subject) -> str:
    old = subject.fields.version < _VERSION_WITH_EXTENSIONS
    if old and subject.fields.extensions is not None:
        return f"it is of version {subject.fields.version} and has extensions"
    return ""


def _doubled_extension(subject: _Subject) -> str:
    identifiers = [extension.identifier for extension in subject.extensions]
    return "it has an extension twice" if len(set(identifiers)) < len(identifiers) else ""


def _unreadable_date(form: bytes) -> Callable[[_Subject], str]:
    """Judge dates by their ``form`` after the year. Both readers take the 31st of any month, and any year."""
    forms = {
        tag: re.compile(year + _FROM_MONTH_TO_MINUTE + form)
        for tag, year in ((_UTC_TIME, rb"\d\d"), (_GENERALIZED_TIME, rb"\d{4}"))
    }

    def rule(subject: _Subject) -> str:
        dates = read_first(subject.der, subject.fields.validity, 2)
        for date in dates:
            known = forms.get(date.tag & ~CONSTRUCTED)
            if known is None or not known.fullmatch(content_of(subject.der, date)):
                return "a date in it cannot be read"
        return ""

    return rule


def _two_algorithms(subject: _Subject) -> str:
    inner, outer = (
        subject.algorithm(one) for one in (subject.fields.signature, subject.fields.outer_signature)
    )
    return "it names two different signature algorithms" if inner != outer else ""


def _broken_alternative_name(subject: _Subject) -> str:
    for extension in subject.extensions:
        if extension.identifier in _BOTH_ALTERNATIVE_NAMES and _has_broken_name(extension.value):
            return "an alternative name in it is broken"
    return ""


def _has_broken_name(value: bytes) -> bool:
    if not _is_well_formed(value) or value[0] != SEQUENCE:
        return True
    names = tuple(read_elements(value, read_element(value, 0, len(value))))
    return any(_is_broken(value, one) for one in names)


def _is_broken(value: bytes, name: Element) -> bool:
    if name.tag not in _NAMES:
        return True
    if name.tag == _OTHER_NAME:
        parts = list(read_elements(value, name))
        return (
            [one.tag for one in parts] != [OBJECT_IDENTIFIER, _OTHER_NAME]
            or _is_large(value, parts[0])
            or len(list(read_elements(value, parts[1]))) != 1
        )
    if name.tag == _DIRECTORY_NAME:
        inner = list(read_elements(value, name))
        return [one.tag for one in inner] != [SEQUENCE] or any(
            part.tag != SET
            or any(_is_no_attribute(value, one) for one in read_elements(value, part))
            for part in read_elements(value, inner[0])
        )
    if name.tag == _REGISTERED_ID:
        return name.content == name.content_end or _is_large(value, name)
    return name.tag in _NAMES_WITH_CONTENT and name.content == name.content_end


def _is_no_attribute(value: bytes, attribute: Element) -> bool:
    parts = list(read_elements(value, attribute)) if attribute.tag == SEQUENCE else []
    is_one = len(parts) == 2 and parts[0].tag == OBJECT_IDENTIFIER  # noqa: PLR2004 - type and value
    return not is_one or _is_large(value, parts[0])


def _large_identifier(subject: _Subject) -> str:
    identifiers = (one for one in subject.elements if one.tag == OBJECT_IDENTIFIER)
    is_large = any(_is_large(subject.der, one) for one in identifiers)
    return "an identifier in it has a number of more than 64 bits" if is_large else ""


def _is_large(data: bytes, identifier: Element) -> bool:
    """Whether a number of an OBJECT IDENTIFIER (X.690, 8.19) has more than 64 bits, or a zero in front."""
    number = octets = 0
    for octet in content_of(data, identifier):
        number = number << 7 | octet & 0x7F
        octets += 1
        if number.bit_length() > _SUB_IDENTIFIER_BITS or (octets == 1 and octet == 0x80):  # noqa: PLR2004 - nothing, and more
            return True
        if octet < 0x80:  # noqa: PLR2004 - the last one
            number = octets = 0
    return False


def _unique_identifiers(subject: _Subject) -> list[Element]:
    der = subject.der
    signed = read_first(der, read_element(der, 0, len(der)), 1)[0]
    return [
        one for one in read_elements(der, signed) if one.tag & ~CONSTRUCTED in _UNIQUE_IDENTIFIERS
    ]


def _unique_identifier(subject: _Subject) -> str:
    """GnuTLS takes one without bits, as if there were none."""
    found = _unique_identifiers(subject)
    if any(one.tag & CONSTRUCTED for one in found):
        return "a unique identifier in it is in pieces"
    has_bits = any(one.content_end - one.content > 1 for one in found)
    old = subject.fields.version == 1
    return "it is of version 1 and has a unique identifier" if old and has_bits else ""


def _any_unique_identifier(subject: _Subject) -> str:
    found = _unique_identifiers(subject)
    if not all(parses_bits(subject.der, one) for one in found):
        return "a unique identifier in it is broken"
    old = subject.fields.version == 1
    return "it is of version 1 and has a unique identifier" if old and found else ""


def _other_version_with_extensions(subject: _Subject) -> str:
    other = subject.fields.version != _VERSION_WITH_EXTENSIONS
    if other and subject.fields.extensions is not None:
        return f"it is of version {subject.fields.version} and has extensions"
    return ""


def _broken_critical_extension(subject: _Subject) -> str:
    for extension in subject.extensions:
        if extension.is_critical and not parses_extension(extension.identifier, extension.value):
            return "a critical extension of it is broken"
    return ""


def _empty_issuer(subject: _Subject) -> str:
    issuer = subject.fields.issuer
    has_attributes = any(
        one.content != one.content_end for one in read_elements(subject.der, issuer)
    )
    return "" if has_attributes else "its issuer is empty"


def _elliptic_key(subject: _Subject) -> str:
    algorithm, curve, point = subject.key
    if algorithm != _EC:
        return ""
    if curve not in _CURVES:
        return "its elliptic curve is none that it knows by name"
    if point[:1] != bytes((_UNCOMPRESSED,)):
        return "its elliptic key is compressed"
    return "" if len(point) == 1 + 2 * _CURVES[curve] else "its elliptic key is broken"


def _modern_key(subject: _Subject) -> str:
    algorithm, _, key = subject.key
    length = _KEY_LENGTHS.get(algorithm)
    return "its key has a wrong length" if length is not None and len(key) != length else ""


def _rsa_key(subject: _Subject) -> str:  # noqa: PLR0911 - one for each reason
    algorithm, _, key = subject.key
    if algorithm not in {_RSA, _RSA_PSS}:
        return ""
    try:
        outermost = read_element(key, 0, len(key))
        numbers = list(read_elements(key, outermost))
    except DerError:
        return "its RSA key is broken"
    if outermost.tag != SEQUENCE or outermost.end != len(key) or len(numbers) != 2:  # noqa: PLR2004 - modulus and exponent
        return "its RSA key is broken"
    modulus, exponent = (int.from_bytes(content_of(key, one)) for one in numbers)
    if any(one.tag != _INTEGER for one in numbers) or modulus <= exponent or exponent < 3:  # noqa: PLR2004 - the smallest one
        return "its RSA key is broken"
    bits = modulus.bit_length()
    if bits not in _RSA_BITS:
        return f"its RSA key has {bits} bits"
    if bits > _LARGE_RSA_BITS and exponent.bit_length() > _LARGE_RSA_EXPONENT_BITS:
        return "its RSA key has a large exponent"
    return ""


def _other_key(subject: _Subject) -> str:
    """Judge keys for DSA and Diffie-Hellman, with their parameters."""
    algorithm, _, key = subject.key
    if algorithm not in {_DSA, *_DIFFIE_HELLMAN}:
        return ""
    parameters = subject.key_parameters
    if parameters is None:
        return "its key has no parameters" if algorithm != _DSA else _broken_integer(key)
    numbers = list(read_elements(subject.der, parameters)) if parameters.tag == SEQUENCE else []
    wanted = {3} if algorithm == _DSA else {2, 3}
    if len(numbers) not in wanted or any(one.tag != _INTEGER for one in numbers):
        return "the parameters of its key are broken"
    return _broken_integer(key)


def _broken_integer(key: bytes) -> str:
    number = read_element(key, 0, len(key))
    is_number = number.tag == _INTEGER and number.content < number.content_end
    return "" if is_number else "its key is broken"


def _pss_parameters(subject: _Subject) -> str:
    """Judge those of a key for RSASSA-PSS and of a signature with one (RFC 4055, 3.1)."""
    fields = subject.fields
    for field in (read_first(subject.der, fields.public_key, 1)[0], fields.signature):
        identifier, *parameters = read_elements(subject.der, field)
        if content_of(subject.der, identifier) != _RSA_PSS:
            continue
        if parameters and parameters[0].tag != NULL and not parses_pss(subject.der, parameters[0]):
            return "the parameters of RSASSA-PSS in it are broken"
    return ""


def _date_with_an_offset(subject: _Subject) -> str:
    dates = read_first(subject.der, subject.fields.validity, 2)
    has_zone = any(not content_of(subject.der, date).endswith(b"Z") for date in dates)
    return "a date in it is not in UTC" if has_zone else ""


def _date_with_a_fraction(subject: _Subject) -> str:
    dates = read_first(subject.der, subject.fields.validity, 2)
    has_fraction = any(b"." in content_of(subject.der, date) for date in dates)
    return "a date in it has a fraction of a second" if has_fraction else ""


def _odd_version(subject: _Subject) -> str:
    version = subject.fields.version
    return (
        "" if 1 <= version <= _LARGEST_VERSION else "its version is negative or has several octets"
    )


def _string_in_pieces(subject: _Subject) -> str:
    der, fields = subject.der, subject.fields
    *_, signature = read_first(der, read_element(der, 0, len(der)), 3)
    *_, key = read_first(der, fields.public_key, 2)
    strings = (*read_first(der, fields.validity, 2), key, signature)
    in_pieces = any(one.tag & CONSTRUCTED for one in strings)
    return "a date, its key or its signature is in pieces" if in_pieces else ""


def _extension_in_pieces(subject: _Subject) -> str:
    in_pieces = any(extension.in_pieces for extension in subject.extensions)
    return "an extension of it is in pieces" if in_pieces else ""


def _open_length(subject: _Subject) -> str:
    is_open = any(map(_is_open, subject.elements))
    return "a length in it is left open" if is_open else ""


def _open_length_of_a_field(subject: _Subject) -> str:
    """Java reads a field again by itself; it closes open lengths where they begin further out, and in an extension."""
    der = subject.der
    outermost = read_element(der, 0, len(der))
    signed = read_first(der, outermost, 1)[0]
    key = subject.fields.public_key
    fields = [one for one in read_elements(der, signed) if one.tag != EXTENSIONS]
    is_open = any(_is_open(one) for one in (*fields, read_first(der, key, 1)[0]))
    closes = _is_open(outermost) or _is_open(signed)
    return "the length of a field is left open" if is_open and not closes else ""


def _is_open(element: Element) -> bool:
    return element.content_end != element.end


def _wide_length(subject: _Subject) -> str:
    for element in subject.elements:
        if element.content - element.start > 2 + _MOST_LENGTH_OCTETS:
            return "a length in it has more than four octets"
    return ""


def _long_tag(subject: _Subject) -> str:
    der = subject.der
    is_long = any(der[one.start] & TAG_NUMBER == TAG_NUMBER for one in subject.elements)
    return "a tag in it has more than one octet" if is_long else ""


def _primitive_sequence(subject: _Subject) -> str:
    """OpenSSL reads a SEQUENCE and a SET without the bit that says that they hold elements."""
    sequences = {SEQUENCE & ~CONSTRUCTED, SET & ~CONSTRUCTED}
    is_odd = any(one.tag in sequences for one in subject.elements)
    return "a sequence in it is not marked as one" if is_odd else ""


def _is_well_formed(value: bytes) -> bool:
    """Whether a value is one element, filled by elements all the way down."""
    try:
        outermost = read_element(value, 0, len(value))
        for _ in walk(value, outermost):
            pass
    except DerError:
        return False
    return outermost.end == len(value)


_ALL: tuple[Callable[[_Subject], str], ...] = (
    _doubled_extension,
    _two_algorithms,
    _string_in_pieces,
    _primitive_sequence,
)
_RULES: dict[Reader, tuple[Callable[[_Subject], str], ...]] = {
    Reader.GNUTLS: (
        _old_with_extensions,
        _unique_identifier,
        *_ALL,
        _odd_version,
        _date_with_an_offset,
        _date_with_a_fraction,
        _unreadable_date(rb"(?:[0-5]\d|60)?Z"),
        _large_identifier,
        _broken_alternative_name,
        _extension_in_pieces,
        _open_length,
    ),
    Reader.JAVA: (
        _other_version_with_extensions,
        _any_unique_identifier,
        *_ALL,
        _unreadable_date(rb"(?:Z|[0-5]\d(?:[.,]\d+)?(?:Z|[+-](?:[01]\d|2[0-3])[0-5]\d))"),
        _empty_issuer,
        _elliptic_key,
        _rsa_key,
        _modern_key,
        _other_key,
        _pss_parameters,
        _open_length_of_a_field,
        _broken_critical_extension,
        _wide_length,
        _long_tag,
    ),
}
