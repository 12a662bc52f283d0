"""Where ``certfs list`` and ``certfs check`` look: a mount, a store that is not mounted, or this host itself.

Owns finding out which bundles there are and reading their sources; needs nobody to be serving.
"""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import click

from certfs.config import DEFAULT_FILE, Config, load_config
from certfs.core.bundle import BundleSpec
from certfs.core.text import printable
from certfs.errors import NotMountedError, StoreError
from certfs.identity.paths import DOM0, HostPaths
from certfs.store.roles import Roots
from certfs.store.trust import Trust

_STATUS = ".certfs/status.json"
_DEAD = frozenset((errno.ENOTCONN, errno.ECONNABORTED))
"""What the kernel answers for a mount whose server is dead (fuse.rst of the kernel)."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where to look: the ``roots`` of a store or a mount, what bundles there are, and the host's own directories."""

    roots: dict[bytes, str]
    specs: tuple[BundleSpec, ...]
    config: Config
    paths: HostPaths | None


def find_place(mountpoint: str | None, store: str | None, config_file: str | None) -> Place:
    """Return the place that the command line names; CertfsError where there is nothing to look at."""
    if mountpoint is not None and store is not None:
        raise click.UsageError("MOUNTPOINT and --store exclude each other")
    if (
        config_file is None
        and os.path.lexists(DEFAULT_FILE)
        and store is None
        and mountpoint is None
    ):
        config_file = DEFAULT_FILE
    config = load_config(config_file)
    if store is not None:
        return _standalone(store, config.bundles, config)
    if mountpoint is not None:
        return _mounted(mountpoint, config_file)
    trees = {
        os.fsencode(os.path.basename(tree)): tree
        for tree in config.dom0_trees
        if _is_directory(tree)
    }
    if not trees:
        raise NotMountedError(
            f"there is no {' or '.join(config.dom0_trees)} on this host",
            advice="name a MOUNTPOINT, or --store DIR",
        )
    return Place(trees, config.bundles, config, DOM0)


def _is_directory(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except OSError as e:
        if e.errno in _DEAD:
            raise _dead_mount(path, e) from None
        return False


def _dead_mount(path: str, error: OSError) -> StoreError:
    return StoreError(
        f"{path}: {error.strerror}",
        advice="the processes that served it are dead: certfs mount serves it again, certfs unmount takes it away",
    )


def _standalone(directory: str, specs: tuple[BundleSpec, ...], config: Config) -> Place:
    path = os.path.abspath(directory)
    platform = any(spec.source[0] == b"stunnel" for spec in specs)
    from pathlib import Path  # noqa: PLC0415 - HostPaths speaks Path, nothing else here does

    return Place({b"": path}, specs, config, HostPaths.of_store(Path(path)) if platform else None)


def _mounted(mountpoint: str, config_file: str | None) -> Place:
    """Return the place that a mount is: it says itself which bundles it has, and how it is configured."""
    try:
        with open(os.path.join(mountpoint, _STATUS), "rb") as file:
            status = json.load(file)
        specs = tuple(
            BundleSpec(_components(bundle["source"]), _components(bundle["bundle"]))
            for bundle in status["bundles"]
        )
        config_file = config_file or status["config_file"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        if isinstance(e, OSError) and e.errno in _DEAD:
            raise _dead_mount(mountpoint, e) from None
        raise NotMountedError(
            f"{mountpoint} is not a certfs mount",
            advice="name where it is mounted, or --store DIR for a store",
        ) from None
    return _standalone(mountpoint, specs, load_config(config_file))


def _components(path: str) -> tuple[bytes, ...]:
    return tuple(os.fsencode(part) for part in path.split("/"))


@contextmanager
def opened(place: Place) -> Iterator[Trust]:
    """Read all sources of a place."""
    with ExitStack() as stack:
        directories = {}
        for name, path in place.roots.items():
            try:
                fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                os.listdir(path)
            except OSError as e:
                raise StoreError(
                    f"{path}: {e.strerror}", advice="name a directory that you may read"
                ) from None
            directories[name] = fd
        trust = Trust(
            Roots(directories),
            place.specs,
            is_busy=lambda _: False,
            observer=lambda _: None,
            size_limit=place.config.source_size_limit,
        )
        stack.callback(trust.close)
        trust.load()
        _refuse_unreadable(trust, place)
        yield trust


def _refuse_unreadable(trust: Trust, place: Place) -> None:
    """Refuse to call a directory empty that may not be read."""
    for bundle in trust.bundles:
        if bundle.directory is not None:
            try:
                os.listdir(f"/proc/self/fd/{bundle.directory}")
            except OSError as e:
                root = next(iter(place.roots.values())) if b"" in place.roots else "/etc"
                source = printable(b"/".join(bundle.spec.source))
                raise StoreError(
                    f"{root}/{source}: {e.strerror}", advice="run this as root"
                ) from None


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
