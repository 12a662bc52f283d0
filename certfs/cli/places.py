"""Where the commands look: a mount, a store that is not mounted, or this host itself.

Owns finding out which bundles there are, by what a running mount says of itself or else by the configuration, and
reading their sources. Works without a running server.
"""

import errno
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from certfs import procfs
from certfs.cli.json_forms import seconds_of
from certfs.client.mount import canonical
from certfs.client.query import ask_host, ask_instance, ask_mount
from certfs.config import DEFAULT_FILE, Config, load_config
from certfs.core.bundle import PLATFORM_BUNDLES, BundleSpec
from certfs.core.certificate import Severity, parse_source
from certfs.core.readers import Reader
from certfs.core.text import printable
from certfs.errors import CertfsError, ConfigError, DeadlineError, NotMountedError, from_os_error
from certfs.identity.bundles import BUNDLE_LIMIT, expand_bundles
from certfs.identity.paths import DOM0, HostPaths, read_file
from certfs.linux.processes import in_child
from certfs.protocol import state_file, timeouts
from certfs.protocol.report import MountReport
from certfs.store.backing import FileId, file_id
from certfs.store.bundle import LiveBundle
from certfs.store.bundles import Trust
from certfs.store.cached import names_in
from certfs.store.directories import Roots
from certfs.store.inspection import Item, inspect

_DEAD = frozenset((errno.ENOTCONN, errno.ECONNABORTED))
"""What the kernel answers for a mount whose server is dead (fuse.rst of the kernel)."""


@dataclass(frozen=True, slots=True)
class Incomplete:
    """A source that a mount counts as it was ``since`` then, with these ``certificates``, because it is being written.

    ``source`` is its path from the root of the mount; ``writers`` are for people, empty where none is known.
    """

    source: bytes
    since: float
    writers: str
    certificates: frozenset[str]


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look: the ``roots`` of a store or a mount, what bundles there are, and the host's own directories.

    ``is_live`` if a mount makes the bundles that are seen there.
    """

    roots: dict[bytes, str]
    specs: tuple[BundleSpec, ...]
    config: Config
    paths: HostPaths | None
    is_live: bool = False
    incomplete: tuple[Incomplete, ...] = ()
    silent: tuple[str, ...] = ()
    """Directories that a mount reads sources from and that do not answer it."""
    named: tuple[str, ...] = ()
    """By which words of a command line it was found; none for the host."""

    def command(self, name: str) -> str:
        """Return a certfs command line that looks at the same place."""
        return shlex.join(["certfs", name, *map(printable, self.named)])

    @property
    def host(self) -> HostPaths | None:
        """The host's own directories with its bundles: also the platform's that nothing makes here."""
        if self.paths is None:
            return None
        trees = {name: os.fsencode(path) for name, path in self.roots.items()}
        if self.paths.root is None:
            # Also where it is not presented, because it came later: then its bundles are plain files.
            trees.setdefault(b"trusted-certs", os.fsencode(self.paths.trusted_certs))
        served = expand_bundles(trees, self.specs)
        made = (replace(place, is_made=self.is_live) for place in served)
        places = (*made, *expand_bundles(trees, PLATFORM_BUNDLES))
        by_bundle = {place.bundle: place for place in reversed(places)}
        return replace(self.paths, bundles=tuple(reversed(by_bundle.values())))

    @property
    def not_presented(self) -> tuple[str, ...]:
        """The host's directories that the configuration presents and its running mount does not."""
        if not self.is_live or self.paths is None or self.paths.root is not None:
            return ()
        presented = set(self.roots.values())
        return tuple(tree for tree in self.config.dom0_trees if canonical(tree) not in presented)

    def path(self, components: tuple[bytes, ...]) -> str:
        """Return the absolute path of what has this path from the root of the mount."""
        if b"" in self.roots:
            return os.fsdecode(b"/".join((os.fsencode(self.roots[b""]), *components)))
        return os.fsdecode(b"/".join((os.fsencode(self.roots[components[0]]), *components[1:])))


def find_place(mountpoint: str | None, store: str | None, config_file: str | None) -> Place:
    """Return the place that the command line names; CertfsError where there is nothing to look at.

    A directory of the host's own mount, such as /etc/stunnel, stands for the host.
    """
    named = (("--store", store), ("--config", config_file), ("", mountpoint))
    words = (word for option, value in named if value is not None for word in (option, value))
    return replace(_find_place(mountpoint, store, config_file), named=tuple(filter(None, words)))


def _find_place(mountpoint: str | None, store: str | None, config_file: str | None) -> Place:
    if mountpoint is not None and store is not None:
        raise click.UsageError("MOUNTPOINT and --store exclude each other")
    if store is not None:
        if config_file is None and (status := _status_of(store)) is not None:
            return _mounted(store, status, None)
        config = load_config(config_file)
        return _standalone(store, config.bundles, config)
    if mountpoint is None or canonical(mountpoint) in _host_trees(config_file):
        return _host(config_file)
    status = _status_of(mountpoint)
    if status is None:
        raise NotMountedError(
            f"{mountpoint} is not a certfs mount",
            advice="name where it is mounted, or --store DIR for a store",
        )
    return _mounted(mountpoint, status, config_file)


