"""How much text a name becomes when a program prints it.

Owns the bounds on that text. stunnel formats a log line into 1,024 bytes and then looks for newlines at the end that
the line would have had (s_vlog in src/log.c, the same from 5.68 to 5.75): it reads, and may write, the stack beyond its
buffer, and crashes where the stack ends. It prints the names of all certificates of a CAfile, and the OCSP responders
that they name. Control characters become three bytes each, so the size of a name's DER says little.

Lengths are upper bounds, a few bytes above the truth at most. The forms are those of X509_NAME_print_ex(3).
"""

from dataclasses import dataclass

LONGEST_LOGGED = 960
"""Bytes of a name or URL in a log line of stunnel: 1,024, less 64 for what the line says before and after it."""

LONGEST_ESCAPED = 4096
"""Bytes of a name in the forms that escape all but ASCII: four for each byte of a name that just can be logged."""

_SEPARATORS = 4  # " + " or ", " before an attribute, and "=" in it
_QUOTES = 2
_DER_HEADER = 6
_LONGEST_TYPE = 79  # OBJ_obj2txt(3) prints an unknown type into 80 bytes.
_LONGEST_SHORT_NAME = 44  # of the 1,104 types that OpenSSL 3.0 knows
# Types that names are made of (RFC 4519), and how OpenSSL abbreviates them.
_SHORT_NAMES = {
    bytes.fromhex("550403"): b"CN",
    bytes.fromhex("550404"): b"SN",
    bytes.fromhex("550405"): b"serialNumber",
    bytes.fromhex("550406"): b"C",
    bytes.fromhex("550407"): b"L",
    bytes.fromhex("550408"): b"ST",
    bytes.fromhex("550409"): b"street",
    bytes.fromhex("55040a"): b"O",
    bytes.fromhex("55040b"): b"OU",
    bytes.fromhex("55040c"): b"title",
    bytes.fromhex("550411"): b"postalCode",
    bytes.fromhex("55042a"): b"GN",
    bytes.fromhex("550461"): b"organizationIdentifier",
    bytes.fromhex("2a864886f70d010901"): b"emailAddress",
    bytes.fromhex("0992268993f22c640119"): b"DC",
}

_CONTROL = bytes((*range(0x20), 0x7F))
_SPECIAL = b'"+,;<>\\#/ '  # RFC 2253 escapes these, some at the ends of a string only; X509_NAME_oneline escapes "/+"
_HIGH = bytes(range(0x80, 0x100))


@dataclass(slots=True)
class Rendering:
    """How long a name has become: ``logged`` as stunnel logs it, ``escaped`` where all but ASCII is escaped.

    The second is the longer of two forms: RFC 2253, and the older X509_NAME_oneline(3).
    """

    logged: int = 0
    escaped: int = 0

    def add(self, attribute_type: bytes, content: bytes, text: bytes | None) -> None:
        """Add an attribute: the content of its type and of its value, and the value as UTF-8.

        ``text`` is None for a value that is no string: its DER is printed in hexadecimal then.
        """
        short_name = _SHORT_NAMES.get(attribute_type)
        if short_name is None:
            # An octet of an object identifier is up to four characters: ".127".
            kind = max(_LONGEST_SHORT_NAME, min(_LONGEST_TYPE, 4 * len(attribute_type) + 4))
        else:
            kind = len(short_name)
        head = kind + _SEPARATORS + _QUOTES
        dumped = 1 + 2 * (len(content) + _DER_HEADER)
        if text is None:
            logged = rfc2253 = dumped
        else:
            logged = len(text) + _count(text, _SPECIAL) + 2 * _count(text, _CONTROL)
            # RFC 2253 has the values of types without a name in hexadecimal, whatever they are.
            rfc2253 = max(logged + 2 * _count(text, _HIGH), 0 if short_name else dumped)
        oneline = len(content) + _count(content, b"/+") + 3 * _count(content, _CONTROL + _HIGH)
        self.logged += head + logged
        self.escaped += head + max(rfc2253, oneline)


def _count(text: bytes, kinds: bytes) -> int:
    return len(text) - len(text.translate(None, kinds))
