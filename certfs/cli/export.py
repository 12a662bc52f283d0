"""``certfs export``: a bundle in the form that another reader wants, written where it wants it.

Owns what is written, and in which order: no reader of the output ever misses a certificate that was there before and
is there afterwards. The forms themselves are ``certfs.core.formats``.
"""

import errno
import os
import re
import stat
from pathlib import Path
from typing import Final

import click
import msgspec

from certfs.cli.answers import json_option, say, warn
from certfs.cli.json_forms import Exported, ExportFormat, answer, file_form
from certfs.cli.json_forms import LeftOut as LeftOutForm
from certfs.core.formats import LeftOut, certificates_of, hash_directory, java_truststore
from certfs.core.pem import render
from certfs.errors import StoreError
from certfs.identity.bundles import BUNDLE_LIMIT
from certfs.identity.paths import file_errors, host_directory, open_directory, read_file
from certfs.store.atomic import write_atomic
from certfs.store.cached import names_in

_MODE: Final = 0o644
_MARKER: Final = b".certfs-export"
_MARKER_TEXT: Final = (
    b"certfs export made this directory: it replaces and removes the files HASH.N in it.\n"
)
_HASH_NAME: Final = re.compile(r"[0-9a-f]{8}\.[0-9]{1,9}")


@click.command(
    epilog="\b\nExamples:\n"
    "  certfs export /etc/stunnel/xapi-pool-ca-bundle.pem --format pkcs12 --output /etc/pool.p12\n"
    "  java -Djavax.net.ssl.trustStore=/etc/pool.p12 ...\n"
    "  certfs export tls/ca.pem --format hash-directory --output /etc/ssl/pool\n"
    "  openssl s_client -CApath /etc/ssl/pool -connect host:443"
)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["pem", "pkcs12", "hash-directory"]),
    default="pem",
    show_default=True,
    help="pem: a plain file. pkcs12: a trust store for Java, without a password. hash-directory: "
    "a CApath of OpenSSL, as openssl rehash makes it.",
)
@click.option(
    "--output",
    required=True,
    metavar="PATH",
    type=click.Path(path_type=Path),
    help="The file to write, or the directory to fill.",
)
@click.option(
    "--remove-empty",
    is_flag=True,
    help="Where BUNDLE does not exist (as it does not when it has no certificate), remove what was "
    "exported before. Without this it is an error.",
)
@json_option
def export(
    *, bundle: Path, form: ExportFormat, output: Path, remove_empty: bool, as_json: bool
) -> None:
    """Write the certificates of BUNDLE in another form, for a reader that cannot use the bundle itself.

    The output is replaced atomically, and only if it changes; its mode is 0644. Run it again after
    each change of the bundle. A directory is one that certfs export made; other files in it stay.
    """
    bundle, output = Path(os.path.abspath(bundle)), Path(os.path.abspath(output))
    certificates = _read(bundle, may_be_missing=remove_empty)
    changed, left_out = _write(form, certificates, output)
    held = len(certificates) - len(left_out)
    if as_json:
        answer(
            Exported(
                bundle=file_form(bundle),
                output=file_form(output),
                format=form,
                certificates=held,
                changed=changed,
                left_out=msgspec.convert(left_out, tuple[LeftOutForm, ...], from_attributes=True),
            )
        )
    else:
        say(f"{output}: {_state(held, changed=changed)}")
        warn(*(f"left out {one.sha256}: {one.reason}" for one in left_out))


def _write(
    form: str, certificates: tuple[bytes, ...], output: Path
) -> tuple[bool, tuple[LeftOut, ...]]:
    """Write the form; return whether that changed anything, and what it does not hold."""
    if form == "hash-directory":
        files, left_out = hash_directory(certificates)
        return _write_directory(output, files), left_out
    if form == "pkcs12":
        data, left_out = java_truststore(certificates)
    else:
        data, left_out = b"".join(map(render, certificates)), ()
    return _write_file(output, data) if data else _remove_file(output), left_out


def _state(certificates: int, *, changed: bool) -> str:
    if not certificates:
        return "removed: no certificate is left" if changed else "no certificate, nothing there"
    return f"{'written' if changed else 'is up to date'}, certificates: {certificates}"