def host_paths(store: Path | None) -> HostPaths:
    """Return the directories and bundles of the host, or of a store or mount, as they are served now."""
    if store is not None:
        paths = HostPaths.of_store(Path(os.path.abspath(store)))
        status = _status_of(str(store))
        if status is None:
            return paths
        roots = {b"": str(paths.root)}
        place = Place(roots, _specs_of(status), load_config(None), paths, is_live=True)
        return place.host or paths
    try:
        return _host(None).host or DOM0
    except NotMountedError:
        return DOM0
    except ConfigError as error:
        # A certificate can be installed all the same; certfs mount reports the error.
        click.echo(f"warning: {error}; the platform's bundles are assumed", err=True)
        return DOM0


def _host_trees(config_file: str | None) -> set[str]:
    status = _host_status()
    if status is not None:
        return {mount.target for mount in status.mounts}
    return {canonical(tree) for tree in host_config(config_file).dom0_trees}


def host_config(config_file: str | None) -> Config:
    """Return the configuration by which the host's own mount would be made now. ConfigError."""
    if config_file is None and os.path.lexists(DEFAULT_FILE):
        config_file = DEFAULT_FILE
    return load_config(config_file, host=True)


def _host(config_file: str | None) -> Place:
    status = _host_status() if config_file is None else None
    if status is None:
        config = host_config(config_file)
        candidates, specs = config.dom0_trees, config.bundles
    else:
        config = _config_of(status, host=True)
        candidates = tuple(mount.target for mount in status.mounts)
        specs = _specs_of(status)
    trees = {
        os.fsencode(os.path.basename(tree)): tree for tree in candidates if _is_directory(tree)
    }
    if not trees:
        raise NotMountedError(
            f"there is no {' or '.join(candidates)} on this host",
            advice="name a MOUNTPOINT, or --store DIR",
        )
    place = Place(trees, specs, config, DOM0, is_live=status is not None)
    return _with_findings(place, status) if status else place


def _host_status() -> MountReport | None:
    """Return what the host's own mount says of itself; None if there is none that answers this user."""
    answer = ask_instance(f"{state_file.runtime_directory()}/dom0") or ask_host()
    return None if answer is None else answer.report


def _config_of(status: MountReport, *, host: bool) -> Config:
    """Return the configuration that a mount serves by; its file may have become unusable meanwhile."""
    try:
        return load_config(status.config_file, host=host)
    except ConfigError:
        return load_config(None, host=host)


def _is_directory(path: str) -> bool:
    """Tell whether there is a directory; DeadlineError where a mount of certfs keeps the answer back."""
    top = procfs.top_at(procfs.mounts(), path)
    if top is not None and top.is_certfs:
        error = in_child(lambda: os.stat(path), timeouts.STATUS)
        if error is not None and (error.errno in _DEAD or isinstance(error, TimeoutError)):
            raise _unanswering(path, error)
    return os.path.isdir(path)


def _standalone(
    directory: str, specs: tuple[BundleSpec, ...], config: Config, *, is_live: bool = False
) -> Place:
    path = os.path.abspath(directory)
    platform = any(spec.source[0] == b"stunnel" for spec in specs)
    paths = HostPaths.of_store(Path(path)) if platform else None
    return Place({b"": path}, specs, config, paths, is_live)


def _status_of(mountpoint: str) -> MountReport | None:
    """Return what a mount says of itself: which bundles it has, and how it is configured. None if it is none.

    A mount that another user made names no configuration file: it could be any that this user may read.
    """
    path = canonical(mountpoint)
    answer = ask_mount(path)
    if answer is None or answer.report is None:
        top = procfs.top_at(procfs.mounts(), path)
        if top is not None and top.is_certfs:
            raise _unanswering(path, in_child(lambda: os.stat(path), timeouts.STATUS))
        return None
    return answer.report if answer.is_trusted else replace(answer.report, config_file=None)


def _unanswering(path: str, error: OSError | None) -> CertfsError:
    if error is not None and error.errno in _DEAD:
        return from_os_error(path, error)
    return DeadlineError(
        f"{path} is mounted and does not say how it is",
        advice=f"certfs status {shlex.quote(printable(path))} says more",
    )


def _mounted(mountpoint: str, status: MountReport, config_file: str | None) -> Place:
    config = load_config(config_file) if config_file else _config_of(status, host=False)
    place = _standalone(mountpoint, _specs_of(status), config, is_live=True)
    return _with_findings(place, status)


def _specs_of(status: MountReport) -> tuple[BundleSpec, ...]:
    return tuple(
        BundleSpec(
            _components(bundle.source),
            _components(bundle.bundle),
            tuple(map(os.fsencode, bundle.suffixes)),
            tuple(reader for reader in Reader if reader.value in bundle.readers),
        )
        for bundle in status.bundles or ()
    )


