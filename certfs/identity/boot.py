"""The platform's certificate generator at boot, ``gencert``.

Owns what that program does (``ocaml/gencert/gencert.ml`` in xapi-project/xen-api): a key and
certificate where there is no file, nothing at all where there is one.
"""

import os
from enum import StrEnum
from pathlib import Path

from cryptography import x509

from certfs.errors import CertfsError
from certfs.identity.ensure import parse_uuid
from certfs.identity.generate import generate_pool_certificate, generate_server_certificate
from certfs.identity.listing import need_host_uuid
from certfs.identity.paths import KEY_MODE, HostPaths, file_errors, host_directory
from certfs.identity.subject import host_names, read_inventory
from certfs.store.atomic import create_exclusive, write_atomic

NO_GROUP = -1
_GROUP_MODE = 0o440


class NoAddressError(CertfsError):
    """The management interface has no address yet, which the certificate would have to name."""

    exit_code = 35


class Presented(StrEnum):
    """To whom the certificate is shown: everybody, or clients that ask for the name of the pool."""

    DEFAULT = "default"
    POOL = "xapi:pool"


def generate_if_missing(
    path: Path, presented: Presented, *, group: int = NO_GROUP
) -> x509.Certificate | None:
    """Make the file unless it is there; return its certificate if it was made.

    ``group`` is the id of a group that may read it, negative for none.
    """
    if presented is Presented.POOL:
        # Outside of the platform the file is in a store: DIR/xensource/xapi-pool-tls.pem.
        known = parse_uuid(read_inventory().host_uuid)
        store = HostPaths.of_store(Path(os.path.abspath(path)).parent.parent)
        pem = generate_pool_certificate(known or need_host_uuid(store))
    else:
        names = host_names()
        if read_inventory().management_interface and not names.addresses:
            raise NoAddressError(
                f"{path} cannot be generated: the management interface has no address",
                advice="run this again when the network is up",
            )
        pem = generate_server_certificate(names)
    mode, owner = (KEY_MODE, None) if group < 0 else (_GROUP_MODE, (-1, group))
    name = os.fsencode(path.name)
    with host_directory(path.parent) as directory, file_errors(path):
        try:
            create_exclusive(directory, name, pem.render(), mode=mode, owner=owner)
        except FileExistsError:
            if path.exists():
                return None
            # A link that leads nowhere: the platform replaces it by the file.
            write_atomic(directory, name, pem.render(), mode=mode, owner=owner)
    return pem.leaf
