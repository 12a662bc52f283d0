"""Fuzz the judgement of source files: ``scripts/fuzz`` runs this with atheris at hand.

An input is either a whole file, or a body that is wrapped as a block of a certificate's label beside a good one. For
each the promises are checked: nothing raises, the good neighbour stays, what is accepted reads back as itself and is
read by OpenSSL, reasons are few and short.
"""

from __future__ import annotations

import importlib
import ssl
import sys
from pathlib import Path
from typing import Any

atheris: Any = importlib.import_module("atheris")

with atheris.instrument_imports(include=["certfs"]):
    from certfs.core.catalog import Catalog, Source
    from certfs.core.certificate import CERTIFICATE_LABELS, parse_source

from tests.support import pki, pki_forms  # noqa: E402 - what is tested has to be imported first

LABELS = sorted(label.encode() for label in CERTIFICATE_LABELS)
NEIGHBOUR = pki.authority("neighbour", key=pki.ec_key())


class BrokenPromiseError(Exception):
    """An input for which certfs does not do what it says."""


def require(kept: bool, promise: str) -> None:  # noqa: FBT001 - as assert, and not left out with -O
    """Stop at an input that breaks a promise."""
    if not kept:
        raise BrokenPromiseError(promise)


def file_of(data: bytes) -> tuple[bytes, bool]:
    """Turn an input into a file, and tell whether the good certificate must come out of it."""
    if not data or data[0] >= 2 * len(LABELS):
        return data[1:], False
    label = LABELS[data[0] % len(LABELS)]
    block = pki_forms.block(label, data[1:])
    before = data[0] < len(LABELS)
    return (block + NEIGHBOUR.pem if before else NEIGHBOUR.pem + block), True


def check(data: bytes) -> None:
    """Judge one input and check every promise."""
    file, has_neighbour = file_of(data)
    content = parse_source(file)
    require(bool(content.certificates or content.remarks), "I9: everything has a reason")
    require(len(content.remarks) <= 51, "I18: reasons are few")  # noqa: PLR2004
    require(all(len(remark.reason) < 300 for remark in content.remarks), "I18: and short")  # noqa: PLR2004
    bundle = b"".join(certificate.pem for certificate in content.certificates)
    if has_neighbour:
        require(NEIGHBOUR.pem in bundle, "I4: the good neighbour stays")
    again = parse_source(bundle)
    require(
        again.certificates == content.certificates, "I4: what is written is read back as itself"
    )
    catalog = Catalog()
    catalog.update({b"a.pem": Source(content)})
    in_bundle = b"".join(catalog.snapshot())
    others = len(content.certificates) - has_neighbour
    if others > 0:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            context.load_verify_locations(cadata=in_bundle.decode("ascii"))
        except ssl.SSLError as error:
            raise BrokenPromiseError("I4: OpenSSL reads the bundle") from error
        loaded = context.cert_store_stats()["x509"]
        require(loaded == len(catalog), "I4: OpenSSL finds every certificate")


def seed(corpus: Path) -> None:
    """Put every known form into the corpus."""
    whole = bytes([255])
    for number, form in enumerate(pki_forms.every()):
        (corpus / f"seed-file-{number:03}").write_bytes(whole + form.data)
    for number, identity in enumerate((pki_forms.first(), pki_forms.second())):
        for label in range(2 * len(LABELS)):
            (corpus / f"seed-body-{number}-{label}").write_bytes(bytes([label]) + identity.der)


def main() -> None:
    """Run until libFuzzer's own options end it."""
    seed(Path(sys.argv[-1]))
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
