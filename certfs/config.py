"""The configuration file: TOML in, one frozen value out.

Owns every key, its default and what is allowed for it. An unknown key or an impossible value is an error that names
the file, the key and what is allowed. Knows nothing of who uses the values. ``docs/config.md`` is the reference.
"""

import itertools
import os
import re
import signal
import stat
import tomllib
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import permutations
from typing import Annotated, Literal

import msgspec

from certfs import procfs
from certfs.core.bundle import PLATFORM_BUNDLES, WILDCARD, BundleSpec
from certfs.core.readers import Reader
from certfs.errors import ConfigError

DEFAULT_FILE = "/etc/certfs.toml"

XENSOURCE = "/etc/xensource"
STUNNEL = "/etc/stunnel"
TRUSTED_CERTS = "/etc/trusted-certs"

OWN_DIRECTORY = ".certfs"
"""Where a mount shows its status and a store keeps its host UUID."""

_DOCUMENTATION = "docs/config.md lists every key"
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,200}\.(service|socket|target|path|timer)")
_FILE_LIMIT = 4 << 20
_DEFAULT_SUFFIXES = (".pem",)
_LONGEST_SUFFIX = 32
_LONGEST = 240
"""Bytes of a name: while a bundle's plain copy is written, its name is a little longer."""


class _BundleTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    source: Annotated[str, msgspec.Meta(min_length=1)]
    bundle: Annotated[str, msgspec.Meta(min_length=1)]
    copy: str = ""
    suffixes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] = _DEFAULT_SUFFIXES
    readers: tuple[Reader, ...] = (Reader.OPENSSL,)


class _Dom0Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    trees: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)] | None = None
    disabled_bundles: tuple[str, ...] = ()


class NotifyTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A reader that is told of changes (I21); exactly one of ``systemd_unit``, ``pid_file`` and ``command`` is given.

    Times are in seconds. ``bundles`` are patterns of paths from the root of the mount, none for all.
    """

    on: Literal["bundle", "host-certificate"] = "bundle"
    bundles: tuple[str, ...] = ()
    systemd_unit: str = ""
    action: Literal["try-reload-or-restart", "reload", "restart"] = "try-reload-or-restart"
    pid_file: str = ""
    signal: str = "HUP"
    process: str = ""
    command: tuple[str, ...] = ()
    user: str = ""
    delay: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 0.5
    max_delay: Annotated[float, msgspec.Meta(ge=0, le=3600)] = 5.0
    min_interval: Annotated[float, msgspec.Meta(ge=0, le=86400)] = 10.0
    timeout: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0


class CheckTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How ``certfs check`` judges the validity of certificates that are among others in a bundle."""

    expiring_days: Annotated[int, msgspec.Meta(ge=0, le=36500)] = 30
    expiring: Literal["note", "warning", "critical"] = "warning"
    expired: Literal["note", "warning", "critical"] = "warning"


_CHECK = CheckTable()


class PoolTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What ``certfs pool run`` believes: with ``require_signature`` only what one of the ``signers`` has approved."""

    require_signature: bool = False
    signers: str = ""


_POOL = PoolTable()


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    host_uuid: str | None = None
    identity: bool | None = None
    source_size_limit: Annotated[int, msgspec.Meta(ge=1024, le=1 << 30)] = 1 << 20
    swap_timeout: Annotated[float, msgspec.Meta(gt=0, le=3600)] = 30.0
    dom0: _Dom0Table = _Dom0Table()
    bundle: list[_BundleTable] | None = None
    notify: tuple[NotifyTable, ...] = ()
    check: CheckTable = CheckTable()
    pool: PoolTable = PoolTable()


_TABLES: dict[str, type[msgspec.Struct]] = {
    "dom0": _Dom0Table,
    "bundle": _BundleTable,
    "notify": NotifyTable,
    "check": CheckTable,
    "pool": PoolTable,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be configured.

    ``bundles`` are paths from the root of the mount. ``host_uuid`` stands for this host in a standalone store, None to
    keep one in the store. ``makes_identity`` if a standalone store without host certificates gets them.
    ``source_size_limit`` is in bytes, ``swap_timeout`` in seconds (I10). ``dom0_trees`` are the directories that are
    presented over themselves, ``dom0_later`` those that join them when they come. ``notify`` are the readers that are
    told of changes, ``check`` how validity is judged, ``copies`` the further plain copies: a bundle, and the absolute
    path of the copy. ``pool`` is what a member of a pool believes.
    """

    bundles: tuple[BundleSpec, ...]
    host_uuid: str | None
    makes_identity: bool
    source_size_limit: int
    swap_timeout: float
    dom0_trees: tuple[str, ...]
    dom0_later: tuple[str, ...] = ()
    notify: tuple[NotifyTable, ...] = ()
    copies: tuple[tuple[str, str], ...] = ()
    check: CheckTable = _CHECK
    pool: PoolTable = _POOL


