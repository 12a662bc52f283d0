"""The identity of a store that has none yet: made once, never changed afterwards.

Owns which files a standalone store needs and the order in which they appear, so that the
next run completes an interrupted one. Must not know who mounts the store.
"""

import contextlib
import os
import uuid
from dataclasses import dataclass

from cryptography.x509.oid import NameOID

from certfs.errors import StoreError
from certfs.identity.generate import generate_pool_certificate, generate_server_certificate
from certfs.identity.hostpem import HostPem, parse_host_pem, public_pem
from certfs.identity.paths import (
    CERTS_POOL,
    KEY_MODE,
    POOL_PEM,
    POOL_PEM_NEW,
    PUBLIC_MODE,
    SERVER_PEM,
    SOURCE_DIRECTORY_MODE,
    is_present,
    open_directory,
    read_file,
)
from certfs.identity.subject import host_names
from certfs.store.atomic import create_exclusive, write_atomic

STATE = b".certfs"
HOST_UUID = b"host-uuid"
_DIRECTORY_MODE = 0o755


@dataclass(frozen=True, slots=True)
class IdentityReport:
    """What :func:`ensure_identity` made, and what it found and left alone.

    ``created`` are paths within the store, ``problems`` sentences for people.
    """

    host_uuid: str
    created: tuple[str, ...]
    problems: tuple[str, ...]


def host_uuid(store_fd: int) -> str:
    """Return the UUID of the host that a standalone store stands for, from ``.certfs/host-uuid``.

    Where there is none yet it is the one in the store's pool certificate, which other
    hosts may know already, or a new one; either way it is kept. Raises ``StoreError`` if the file holds something
    else.
    """
    with open_directory(STATE, within=store_fd, create_mode=_DIRECTORY_MODE) as state:
        if not is_present(HOST_UUID, within=state):
            made = _uuid_of_pool_certificate(store_fd) or str(uuid.uuid4())
            # Another process may have been faster: then the store has its UUID.
            with contextlib.suppress(FileExistsError):
                create_exclusive(state, HOST_UUID, f"{made}\n".encode(), mode=PUBLIC_MODE)
        text = read_file(HOST_UUID, within=state).decode("utf-8", "replace").strip()
    known = parse_uuid(text)
    if known is None:
        raise StoreError(
            ".certfs/host-uuid in the store does not hold a UUID",
            advice="write the host's UUID into it, or remove it to get a new one",
        )
    return known


def parse_uuid(text: str) -> str | None:
    """Return ``text`` as a UUID in its usual form, or None if it is none."""
    with contextlib.suppress(ValueError):
        return str(uuid.UUID(text))
    return None


def common_name(pem: HostPem) -> str:
    """Return the CN of the host's certificate; empty if it has none."""
    names = pem.leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if names else ""


def ensure_identity(store_fd: int, *, host_uuid: str) -> IdentityReport:
    """Make the host certificates that the store in the directory ``store_fd`` lacks.

    These are ``xensource/xapi-ssl.pem``, ``xensource/xapi-pool-tls.pem`` and the public part of the
    latter, ``stunnel/certs-pool/UUID.pem``, which is made together with the key and not again when
    it was removed. A file that is there stays as it is. Raises ``OSError``.
    """
    created: list[str] = []
    problems: list[str] = []
    with (
        open_directory(b"xensource", within=store_fd, create_mode=_DIRECTORY_MODE) as xensource,
        open_directory(b"stunnel", within=store_fd, create_mode=_DIRECTORY_MODE) as stunnel,
        open_directory(CERTS_POOL, within=stunnel, create_mode=SOURCE_DIRECTORY_MODE) as certs_pool,
    ):
        if _make_server_pem(xensource):
            created.append("xensource/xapi-ssl.pem")
        if is_present(POOL_PEM_NEW, within=xensource) and not is_present(
            POOL_PEM, within=xensource
        ):
            # The platform's refresh has a moment without the file, between two renames.
            problems.append(
                "xensource/xapi-pool-tls.pem is missing after an interrupted refresh: "
                "run certfs repair"
            )
        elif not is_present(POOL_PEM, within=xensource):
            public_name = f"{host_uuid}.pem"
            _make_pool_pem(xensource, certs_pool, host_uuid, os.fsencode(public_name))
            created += ["xensource/xapi-pool-tls.pem", f"stunnel/certs-pool/{public_name}"]
    return IdentityReport(host_uuid, tuple(created), tuple(problems))


def _make_server_pem(xensource: int) -> bool:
    if is_present(SERVER_PEM, within=xensource):
        return False
    pem = generate_server_certificate(host_names())
    return _create(xensource, SERVER_PEM, pem.render(), mode=KEY_MODE)


def _make_pool_pem(xensource: int, certs_pool: int, host_uuid: str, public_name: bytes) -> None:
    """Make the pool certificate: first its public part, then the file with the key.

    In this order an interruption leaves no key, and the next run makes both anew. Once the key is
    there the public part is never written again: who removed it meant it.
    """
    pem = generate_pool_certificate(host_uuid)
    write_atomic(certs_pool, public_name, public_pem(pem.leaf), mode=PUBLIC_MODE)
    _create(xensource, POOL_PEM, pem.render(), mode=KEY_MODE)


def _create(directory: int, name: bytes, data: bytes, *, mode: int) -> bool:
    """Create the file unless another process just did; tell whether it was made here."""
    with contextlib.suppress(FileExistsError):
        create_exclusive(directory, name, data, mode=mode)
        return True
    return False


def _uuid_of_pool_certificate(store_fd: int) -> str | None:
    with contextlib.suppress(OSError), open_directory(b"xensource", within=store_fd) as xensource:
        found = parse_host_pem(read_file(POOL_PEM, within=xensource))
        if isinstance(found, HostPem):
            return parse_uuid(common_name(found))
    return None
