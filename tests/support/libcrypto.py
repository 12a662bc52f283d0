"""OpenSSL's own functions, called in this process: the oracle for what OpenSSL reads and how it prints a name.

Owns the calls of the system's libcrypto, which is what the `openssl` program and stunnel use. A call costs
microseconds, a program's start 10 ms; tests/support/test_libcrypto.py holds the two against each other.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

ONELINE = 0x7 | 0x10 | 0x100 | 0x200 | 2 << 16 | 1 << 23 | 0x8
"""XN_FLAG_ONELINE of openssl/x509.h."""
RFC2253 = 0x7 | 0x10 | 0x100 | 0x200 | 1 << 16 | 1 << 20 | 1 << 24
"""XN_FLAG_RFC2253."""
LOGGED = ONELINE & ~0x4 & ~(1 << 23)
"""What stunnel prints: the former without ASN1_STRFLGS_ESC_MSB and XN_FLAG_SPC_EQ (X509_NAME2text in src/verify.c)."""

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
_FUNCTIONS = {
    "BIO_new_file": (_POINTER, [ctypes.c_char_p, ctypes.c_char_p]),
    "BIO_new": (_POINTER, [_POINTER]),
    "BIO_s_mem": (_POINTER, []),
    "BIO_free": (_INT, [_POINTER]),
    "BIO_read": (_INT, [_POINTER, ctypes.c_char_p, _INT]),
    "BIO_ctrl": (ctypes.c_long, [_POINTER, _INT, ctypes.c_long, _POINTER]),
    "PEM_read_bio_X509_AUX": (_POINTER, [_POINTER, _POINTER, _POINTER, ctypes.c_char_p]),
    "PEM_X509_INFO_read_bio": (_POINTER, [_POINTER, _POINTER, _POINTER, ctypes.c_char_p]),
    "OPENSSL_sk_num": (_INT, [_POINTER]),
    "OPENSSL_sk_value": (_POINTER, [_POINTER, _INT]),
    "OPENSSL_sk_pop_free": (None, [_POINTER, _POINTER]),
    "X509_INFO_free": (None, [_POINTER]),
    "d2i_X509": (_POINTER, [_POINTER, _POINTER, ctypes.c_long]),
    "i2d_X509": (_INT, [_POINTER, _POINTER]),
    "X509_free": (None, [_POINTER]),
    "X509_get_subject_name": (_POINTER, [_POINTER]),
    "X509_subject_name_hash": (ctypes.c_ulong, [_POINTER]),
    "X509_get_issuer_name": (_POINTER, [_POINTER]),
    "X509_NAME_cmp": (_INT, [_POINTER, _POINTER]),
    "X509_NAME_oneline": (_POINTER, [_POINTER, _POINTER, _INT]),
    "X509_NAME_print_ex": (_INT, [_POINTER, _POINTER, _INT, ctypes.c_ulong]),
    "CRYPTO_free": (None, [_POINTER, ctypes.c_char_p, _INT]),
    "ERR_clear_error": (None, []),
    "ERR_peek_last_error": (ctypes.c_ulong, []),
}
_PENDING = 10
_PASSWORD = b"none"  # or OpenSSL would ask for one
_NO_START_LINE = 9 << 23 | 108


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(ctypes.util.find_library("crypto") or "libcrypto.so.3")
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def _der(certificate: int) -> bytes:
    """Encode a certificate that OpenSSL read; it keeps what it was read from."""
    library = _library()
    length = library.i2d_X509(certificate, None)
    buffer = ctypes.create_string_buffer(max(length, 1))
    library.i2d_X509(certificate, ctypes.byref(ctypes.c_void_p(ctypes.addressof(buffer))))
    return buffer.raw[:length]


@contextmanager
def _reading(data: bytes) -> Iterator[int]:
    """Read from a file: a NUL means something else in one than in memory."""
    library = _library()
    library.ERR_clear_error()
    file = os.memfd_create("certfs test")
    try:
        os.write(file, data)
        bio = library.BIO_new_file(b"/proc/self/fd/%d" % file, b"r")
        yield bio
        library.BIO_free(bio)
    finally:
        os.close(file)
        library.ERR_clear_error()


def certificates(pem: bytes) -> tuple[list[bytes], bool]:
    """Read certificate after certificate, as SSL_CTX_use_certificate_chain_file does, up to the first that fails.

    Returns the DER of each, and whether the end of the text is why there are no more.
    """
    library = _library()
    found = []
    with _reading(pem) as bio:
        while certificate := library.PEM_read_bio_X509_AUX(bio, None, None, _PASSWORD):
            found.append(_der(certificate))
            library.X509_free(certificate)
        return found, library.ERR_peek_last_error() & 0xFFFFFFFF == _NO_START_LINE


def authorities(pem: bytes) -> list[bytes] | None:
    """Read a whole CAfile, as X509_load_cert_crl_file does: the DER of each, None if it refuses the file."""
    library = _library()
    with _reading(pem) as bio:
        stack = library.PEM_X509_INFO_read_bio(bio, None, None, _PASSWORD)
        if not stack:
            return None
        found = []
        for index in range(library.OPENSSL_sk_num(stack)):
            info = library.OPENSSL_sk_value(stack, index)
            certificate = ctypes.cast(info, ctypes.POINTER(ctypes.c_void_p))[0]
            if certificate:
                found.append(_der(certificate))
        library.OPENSSL_sk_pop_free(stack, ctypes.cast(library.X509_INFO_free, ctypes.c_void_p))
        return found


@contextmanager
def _parsed(der: bytes) -> Iterator[int | None]:
    library = _library()
    buffer = ctypes.create_string_buffer(der, len(der))
    start = ctypes.c_void_p(ctypes.addressof(buffer))
    certificate = library.d2i_X509(None, ctypes.byref(start), len(der))
    try:
        yield certificate
    finally:
        library.X509_free(certificate)
        library.ERR_clear_error()


def loads(der: bytes) -> bool:
    """Whether OpenSSL parses this certificate."""
    with _parsed(der) as certificate:
        return certificate is not None


def normalized(der: bytes) -> bytes | None:
    """Give a certificate as OpenSSL encodes it, which is not as it was where that was not DER; None if it is none."""
    with _parsed(der) as certificate:
        return None if certificate is None else _der(certificate)


def printed_subject(der: bytes, flags: int) -> bytes:
    """Print the subject as X509_NAME_print_ex(3) does."""
    library = _library()
    with _parsed(der) as certificate:
        bio = library.BIO_new(library.BIO_s_mem())
        library.X509_NAME_print_ex(bio, library.X509_get_subject_name(certificate), 0, flags)
        length = library.BIO_ctrl(bio, _PENDING, 0, None)
        buffer = ctypes.create_string_buffer(length + 1)
        library.BIO_read(bio, buffer, length)
        library.BIO_free(bio)
        return buffer.raw[:length]


def subject_oneline(der: bytes) -> bytes:
    """Print the subject as X509_NAME_oneline(3) does."""
    library = _library()
    with _parsed(der) as certificate:
        text = library.X509_NAME_oneline(library.X509_get_subject_name(certificate), None, 0)
        printed = ctypes.string_at(text)
        library.CRYPTO_free(text, None, 0)
        return printed


def subject_hash(der: bytes) -> str | None:
    """Give the hash of the subject as `openssl x509 -subject_hash` prints it; None if OpenSSL does not parse it."""
    with _parsed(der) as certificate:
        return (
            None if certificate is None else f"{_library().X509_subject_name_hash(certificate):08x}"
        )


def sha256(der: bytes) -> str:
    """Give the fingerprint as the tests write it."""
    return hashlib.sha256(der).hexdigest()