def _read(bundle: Path, *, may_be_missing: bool) -> tuple[bytes, ...]:
    """Return the certificates of a bundle, none where it may be missing and is."""
    try:
        with file_errors(bundle):
            certificates = tuple(certificates_of(read_file(bundle, limit=BUNDLE_LIMIT)))
    except StoreError as error:
        cause = error.__cause__
        is_missing = isinstance(cause, OSError) and cause.errno == errno.ENOENT
        if not is_missing:
            raise
        if may_be_missing and bundle.parent.is_dir():
            return ()
        raise StoreError(
            f"{bundle}: no such file",
            advice="check the path; a bundle without a certificate does not exist, and --remove-empty "
            "then removes what was exported before",
        ) from None
    if not certificates:
        raise StoreError(
            f"{bundle}: no certificate in it", advice="name a bundle, or another PEM file"
        )
    return certificates


def _write_file(output: Path, data: bytes) -> bool:
    with host_directory(output.parent) as directory, file_errors(output):
        name = os.fsencode(output.name)
        if _holds(directory, name, data):
            return False
        write_atomic(directory, name, data, mode=_MODE)
        return True


def _holds(directory: int, name: bytes, data: bytes) -> bool:
    try:
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno == errno.ELOOP:  # a link: replaced by the file
            return False
        raise
    with open(fd, "rb") as file:
        return stat.S_ISREG(os.fstat(fd).st_mode) and file.read(len(data) + 1) == data


def _remove_file(output: Path) -> bool:
    with host_directory(output.parent) as directory, file_errors(output):
        try:
            os.unlink(os.fsencode(output.name), dir_fd=directory)
        except FileNotFoundError:
            return False
    return True


def _write_directory(output: Path, files: dict[str, bytes]) -> bool:
    """Make a directory hold ``files`` as its hash files: what is new is added before anything is removed."""
    with file_errors(output), open_directory(output, create_mode=0o755) as directory:
        if not _holds(directory, _MARKER, _MARKER_TEXT):
            if names_in(directory):
                raise StoreError(
                    f"{output}: is not empty, and certfs export did not make it",
                    advice="name a new or an empty directory: the files HASH.N in it are replaced",
                )
            write_atomic(directory, _MARKER, _MARKER_TEXT, mode=_MODE)
        return _synchronise(directory, files)


def _synchronise(directory: int, files: dict[str, bytes]) -> bool:
    before = {
        name: _read_hash_file(directory, name)
        for name in sorted(map(os.fsdecode, names_in(directory)))
        if _HASH_NAME.fullmatch(name)
    }
    if before == files:
        return False
    additions = _displaced(before, files) | files
    for name, data in additions.items():
        if before.get(name) != data:
            write_atomic(directory, name.encode(), data, mode=_MODE)
    # The highest number of a subject first: a reader stops at the first that is missing.
    for name in sorted(before.keys() | additions.keys(), key=_number, reverse=True):
        if name not in files:
            os.unlink(name, dir_fd=directory)
    return True


def _displaced(before: dict[str, bytes], files: dict[str, bytes]) -> dict[str, bytes]:
    """Return further names for what is to stay under another number: it must not be missing while numbers change."""
    displaced: dict[str, bytes] = {}
    for name, data in before.items():
        subject = _subject(name)
        stays = any(_subject(other) == subject and files[other] == data for other in files)
        if stays and files.get(name) != data:
            number = 0
            while (free := f"{subject}.{number}") in before or free in files or free in displaced:
                number += 1
            displaced[free] = data
    return displaced


def _subject(name: str) -> str:
    return name.partition(".")[0]


def _number(name: str) -> int:
    return int(name.partition(".")[2])


def _read_hash_file(directory: int, name: str) -> bytes:
    """Return the content of a file of an earlier export; nothing for what is none, which is then replaced."""
    try:
        fd = os.open(
            name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory
        )
    except OSError as error:
        if error.errno in {errno.ELOOP, errno.ENXIO}:  # a link, a socket
            return b""
        raise
    with open(fd, "rb") as file:
        return file.read(BUNDLE_LIMIT) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