def _with_findings(place: Place, status: MountReport) -> Place:
    """Return the place with what only the server knows; one of an older release does not say."""
    silent = {place for bundle in status.bundles or () for place in bundle.not_answering or ()}
    return replace(place, incomplete=_incomplete_of(status), silent=tuple(sorted(silent)))


def _incomplete_of(status: MountReport) -> tuple[Incomplete, ...]:
    return tuple(
        Incomplete(
            os.fsencode(f"{bundle.source}/{one.source}"),
            _moment(one.since),
            ", ".join(f"process {by.pid} ({by.command})" for by in one.writers),
            frozenset(one.certificates),
        )
        for bundle in status.bundles or ()
        for one in bundle.being_written or ()
    )


def _moment(text: str) -> float:
    try:
        return seconds_of(text)
    except ValueError:
        raise NotMountedError(
            f"a mount says that {text!r} is a moment", advice="it is no certfs"
        ) from None


def _components(path: str) -> tuple[bytes, ...]:
    parts = tuple(os.fsencode(part) for part in path.split("/"))
    if not {b"", b".", b".."}.isdisjoint(parts):
        raise NotMountedError(
            f"a mount says that {path!r} is a path in it", advice="it is no certfs"
        )
    return parts


def items_of(place: Place, bundle: LiveBundle) -> list[Item]:
    """Return what a bundle holds and what was left out of it; where a mount makes it, what is served counts."""
    items = list(inspect(bundle))
    return list(_as_served(place, bundle, items)) if place.is_live else items


def _as_served(place: Place, bundle: LiveBundle, items: list[Item]) -> Iterator[Item]:
    try:
        content = read_file(Path(place.path(bundle.spec.bundle)), limit=BUNDLE_LIMIT)
        served = {one.fingerprint: one for one in parse_source(content).certificates}
    except FileNotFoundError:
        served = {}
    for item in items:
        known = None if item.certificate is None else item.certificate.fingerprint
        if not item.included or known in served:
            yield item
        else:
            yield replace(item, included=False, reason="not in the bundle yet: it is being written")
    directory = b"/".join(bundle.spec.source) + b"/"
    kept = {
        fingerprint: one.source
        for one in place.incomplete
        if one.source.startswith(directory)
        for fingerprint in one.certificates
    }
    listed = {item.certificate.fingerprint for item in items if item.certificate is not None}
    for fingerprint, certificate in served.items():
        if fingerprint not in listed:
            source = kept.get(fingerprint.hex())
            reason = "it is being written" if source else "its directory is replaced"
            yield Item(
                b"/".join(bundle.spec.bundle),
                source or b"/".join(bundle.spec.source),
                certificate,
                included=True,
                severity=Severity.NOTE,
                reason=f"kept while {reason}",
            )


@contextmanager
def opened(place: Place) -> Iterator[Trust]:
    """Read all sources of a place."""
    with ExitStack() as stack:
        directories = {}
        for name, path in place.roots.items():
            try:
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                names_in(fd)
            except OSError as e:
                raise from_os_error(path, e) from None
            directories[name] = fd
        _refuse_unreachable(place)
        trust = Trust(
            Roots(directories),
            place.specs,
            is_busy=_written_in(place).__contains__,
            observer=lambda _: None,
            size_limit=place.config.source_size_limit,
            is_served=place.is_live,
        )
        stack.callback(trust.close)
        trust.load()
        _refuse_unreadable(trust, place)
        yield trust


def _written_in(place: Place) -> set[FileId]:
    """Return the files that a mount holds for being written."""
    found = set()
    for each in place.incomplete:
        with suppress(OSError):
            found.add(file_id(os.lstat(place.path(tuple(each.source.split(b"/"))))))
    return found


def _refuse_unreachable(place: Place) -> None:
    """Refuse to look for sources in a directory that this user may not search."""
    for spec in place.specs:
        if b"" not in place.roots and spec.source[0] not in place.roots:
            continue  # a tree that this host does not have
        path = place.path(spec.source[:-1] or spec.source)
        try:
            os.stat(os.path.join(path, os.curdir))
        except PermissionError as e:
            raise from_os_error(printable(path), e) from None
        except OSError:
            continue  # then there are no sources


def _refuse_unreadable(trust: Trust, place: Place) -> None:
    """Refuse to call a directory empty that may not be read."""
    for bundle in trust.bundles:
        if bundle.directory is not None:
            try:
                names_in(bundle.directory)
            except OSError as e:
                raise from_os_error(printable(place.path(bundle.spec.source)), e) from None


_place_options = (
    click.option("--store", metavar="DIR", help="Look at a store that is not mounted."),
    click.option(
        "--config", "config_file", metavar="FILE", help="The configuration that names the bundles."
    ),
    click.option("--json", "as_json", is_flag=True, help="Answer with JSON, for programs."),
)


def with_place(function: Any) -> Any:  # noqa: ANN401 - a decorator of decorators
    """Add the argument and the options that name a place."""
    for option in reversed(_place_options):
        function = option(function)
    return click.argument("mountpoint", required=False)(function)
