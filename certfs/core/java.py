"""Which values of extensions and parameters Java can parse.

It refuses a certificate with a critical extension that it knows and cannot parse. Owns the rules, those of
sun.security.x509 and sun.security.rsa in Java 17; `certfs.core.readers` asks. A value that Java's constructor would
raise for is a `DerError` in here.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from certfs.core.der import (
    BIT_STRING,
    OBJECT_IDENTIFIER,
    SEQUENCE,
    SET,
    DerError,
    Element,
    content_of,
    read_element,
    read_elements,
)

_BOOLEAN: Final = 0x01
_INTEGER: Final = 0x02
_OCTET_STRING: Final = 0x04
_PRIMITIVE: Final = 0x80
_CONSTRUCTED: Final = 0xA0
"""Context-specific tags, to which their number is added."""
_MGF1: Final = bytes.fromhex("2a864886f70d010108")
_DIGESTS: Final = frozenset(
    (
        bytes.fromhex("2b0e03021a"),  # SHA-1, and SHA-2
        *(bytes.fromhex("6086480165030402") + bytes((number,)) for number in range(1, 7)),
    )
)
_MOST_UNUSED_BITS: Final = 7
_MOST_OF_EDI: Final = 2
_LARGEST: Final = 1 << 31
_ADDRESS_LENGTHS: Final = frozenset((4, 8, 16, 32))
"""With a mask or without: Java looks no further."""
# As java.net.URI has it (RFC 2396), as far as names of the field go; DNSName for those that constrain.
_URI: Final = re.compile(
    rb"[A-Za-z][A-Za-z0-9+.-]*:(?!#)(?:[\w.!~*'();/?:@&=+$,\[\]-]|[\x80-\xff]|%[0-9A-Fa-f]{2})+"
    rb"(?:#(?:[\w.!~*'();/?:@&=+$,\[\]-]|[\x80-\xff]|%[0-9A-Fa-f]{2})*)?"
)
_SUB_IDENTIFIERS: Final = re.compile(rb"(?:(?!\x80)[\x80-\xff]*[\0-\x7f])+")
_HOST: Final = re.compile(rb"\.?[A-Za-z0-9][A-Za-z0-9-]*(?:\.[A-Za-z0-9][A-Za-z0-9-]*)*")
_MAIL: Final = re.compile(rb"(?!.*@\Z)(?!(?:[^@]*@)?\.\Z).+", re.DOTALL)
_TIME: Final = re.compile(
    rb"\d{4}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?:[01]\d|2[0-3])[0-5]\d"
    rb"(?:Z|[0-5]\d(?:[.,]\d+)?(?:Z|[+-](?:[01]\d|2[0-3])[0-5]\d))"
)


def parses_extension(identifier: bytes, value: bytes) -> bool:
    """Whether Java can parse the value of the extension with the content ``identifier``, or does not know it."""
    check = _EXTENSIONS.get(identifier)
    if check is None:
        return True
    try:
        element = read_element(value, 0, len(value))
        check(_Value(value, element))
    except DerError:
        return False
    return element.end == len(value)


def parses_pss(data: bytes, parameters: Element) -> bool:
    """Whether Java can parse the parameters of RSASSA-PSS (RFC 4055, 3.1)."""
    return _parses(_pss, data, parameters)


def parses_bits(data: bytes, bits: Element) -> bool:
    """Whether Java can parse a BIT STRING, with whatever tag stands for it."""
    return _parses(_bits, data, bits)


@dataclass(frozen=True, slots=True)
class _Value:
    data: bytes
    element: Element

    @property
    def tag(self) -> int:
        return self.element.tag

    @property
    def content(self) -> bytes:
        return content_of(self.data, self.element)

    def __iter__(self) -> Iterator["_Value"]:
        return (_Value(self.data, one) for one in read_elements(self.data, self.element))


_Check = Callable[[_Value], None]


def _parses(check: _Check, data: bytes, element: Element) -> bool:
    try:
        check(_Value(data, element))
    except DerError:
        return False
    return True


def _refuse(*, where: bool) -> None:
    if where:
        raise DerError("Java refuses it")


def _first(values: Iterator[_Value]) -> _Value:
    value = next(values, None)
    if value is None:
        raise DerError("Java wants one more")
    return value


def _sequence_of(check: _Check, *, empty: bool = True) -> _Check:
    def every(value: _Value) -> None:
        _refuse(where=value.tag != SEQUENCE)
        _in_each(check, value, empty=empty)

    return every


def _in_each(check: _Check, value: _Value, *, empty: bool = True) -> None:
    inner = list(value)
    _refuse(where=not inner and not empty)
    for one in inner:
        check(one)


def _tagged(choices: dict[int, _Check], *, repeats: bool = False) -> _Check:
    """Take a SEQUENCE of tagged elements, each of them optional."""

    def check(value: _Value) -> None:
        _refuse(where=value.tag != SEQUENCE)
        seen = set()
        for one in value:
            _refuse(where=one.tag not in choices or (one.tag in seen and not repeats))
            seen.add(one.tag)
            choices[one.tag](one)

    return check


def _integer(value: _Value) -> None:
    """Take 32 bits, with whatever tag stands for an INTEGER."""
    content = value.content
    number = int.from_bytes(content, signed=True)
    _refuse(where=not content or not -_LARGEST <= number < _LARGEST)


def _number(value: _Value) -> None:
    _refuse(where=not value.content)


def _plain_integer(value: _Value) -> None:
    _refuse(where=value.tag != _INTEGER)
    _integer(value)


def _skipped_certificates(value: _Value) -> None:
    _plain_integer(value)
    _refuse(where=int.from_bytes(value.content, signed=True) < -1)


def _bits(value: _Value) -> None:
    content = value.content
    _refuse(
        where=not content
        or content[0] > _MOST_UNUSED_BITS
        or (len(content) == 1 and content[0] > 0)
    )


def _plain_bits(value: _Value) -> None:
    _refuse(where=value.tag != BIT_STRING)
    _bits(value)


def _octets(value: _Value) -> None:
    _refuse(where=value.tag != _OCTET_STRING)


def _anything(_value: _Value) -> None:
    pass


def _identifier(value: _Value) -> None:
    _refuse(where=value.tag != OBJECT_IDENTIFIER)
    _identifier_content(value)


def _identifier_content(value: _Value) -> None:
    content = value.content
    _refuse(where=not _SUB_IDENTIFIERS.fullmatch(content))


def _time(value: _Value) -> None:
    _refuse(where=not _TIME.fullmatch(value.content))


# --- names


def _matches(form: re.Pattern[bytes]) -> _Check:
    def check(value: _Value) -> None:
        _refuse(where=not form.fullmatch(value.content))

    return check


def _address(value: _Value) -> None:
    _refuse(where=len(value.content) not in _ADDRESS_LENGTHS)


def _other_name(value: _Value) -> None:
    parts = iter(value)
    _identifier(_first(parts))
    _first(parts)


def _directory_name(value: _Value) -> None:
    inner = list(value)
    relative = inner[0] if inner and inner[0].tag == SEQUENCE else value
    _in_each(_relative_name, relative)


def _relative_name(value: _Value) -> None:
    _refuse(where=value.tag != SET)
    _in_each(_attribute, value)


def _attribute(value: _Value) -> None:
    _refuse(where=value.tag != SEQUENCE)
    parts = iter(value)
    _identifier(_first(parts))
    _first(parts)
    _refuse(where=next(parts, None) is not None)


def _edi_party(value: _Value) -> None:
    _refuse(where=not 1 <= len(list(value)) <= _MOST_OF_EDI)


_NAMES: Final[dict[int, _Check]] = {
    _CONSTRUCTED + 0: _other_name,
    _PRIMITIVE + 1: _matches(_MAIL),
    _PRIMITIVE + 2: _anything,
    _CONSTRUCTED + 3: _anything,
    _CONSTRUCTED + 4: _directory_name,
    _CONSTRUCTED + 5: _edi_party,
    _PRIMITIVE + 6: _matches(_URI),
    _PRIMITIVE + 7: _address,
    _PRIMITIVE + 8: _identifier_content,
}
_CONSTRAINING_NAMES: Final = {**_NAMES, _PRIMITIVE + 6: _matches(_HOST)}


def _name(value: _Value) -> None:
    _refuse(where=value.tag not in _NAMES)
    _NAMES[value.tag](value)


def _tagged_names(value: _Value) -> None:
    _in_each(_name, value, empty=False)


_names: Final = _sequence_of(_name, empty=False)


# --- parameters of an algorithm


def _algorithm(value: _Value) -> _Value | None:
    """Take an algorithm; return its parameters."""
    _refuse(where=value.tag != SEQUENCE)
    parts = iter(value)
    _identifier(_first(parts))
    parameters = next(parts, None)
    _refuse(where=next(parts, None) is not None)
    return parameters


def _hash(value: _Value) -> None:
    _algorithm(_first(iter(value)))


def _mask(value: _Value) -> None:
    algorithm = _first(iter(value))
    parameters = _algorithm(algorithm)
    _refuse(where=_first(iter(algorithm)).content != _MGF1 or parameters is None)
    if parameters is not None:
        _algorithm(parameters)
        _refuse(where=_first(iter(parameters)).content not in _DIGESTS)


def _salt_length(value: _Value) -> None:
    number = _first(iter(value))
    _plain_integer(number)
    _refuse(where=number.content[0] >= 0x80)  # noqa: PLR2004 - negative


def _trailer(value: _Value) -> None:
    number = _first(iter(value))
    _plain_integer(number)
    _refuse(where=int.from_bytes(number.content) != 1)


_pss: Final = _tagged(
    {
        _CONSTRUCTED: _hash,
        _CONSTRUCTED + 1: _mask,
        _CONSTRUCTED + 2: _salt_length,
        _CONSTRUCTED + 3: _trailer,
    },
    repeats=True,
)


# --- extensions


def _constraints(value: _Value) -> None:
    _refuse(where=value.tag != SEQUENCE)
    parts = iter(value)
    authority = next(parts, None)
    if authority is None or authority.tag != _BOOLEAN:
        return
    _refuse(where=len(authority.content) != 1)
    length = next(parts, None)
    if length is not None:
        _plain_integer(length)


def _subtree(value: _Value) -> None:
    _refuse(where=value.tag != SEQUENCE)
    parts = iter(value)
    base = _first(parts)
    _refuse(where=base.tag not in _CONSTRAINING_NAMES)
    _CONSTRAINING_NAMES[base.tag](base)
    for bound in parts:
        _refuse(where=bound.tag not in {_PRIMITIVE, _PRIMITIVE + 1})
        _integer(bound)


def _subtrees(value: _Value) -> None:
    _in_each(_subtree, value)


def _policy(value: _Value) -> None:
    _refuse(where=value.tag != SEQUENCE)
    parts = iter(value)
    _identifier(_first(parts))
    qualifiers = next(parts, None)
    if qualifiers is not None:
        _sequence_of(_qualifier, empty=False)(qualifiers)


def _qualifier(value: _Value) -> None:
    _refuse(where=value.tag != SEQUENCE)
    _identifier(_first(iter(value)))


def _mapping(value: _Value) -> None:
    _refuse(where=value.tag != SEQUENCE)
    parts = iter(value)
    for _ in range(2):
        _identifier(_first(parts))


def _access(value: _Value) -> None:
    parts = iter(value)
    _identifier(_first(parts))
    _name(_first(parts))


def _point_name(value: _Value) -> None:
    form = _first(iter(value))
    _refuse(where=form.tag not in {_CONSTRUCTED, _CONSTRUCTED + 1})
    if form.tag == _CONSTRUCTED:
        _tagged_names(form)
    else:
        _in_each(_attribute, form)


_point_parts: Final = _tagged(
    {_CONSTRUCTED: _point_name, _PRIMITIVE + 1: _bits, _CONSTRUCTED + 2: _tagged_names}
)


def _point(value: _Value) -> None:
    _point_parts(value)
    _refuse(where={one.tag for one in value}.isdisjoint((_CONSTRUCTED, _CONSTRUCTED + 2)))


_points: Final = _sequence_of(_point)
_ACCESS: Final = _sequence_of(_access)
_EXTENSIONS: Final[dict[bytes, _Check]] = {
    bytes.fromhex(identifier): check
    for identifier, check in {
        "551d0e": _octets,  # subject key identifier
        "551d0f": _plain_bits,  # key usage
        "551d10": _tagged({_PRIMITIVE: _time, _PRIMITIVE + 1: _time}),  # private key usage period
        "551d11": _names,  # subject alternative name
        "551d12": _names,  # issuer alternative name
        "551d13": _constraints,  # basic constraints
        "551d14": _plain_integer,  # CRL number
        "551d1b": _plain_integer,  # delta CRL indicator
        "551d1c": _sequence_of(_anything),  # issuing distribution point
        "551d1d": _names,  # certificate issuer
        "551d1e": _tagged({_CONSTRUCTED: _subtrees, _CONSTRUCTED + 1: _subtrees}),
        "551d1f": _points,  # CRL distribution points
        "551d20": _sequence_of(_policy),  # certificate policies
        "551d21": _sequence_of(_mapping),  # policy mappings
        "551d23": _tagged(  # authority key identifier
            {_PRIMITIVE: _anything, _CONSTRUCTED + 1: _tagged_names, _PRIMITIVE + 2: _number}
        ),
        "551d24": _tagged({_PRIMITIVE: _integer, _PRIMITIVE + 1: _integer}),  # policy constraints
        "551d25": _sequence_of(_identifier),  # extended key usage
        "551d2e": _points,  # freshest CRL
        "551d36": _skipped_certificates,  # inhibit any policy
        "2b06010505070101": _ACCESS,  # authority information access
        "2b0601050507010b": _ACCESS,  # subject information access
        "6086480186f8420101": _plain_bits,  # Netscape's type
    }.items()
}