def _spec(source: str, bundle: str) -> BundleSpec:
    return BundleSpec(_path(source), _path(bundle))


def _path(path: str) -> tuple[bytes, ...]:
    return tuple(os.fsencode(part) for part in path.split("/"))


def load_config(path: str | None, *, host: bool = False) -> Config:
    """Return what the file at ``path`` says, or the defaults without one; ConfigError names file and key.

    ``host`` as for ``parse_config``.
    """
    return parse_config(path or "defaults", read_config(path), host=host)


def read_config(path: str | None) -> bytes:
    """Return the content of the file at ``path``, nothing without one; ConfigError if it cannot be read."""
    if path is None:
        return b""
    try:
        # Neither waiting for the writer of a FIFO nor reading a device without end.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path} is not a regular file", advice="name one that is")
            content = file.read(_FILE_LIMIT + 1)
            if len(content) > _FILE_LIMIT:
                raise ConfigError(
                    f"{path} is larger than {_FILE_LIMIT} bytes", advice="name a configuration file"
                )
            return content
    except OSError as e:
        raise ConfigError(
            f"configuration file {path}: {e.strerror}", advice="name one that can be read"
        ) from None


def parse_config(path: str, content: bytes, *, host: bool = False) -> Config:
    """Return what ``content`` says, which is that of the file at ``path``; ConfigError names file and key.

    ``host`` for the mount that presents a host's own directories: the platform's bundles are made beside those that
    the file names, and every path begins with the name of a presented directory.
    """
    return _checked(path, _parsed(path, content), host=host)


def _parsed(path: str, content: bytes) -> _File:
    try:
        table = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as e:
        raise ConfigError(
            f"{path} is not TOML: {e}", advice="see https://toml.io for the format"
        ) from None
    try:
        return msgspec.convert(table, _File)
    except msgspec.ValidationError as e:
        raise ConfigError(f"{path}: {_explain(str(e))}", advice=_DOCUMENTATION) from None


def _explain(message: str) -> str:
    """Turn msgspec's message into one that names the key first."""
    message, _, where = message.partition(" - at ")
    key = where.strip("`").removeprefix("$").removeprefix(".")
    unknown = re.search(r"unknown field `(.*)`", message)
    if unknown:
        key = f"{key}.{unknown[1]}" if key else unknown[1]
        table, *inside = re.split(r"[.[]", key)
        struct = _TABLES[table] if inside else _File
        return f"unknown key {key} (allowed here: {', '.join(struct.__struct_fields__)})"
    return f"{key}: {message[:1].lower()}{message[1:]}" if key else message


def known_keys() -> frozenset[str]:
    """Return every key that a configuration file may have, with its table before a dot."""
    keys = {f"{name}.{key}" for name, table in _TABLES.items() for key in table.__struct_fields__}
    return frozenset(keys | set(_File.__struct_fields__) - _TABLES.keys())


