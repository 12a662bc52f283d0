"""How what certfs takes from a file differs from what OpenSSL loads from it.

Owns the comparison, and the list of differences that are on purpose (docs/bundles.md); knows no other exception. As a
program it compares many damaged files, on as many processors as are asked for; scripts/fuzz does that.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from certfs.core.catalog import Catalog, Source
from certfs.core.certificate import load_certificate, parse_source
from tests.support import libcrypto, mutations

ON_PURPOSE = (
    "name of",  # 1: too long in DER
    "name that is too long when it is printed",  # 1
    "OCSP responder that is too long",  # 2
)
_TRUST_SETTINGS = "trust settings"  # 3


def differences(data: bytes) -> Iterator[str]:
    """Yield, in words, each certificate that OpenSSL loads from a file and certfs leaves out, or the reverse."""
    content = parse_source(data)
    in_bundle = {libcrypto.normalized(each.der) for each in content.certificates}
    read, _ = libcrypto.certificates(data)
    loaded = dict.fromkeys((*read, *(libcrypto.authorities(data) or ())))
    distrusted = sum(_TRUST_SETTINGS in remark.reason for remark in content.remarks)
    for der in loaded:
        if der not in in_bundle:
            judged = load_certificate(der)
            if isinstance(judged, str) and any(reason in judged for reason in ON_PURPOSE):
                continue
            if not isinstance(judged, str) and distrusted:
                distrusted -= 1
                continue
            reasons = [remark.reason for remark in content.remarks]
            yield f"OpenSSL loads a certificate of {len(der)} bytes that is left out: {judged!s:.120} {reasons}"
    catalog = Catalog()
    catalog.update({b"a.pem": Source(content)})
    bundle = b"".join(catalog.snapshot())
    found = libcrypto.authorities(bundle)
    if len(found or ()) != len(catalog) or {*(found or ())} != in_bundle:
        yield f"OpenSSL loads {len(found or ())} of {len(catalog)} certificates from the bundle"


def _try(seed: int) -> tuple[int, bytes, list[str]]:
    data = mutations.file_of(seed)
    return seed, data, list(differences(data))


def main() -> int:
    """Compare files and tell of each difference; the file is kept in the current directory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="the damage that is done first")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    begin = time.monotonic()
    failed = 0
    seeds = range(arguments.seed, arguments.seed + arguments.files)
    with multiprocessing.Pool(arguments.processes) as pool:
        for seed, data, found in pool.imap_unordered(_try, seeds, chunksize=50):
            failed += bool(found)
            for difference in found:
                Path(f"difference-{seed}.pem").write_bytes(data)
                print(f"difference-{seed}.pem: {difference}", flush=True)
    seconds = time.monotonic() - begin
    print(f"{arguments.files} files in {seconds:.0f} s, {failed} of them different")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
