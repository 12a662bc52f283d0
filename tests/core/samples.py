"""Values for the tests of order and storage, made without any cryptography.

Owns small stand-ins for certificates: what ``Catalog`` looks at and nothing else.
"""

from __future__ import annotations

import hashlib

from certfs.core.catalog import Source
from certfs.core.certificate import Certificate, Fingerprint, SourceContent


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