def _checked(path: str, file: _File, *, host: bool) -> Config:
    """Check what types cannot say."""
    if file.host_uuid is not None:
        _check_uuid(path, file.host_uuid)
    trees = file.dom0.trees if file.dom0.trees is not None else _platform_trees()
    for tree in trees:
        plain = tree.startswith("/") and os.path.normpath(tree) == tree and "\0" not in tree
        if not plain or tree == "/":
            raise ConfigError(
                f"{path}: dom0.trees: {tree!r} is not an absolute, plain path",
                advice=_DOCUMENTATION,
            )
    names = [os.path.basename(tree) for tree in trees]
    if len(set(names)) != len(names):
        raise ConfigError(
            f"{path}: dom0.trees: two directories of one name", advice="present only one of them"
        )
    for inner, outer in permutations(trees, 2):
        if inner.startswith(f"{outer}/"):
            raise ConfigError(
                f"{path}: dom0.trees: {inner} lies in {outer}", advice=f"present {outer} alone"
            )
    bundles = _host_bundles(path, file, trees) if host else _standalone_bundles(path, file)
    for index, notify in enumerate(file.notify):
        _check_notify(f"{path}: notify[{index}]", notify, bundles)
        if any(_same_reader(notify, other) for other in file.notify[:index]):
            raise ConfigError(
                f"{path}: notify[{index}]: is told of the same already",
                advice="remove one of the two",
            )
    return Config(
        bundles=bundles,
        host_uuid=file.host_uuid,
        makes_identity=file.bundle is None if file.identity is None else file.identity,
        source_size_limit=file.source_size_limit,
        swap_timeout=float(file.swap_timeout),
        dom0_trees=trees,
        dom0_later=()
        if file.dom0.trees is not None or TRUSTED_CERTS in trees
        else (TRUSTED_CERTS,),
        notify=file.notify,
        copies=_copies(path, file.bundle or []),
        check=file.check,
        pool=_checked_pool(path, file.pool),
    )


def _checked_pool(path: str, table: PoolTable) -> PoolTable:
    if table.require_signature and not os.path.isabs(table.signers):
        raise ConfigError(
            f"{path}: pool.signers: with require_signature it is the absolute path of a file",
            advice='such as "/etc/certfs-signers", in the form of ALLOWED SIGNERS (ssh-keygen(1))',
        )
    return table


def _standalone_bundles(path: str, file: _File) -> tuple[BundleSpec, ...]:
    """Return the bundles of a standalone store: those that the file names, else the platform's."""
    if file.bundle is None:
        return PLATFORM_BUNDLES
    named = _named_bundles(path, file)
    _check_together(path, named)
    return tuple(named.values())


def _host_bundles(path: str, file: _File, trees: tuple[str, ...]) -> tuple[BundleSpec, ...]:
    """Return a host's bundles: the platform's, but for those that are turned off or named anew, and the file's own."""
    disabled = _disabled_bundles(path, file)
    presented = {os.fsencode(os.path.basename(tree)) for tree in trees}
    if file.dom0.trees is None:
        presented.add(os.fsencode(os.path.basename(TRUSTED_CERTS)))  # it may come later
    named = _named_bundles(path, file)
    for label, spec in named.items():
        for key, first in (("source", spec.source[0]), ("bundle", spec.bundle[0])):
            if first not in presented:
                names = " or ".join(sorted(os.fsdecode(name) for name in presented))
                raise ConfigError(
                    f"{path}: {label}.{key}: no presented directory is called {os.fsdecode(first)!r}",
                    advice=f"begin the path with {names}, or add the directory to dom0.trees",
                )
    replaced = {spec.bundle for spec in named.values()} | disabled
    bundles = {
        f"the platform's {_text(spec.bundle)}": spec
        for spec in PLATFORM_BUNDLES
        if spec.bundle not in replaced and spec.bundle[0] in presented
    }
    bundles |= named
    _check_together(path, bundles)
    return tuple(bundles.values())


def _disabled_bundles(path: str, file: _File) -> set[tuple[bytes, ...]]:
    known = {_text(spec.bundle): spec.bundle for spec in PLATFORM_BUNDLES}
    for name in file.dom0.disabled_bundles:
        if name not in known:
            raise ConfigError(
                f"{path}: dom0.disabled_bundles: {name!r} is no bundle of the platform",
                advice=f"those are {', '.join(known)}",
            )
    return {known[name] for name in file.dom0.disabled_bundles}


def _named_bundles(path: str, file: _File) -> dict[str, BundleSpec]:
    """Return the bundles that the file names, by what an error calls them."""
    return {
        f"bundle[{index}]": _checked_bundle(path, index, table)
        for index, table in enumerate(file.bundle or ())
    }


def _text(path: tuple[bytes, ...]) -> str:
    return os.fsdecode(b"/".join(path))


def _platform_trees() -> tuple[str, ...]:
    """Return the directories of a host of the platform; the newer layout's only where the host has it."""
    return (XENSOURCE, STUNNEL, *((TRUSTED_CERTS,) if _has_trusted_certs() else ()))


def _has_trusted_certs() -> bool:
    top = procfs.top_at(procfs.mounts(), TRUSTED_CERTS)
    # A mount of certfs is not asked: it may hang, or be dead.
    return (top is not None and top.is_certfs) or os.path.isdir(TRUSTED_CERTS)


