"""Certificates in a source directory that no bundle takes, because of the name or the place of their file (I9).

Owns the search for them, for ``certfs list`` only: nothing of it is done while a bundle is made.
"""

import os
import re
import stat
from collections.abc import Iterator

from certfs.core.bundle import BundleSpec
from certfs.core.certificate import NOTHING_IN_IT, Severity, parse_source
from certfs.store.backing import O_PATH_NOFOLLOW, status_at
from certfs.store.cached import names_in

_SUFFIXES = (b".pem", b".crt", b".cer", b".cert", b".der", b".ca", b".p7b", b".p7c", b".p7s")
_CONTAINERS = (
    *(b".tar", b".tgz", b".tbz", b".tbz2", b".txz", b".gz", b".bz2", b".xz", b".zst", b".zip", b".7z", b".rar"),
    *(b".p12", b".pfx", b".pkcs12", b".jks", b".jceks", b".bcfks", b".keystore", b".truststore", b".sst"),
)  # fmt: skip
"""What archives and key stores end in. They are named and not opened."""
_PUT_ASIDE = re.compile(
    rb"#.*#|\.certfs-.*|.*\.before-certfs|.*(?:~|[._-](?:bak|backup|tmp|old|orig|new|save|saved|off|disabled|removed|rej|sw[a-p]|part|lock|rpm\w+"
    rb"|(?:dpkg|ucf)-\w+|r?[0-9]+))",
    re.IGNORECASE | re.DOTALL,
)
"""What programs and people put aside, and the files of a hash directory: nobody wants those trusted."""
_EDITORS_LOCK = b".#"
_MOST_NAMES = 10_000
"""Of a directory that are looked at."""
_LEVELS, _MOST_DIRECTORIES = 3, 32
"""Of directories that are looked into where those above have nothing: how deep, and how many names of each."""
_LARGEST = 1 << 20
_MOST_BYTES = 32 << 20
"""Of all files of a directory that are read; those with a certificate's ending first."""


def overlooked(directory: int, spec: BundleSpec) -> Iterator[tuple[bytes, str]]:
    """Yield name and reason of what looks like a source in ``directory`` and is none; blocks, and never raises."""
    try:
        names = sorted(names_in(directory))[:_MOST_NAMES]
    except OSError:
        return
    bundle = spec.bundle[-1] if spec.bundle[:-1] == spec.source else None
    names.sort(key=lambda name: not _has_usual_ending(name))
    left = _MOST_BYTES
    for name in names:
        status = status_at(directory, name)
        if status is None or spec.is_source(name) or name == bundle:
            continue
        if stat.S_ISREG(status.st_mode):
            left -= min(status.st_size, _LARGEST)
        if left < 0:
            return
        reason = _reason(directory, name, status, spec)
        if reason:
            yield name, reason


def _reason(directory: int, name: bytes, status: os.stat_result, spec: BundleSpec) -> str:
    """Return why what has this name is no source although it looks like one, empty if it does not."""
    if stat.S_ISDIR(status.st_mode):
        count = _sources_inside(directory, name, spec)
        return (
            f"a directory: the {count} files in it that could be sources are none" if count else ""
        )
    if stat.S_ISLNK(status.st_mode):
        # Not followed: what it leads to may not answer.
        is_meant = _has_usual_ending(name) and not name.startswith(_EDITORS_LOCK)
        return f"a link that does not end in {_wanted(spec)}: no source" if is_meant else ""
    if stat.S_ISREG(status.st_mode) and name.lower().endswith(_CONTAINERS):
        return "an archive or key store: no source, what is in it has to be beside it as PEM text"
    is_read = stat.S_ISREG(status.st_mode) and not _PUT_ASIDE.fullmatch(name)
    return _judge(directory, name, status, spec) if is_read else ""


def _wanted(spec: BundleSpec) -> str:
    return " or ".join(os.fsdecode(suffix) for suffix in spec.suffixes)


def _has_usual_ending(name: bytes) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _sources_inside(directory: int, name: bytes, spec: BundleSpec, *, levels: int = _LEVELS) -> int:
    try:
        inside = os.open(name, O_PATH_NOFOLLOW | os.O_DIRECTORY, dir_fd=directory)
    except OSError:
        return 0
    try:
        names = names_in(inside)[:_MOST_NAMES]
        count = sum(spec.is_source(name) or _has_usual_ending(name) for name in names)
        if count or levels == 1 or name.startswith(b"."):
            return count
        return sum(
            _sources_inside(inside, name, spec, levels=levels - 1)
            for name in names[:_MOST_DIRECTORIES]
        )
    except OSError:
        return 0
    finally:
        os.close(inside)


def _judge(directory: int, name: bytes, status: os.stat_result, spec: BundleSpec) -> str:
    """Return why a file with certificates is no source, empty if there is none in it."""
    if status.st_size > _LARGEST:
        return ""
    try:
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_NOCTTY | os.O_CLOEXEC
        with open(os.open(name, flags, dir_fd=directory), "rb") as file:
            data = file.read(_LARGEST)
    except OSError:
        return ""
    content = parse_source(data)
    count = len(content.certificates)
    if count:
        return f"holds {count} certificates and does not end in {_wanted(spec)}: no source"
    if any("looks like DER" in remark.reason for remark in content.remarks):
        return (
            f"looks like DER and does not end in {_wanted(spec)}: "
            "convert it with openssl x509 -inform der"
        )
    defects = (remark for remark in content.remarks if remark.severity is Severity.DEFECT)
    damage = next((remark.reason for remark in defects if remark.reason not in NOTHING_IN_IT), "")
    if damage and _has_usual_ending(name):
        return f"does not end in {_wanted(spec)}: no source, and it would need a look: {damage}"
    return ""
