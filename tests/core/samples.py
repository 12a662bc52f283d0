"""Values for the tests of the core, made without any cryptography.

Owns small stand-ins for certificates, what ``Catalog`` looks at and nothing else, and bytes that resemble PEM.
"""

from __future__ import annotations

import hashlib

from hypothesis import strategies as st

from certfs.core.catalog import Source
from certfs.core.certificate import Certificate, Fingerprint, SourceContent

_PIECES = st.sampled_from(
    [
        b"-----BEGIN CERTIFICATE-----",
        b"-----END CERTIFICATE-----",
        b"-----BEGIN RSA PRIVATE KEY-----",
        b"-----END RSA PRIVATE KEY-----",
        b"-----BEGIN ",
        b"-----",
        b"\n",
        b"\r\n",
        b"\r",
        b" ",
        b"#",
        b"\0",
        b"\xef\xbb\xbf",
        b"MAA=",
        b"text",
    ]
)
PEM_LIKE = st.lists(st.one_of(_PIECES, st.binary(max_size=8)), max_size=40).map(b"".join)
"""Bytes that look like PEM far more often than random ones do."""


def certificate(label: str, *, subject: str = "", not_before: int = 0) -> Certificate:
    """Make a certificate whose text is its label; labels are as different as fingerprints."""
    return Certificate(
        fingerprint=Fingerprint(hashlib.sha256(label.encode()).digest()),
        subject_key=(subject or label).encode(),
        not_before=not_before,
        pem=f"[{label}]\n".encode(),
    )


def source(*certificates: Certificate) -> Source:
    """Make the source that holds these certificates as written."""
    return Source(SourceContent(certificates))