def _check_uuid(path: str, text: str) -> None:
    """Accept the canonical form only (RFC 9562, section 4), because the UUID names a file; Python accepts several."""
    try:
        is_canonical = str(uuid.UUID(text)) == text
    except ValueError:
        is_canonical = False
    if not is_canonical:
        raise ConfigError(
            f"{path}: host_uuid: {text!r} is not a UUID in lower case",
            advice="uuidgen makes one, such as 960abfff-6017-4d97-bd56-0a8f1a43e51a",
        )


def _checked_bundle(path: str, index: int, table: _BundleTable) -> BundleSpec:
    for key, value in (("source", table.source), ("bundle", table.bundle)):
        parts = value.split("/")
        if any(part in {"", ".", ".."} for part in parts) or "\0" in value:
            raise ConfigError(
                f"{path}: bundle[{index}].{key}: {value!r} is not a plain relative path",
                advice="write it from the root of the mount, such as stunnel/certs",
            )
        if parts[0] == OWN_DIRECTORY or any(len(os.fsencode(part)) > _LONGEST for part in parts):
            raise ConfigError(
                f"{path}: bundle[{index}].{key}: {value!r} cannot be used",
                advice=f"{OWN_DIRECTORY} is certfs's own, and a name has at most {_LONGEST} bytes",
            )
    spec = _spec(table.source, table.bundle)
    stars = [part.count(WILDCARD) for part in (*spec.source, *spec.bundle)]
    last = (spec.source[-1].count(WILDCARD), spec.bundle[-1].count(WILDCARD))
    if sum(stars) != sum(last) or last not in {(0, 0), (1, 1)}:
        raise ConfigError(
            f"{path}: bundle[{index}]: one * is allowed, in the last part of source and of bundle alike",
            advice="such as trusted-certs/ca-* and trusted-certs/ca-bundle-*.pem",
        )
    if spec.bundle == spec.source or spec.source[: len(spec.bundle)] == spec.bundle:
        raise ConfigError(
            f"{path}: bundle[{index}]: the bundle {table.bundle!r} would hide its own source",
            advice="give it another name",
        )
    return replace(
        spec,
        suffixes=_suffixes(path, index, table, spec),
        readers=tuple(reader for reader in table.readers if reader is not Reader.OPENSSL),
    )


def _suffixes(path: str, index: int, table: _BundleTable, spec: BundleSpec) -> tuple[bytes, ...]:
    where = f"{path}: bundle[{index}].suffixes"
    if table.suffixes == _DEFAULT_SUFFIXES:
        return spec.suffixes
    if any(_same_place(spec.bundle, one.bundle) for one in PLATFORM_BUNDLES):
        raise ConfigError(
            f"{where}: {table.bundle!r} is a bundle of the platform, which reads *.pem alone",
            advice="remove it, or name another bundle",
        )
    for suffix in table.suffixes:
        is_plain = len(suffix) > 1 and not any(c in suffix for c in "/\0*")
        if not suffix.startswith(".") or not is_plain or len(os.fsencode(suffix)) > _LONGEST_SUFFIX:
            raise ConfigError(
                f"{where}: {suffix!r} is no ending of a file name",
                advice='write it with its dot, such as [".pem", ".crt"]',
            )
    return tuple(os.fsencode(suffix) for suffix in table.suffixes)


def _copies(path: str, tables: list[_BundleTable]) -> tuple[tuple[str, str], ...]:
    copies: dict[str, str] = {}
    for index, table in enumerate(tables):
        if not table.copy:
            continue
        where = f"{path}: bundle[{index}].copy: {table.copy!r}"
        is_plain = os.path.normpath(table.copy) == table.copy and "\0" not in table.copy
        if not table.copy.startswith("/") or not is_plain or table.copy.endswith("/"):
            raise ConfigError(
                f"{where} is no plain, absolute path", advice="such as /etc/ssl/pool.pem"
            )
        if "*" in table.bundle:
            raise ConfigError(
                f"{where} would be the copy of many bundles", advice="name one bundle"
            )
        if table.copy in copies:
            raise ConfigError(
                f"{where} is the copy of {copies[table.copy]!r} too", advice="give each its own"
            )
        copies[table.copy] = table.bundle
    return tuple((bundle, copy) for copy, bundle in copies.items())


