"""Whether OpenSSL loads a certificate: then it belongs in a bundle, and else it must not get in (promise I4).

Owns the question, and the cheap answer to it. cryptography's strict parser accepts a certificate ten times faster than
OpenSSL does, and what it accepts with everything in it decoded, OpenSSL loads as well. What it refuses says nothing:
OpenSSL is asked then (ADR 6).
"""

import ssl
import warnings

from cryptography import x509

_LONGEST_ORDINARY = 16 << 10
"""Bytes: decoding a hundred thousand names in an extension would stop every other thread."""


def is_ordinary(der: bytes) -> bool:
    """Whether cryptography understands the whole certificate but its names, which it decodes when asked for."""
    if len(der) > _LONGEST_ORDINARY:
        return False
    try:
        with warnings.catch_warnings():
            # A negative serial number and the like are no reason to warn: OpenSSL reads them.
            warnings.simplefilter("ignore")
            certificate = x509.load_der_x509_certificate(der)
            _ = (
                certificate.not_valid_before_utc,
                certificate.not_valid_after_utc,
                certificate.public_key(),
                certificate.extensions,
                certificate.signature_algorithm_parameters,
            )
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException:  # noqa: BLE001 - bindings raise many kinds, and a panic of theirs is no Exception
        return False
    return True


def openssl_loads(pem: bytes) -> bool:
    """Whether OpenSSL loads this one certificate as it would from a CAfile; costs 150 us.

    From DER it would be read by another function, which takes fewer lengths than the one for PEM (asn1_d2i_read_bio).
    """
    # Python takes an error that an earlier call left in OpenSSL's queue, which belongs to the thread, for one of this
    # call, and then empties the queue: only the second refusal surely is about this certificate.
    text = pem.decode("ascii")
    return _loads(text) or _loads(text)


def _loads(pem: str) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except ssl.SSLError:
        return False
    return True
