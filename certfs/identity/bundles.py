"""The bundles of a host as plain files: where they are, whether they are current, and bringing them up to date.

Owns what the platform's script does after a change, for a bundle that no mount of certfs makes: nothing is mounted, or
the configuration turns it off. On a mount there is nothing to do: the bundles follow by themselves, and a mount that
comes later writes the plain copies anew (promise I12). Which bundles a host has is said by the caller in
``HostPaths.bundles``; without it they are the platform's.
"""

import contextlib
import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from certfs import procfs
from certfs.core.bundle import PLATFORM_BUNDLES, BundleSpec
from certfs.core.catalog import Catalog, Source
from certfs.core.certificate import Certificate, parse_source
from certfs.identity.paths import (
    PUBLIC_MODE,
    BundlePlace,
    HostPaths,
    file_errors,
    open_directory,
    read_file,
)
from certfs.procfs import is_ours
from certfs.safe_open import LinkRefusedError, open_trusted
from certfs.store.atomic import write_atomic
from certfs.store.backing import status_at
from certfs.store.cached import names_in
from certfs.store.path_walk import PathWalker, nowhere
from certfs.store.source_reader import SourceReader, source_names

_BACKUP_SUFFIX = b".bk"
BUNDLE_LIMIT = 256 << 20
"""Bytes of a plain bundle: more than 100,000 certificates."""


def bundle_places(paths: HostPaths) -> tuple[BundlePlace, ...]:
    """Return where each bundle of the host is, or would be; those of a pattern by the directories that there are."""
    if paths.bundles is not None:
        return paths.bundles
    trees = {
        b"stunnel": os.fsencode(paths.stunnel),
        b"trusted-certs": os.fsencode(paths.trusted_certs),
    }
    return tuple(expand_bundles(trees, PLATFORM_BUNDLES))


def expand_bundles(
    trees: Mapping[bytes, bytes], specs: Iterable[BundleSpec]
) -> Iterator[BundlePlace]:
    """Yield the places of the bundles of ``specs``; ``trees`` are directories by the first part of a path.

    The tree with the empty name is the root of all paths.
    """
    for spec in specs:
        for one in _expand(trees, spec):
            source, bundle = _located(trees, one.source), _located(trees, one.bundle)
            if source is not None and bundle is not None:
                yield BundlePlace(
                    Path(os.fsdecode(source)), Path(os.fsdecode(bundle)), one.suffixes, one.readers
                )


def _expand(trees: Mapping[bytes, bytes], spec: BundleSpec) -> Iterator[BundleSpec]:
    if not spec.is_pattern:
        yield spec
        return
    names = _directories(_located(trees, spec.source[:-1]))
    # A bundle whose directory has gone is found by its own name.
    inverse = BundleSpec(source=spec.bundle, bundle=spec.source)
    for name in _names(_located(trees, spec.bundle[:-1])):
        found = inverse.expand(name)
        if found is not None:
            names.add(found.bundle[-1])
    for name in sorted(names):
        found = spec.expand(name)
        if found is not None:
            yield found


def _located(trees: Mapping[bytes, bytes], path: tuple[bytes, ...]) -> bytes | None:
    if b"" in trees:
        return b"/".join((trees[b""], *path))
    return b"/".join((trees[path[0]], *path[1:])) if path and path[0] in trees else None


def _directories(parent: bytes | None) -> set[bytes]:
    return {
        name
        for name in _names(parent)
        if not name.endswith(_BACKUP_SUFFIX) and os.path.isdir(os.path.join(parent or b"", name))
    }


def _names(directory: bytes | None) -> list[bytes]:
    if directory is not None:
        with contextlib.suppress(OSError), open_directory(directory) as fd:
            return names_in(fd)
    return []


def update_bundles_of(paths: HostPaths, source: Path) -> None:
    """Write the bundles of a source directory anew where no mount makes them.

    A bundle without a certificate is removed (promise I7). Raises ``StoreError``.
    """
    for place in bundle_places(paths):
        if place.source == source:
            update_bundle(place)


def update_bundle(place: BundlePlace) -> None:
    """Write one bundle anew from its source directory where no mount makes it. Raises ``StoreError``."""
    with file_errors(place.bundle):
        if is_made_by_a_mount(place):
            return
        name = os.fsencode(place.bundle.name)
        content = _content(place)
        with open_directory(place.bundle.parent) as directory:
            if not content:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
            elif content != _present(place.bundle):
                try:
                    write_atomic(directory, name, content, mode=PUBLIC_MODE)
                except PermissionError:
                    if not is_made_by_a_mount(place):  # by now it may be
                        raise


def is_stale(place: BundlePlace) -> bool:
    """Tell whether a plain bundle holds other certificates than its source directory.

    How they are written does not matter: the platform's script copies files as they are. A bundle
    that a mount makes is never stale. Raises ``OSError``.
    """
    if is_made_by_a_mount(place):
        return False
    wanted = parse_source(_content(place)).certificates
    return {one.fingerprint for one in wanted} != {
        one.fingerprint for one in certificates_in_bundle(place.bundle)
    }


def certificates_in_bundle(bundle: Path) -> tuple[Certificate, ...]:
    """Return the certificates that a reader of a bundle gets now; none where it cannot be read."""
    return parse_source(_present(bundle)).certificates


def is_made_by_a_mount(place: BundlePlace) -> bool:
    """Tell whether a live mount of certfs makes this bundle, which its file alone does not show.

    On a mount it is immutable by nature: opened for writing it answers EPERM (promise I8). A file that the mount
    passes through does not. Of one that is missing the mount itself has to say so.
    """
    if not _is_on_a_mount(place.bundle.parent):
        return False
    try:
        os.close(open_trusted(os.fsencode(place.bundle), os.O_WRONLY | os.O_NONBLOCK))
    except FileNotFoundError:
        return place.is_made
    except LinkRefusedError:
        return False
    except PermissionError as error:
        # EACCES: this user may not know. Who may not write it does not have to.
        return error.errno in {errno.EPERM, errno.EACCES}
    return False


def _is_on_a_mount(directory: Path) -> bool:
    """Tell whether ``directory`` is on a mount of certfs that root or this user has made."""
    try:
        with open_directory(directory) as fd:
            mount = procfs.mount_of(fd)
    except (FileNotFoundError, LinkRefusedError):
        # Who is about to write there is told of the link.
        return False
    return mount is not None and is_ours(mount)


def _content(place: BundlePlace) -> bytes:
    catalog = Catalog()
    with (
        contextlib.suppress(FileNotFoundError, NotADirectoryError),
        open_directory(place.source) as directory,
    ):
        catalog.update(dict(_sources(directory, place)))
    view = catalog.snapshot()
    return view.read(0, view.size)


def _sources(directory: int, place: BundlePlace) -> Iterator[tuple[bytes, Source]]:
    reader = SourceReader(PathWalker(nowhere), readers=place.readers)
    for name in source_names(directory, lambda name: name.endswith(place.suffixes)):
        status = status_at(directory, name)
        # What cannot be read contributes nothing; the health check and ``certfs list`` say why.
        reading = reader.read(directory, name, status) if status is not None else None
        if reading is not None:
            yield name, reading.source


def _present(bundle: Path) -> bytes:
    with contextlib.suppress(OSError):
        return read_file(bundle, limit=BUNDLE_LIMIT)
    return b""