def _check_notify(where: str, table: NotifyTable, bundles: tuple[BundleSpec, ...]) -> None:
    """Check that a reader is named in one way, and that what belongs to another way is not there."""
    given = [key for key in ("systemd_unit", "pid_file", "command") if getattr(table, key)]
    if len(given) != 1:
        raise ConfigError(
            f"{where}: {' and '.join(given) or 'nothing'} names the reader",
            advice="give exactly one of systemd_unit, pid_file and command",
        )
    (way,) = given
    defaults = NotifyTable()
    if table.on != "bundle" and table.bundles:
        raise ConfigError(
            f"{where}.bundles: goes with on = 'bundle'",
            advice="remove it: there is one certificate",
        )
    for key, of in (
        ("action", "systemd_unit"),
        ("signal", "pid_file"),
        ("process", "pid_file"),
        ("user", "command"),
    ):
        if of != way and getattr(table, key) != getattr(defaults, key):
            raise ConfigError(
                f"{where}.{key}: goes with {of}", advice=f"remove it: the reader is a {way}"
            )
    _check_way(where, way, table)
    names = [os.fsdecode(b"/".join(spec.bundle)) for spec in bundles]
    for pattern in table.bundles:
        if not any(fnmatchcase(name, pattern) or fnmatchcase(pattern, name) for name in names):
            raise ConfigError(
                f"{where}.bundles: {pattern!r} is none of the bundles",
                advice=f"there are: {', '.join(names)}",
            )


def _check_way(where: str, way: str, table: NotifyTable) -> None:
    """Check what belongs to the way in which a reader is named."""
    for key in ("systemd_unit", "pid_file", "process", "command", "user"):
        if any("\0" in word for word in getattr(table, key)):
            raise ConfigError(
                f"{where}.{key}: contains a NUL", advice="no program can be given one"
            )
    if way == "systemd_unit" and not _UNIT.fullmatch(table.systemd_unit):
        raise ConfigError(
            f"{where}.systemd_unit: {table.systemd_unit!r} is no name of a unit",
            advice="write it with its type, such as nginx.service",
        )
    if way == "pid_file" and not (table.pid_file.startswith("/") and table.process):
        raise ConfigError(
            f"{where}.pid_file: needs an absolute path, and the process's name in process",
            advice='such as pid_file = "/run/stunnel.pid" and process = "stunnel4" (ps -o comm= -p PID)',
        )
    if f"SIG{table.signal}" not in signal.Signals.__members__:
        raise ConfigError(
            f"{where}.signal: {table.signal!r} is no signal",
            advice="such as HUP or USR1, without SIG",
        )
    if way == "command" and not table.command[0].startswith("/"):
        raise ConfigError(
            f"{where}.command: {table.command[0]!r} is no absolute path",
            advice="no shell and no PATH are used: give the whole path and each argument by itself",
        )


def _same_reader(one: NotifyTable, other: NotifyTable) -> bool:
    """Tell whether two tables differ in nothing but times."""
    times = {"delay": 0, "max_delay": 0, "min_interval": 0, "timeout": 1}
    return msgspec.structs.replace(one, **times) == msgspec.structs.replace(other, **times)


def _check_together(path: str, bundles: Mapping[str, BundleSpec]) -> None:
    """Check that no bundle stands in the way of another one or feeds it."""
    for (label, spec), (other_label, other) in itertools.permutations(bundles.items(), 2):
        name = _text(spec.bundle)
        if _same_place(spec.bundle, other.bundle):
            raise ConfigError(
                f"{path}: {other_label}.bundle: {name!r} is the bundle of {label} too",
                advice="give each its own",
            )
        if spec.bundle in {other.source[: len(spec.bundle)], other.bundle[: len(spec.bundle)]}:
            raise ConfigError(
                f"{path}: {label}.bundle: {name!r} is a directory of {other_label}",
                advice="a bundle is a file: give it another name",
            )
        if other.is_source(spec.bundle[-1]) and other.covers(spec.bundle[:-1]):
            raise ConfigError(
                f"{path}: {label}.bundle: {name!r} would be a source of {other_label}",
                advice="put it beside the directory of certificates and not into it",
            )


def _same_place(bundle: tuple[bytes, ...], other: tuple[bytes, ...]) -> bool:
    """Tell whether a bundle's path is another one's, or one that the other's pattern may stand for."""
    return bundle == other or BundleSpec(source=other, bundle=other).covers(bundle)
