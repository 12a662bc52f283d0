"""What an ELF file needs: libraries, and the versions of the symbols that it takes from them.

Owns the rule which C library a package may ask for; reads files by pyelftools.
"""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_MAGIC = b"\x7fELF"


@dataclass(frozen=True, slots=True, kw_only=True)
class Elf:
    """One program or library."""

    path: str
    soname: str | None = None
    interpreter: str | None = None
    needed: tuple[str, ...] = ()
    versions: frozenset[str] = field(default_factory=frozenset)
    """Such as ``GLIBC_2.17``."""


def too_new(elf: Elf, *, glibc: tuple[int, ...]) -> list[str]:
    """Return the versions of symbols that a C library of version ``glibc`` does not have; empty is good."""
    found = []
    for version in elf.versions:
        family, _, number = version.partition("_")
        if family == "GLIBC" and number != "PRIVATE" and _number(number) > glibc:
            found.append(version)
    return sorted(found)


def unresolved(elfs: Iterable[Elf]) -> list[str]:
    """Return what the files need and none of them is: a self-contained tree has nothing of the kind."""
    known = list(elfs)
    names = {elf.soname or os.path.basename(elf.path) for elf in known}
    names |= {os.path.basename(elf.path) for elf in known}
    return sorted(
        f"{elf.path}: {name}" for elf in known for name in elf.needed if name not in names
    )


def _number(text: str) -> tuple[int, ...]:
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))


def files(root: Path) -> Iterator[Path]:
    """Yield every ELF file below ``root``."""
    for directory, _, names in os.walk(root):
        for name in sorted(names):
            path = Path(directory, name)
            if not stat.S_ISREG(path.lstat().st_mode):
                continue
            with open(path, "rb") as stream:
                if stream.read(len(_MAGIC)) == _MAGIC:
                    yield path


def read(path: Path) -> Elf:
    """Return what the file needs."""
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415  only the build has it, the tests of the rules do not

    with open(path, "rb") as stream:
        elf = ELFFile(stream)
        dynamic = elf.get_section_by_name(".dynamic")
        tags = list(dynamic.iter_tags()) if dynamic else []
        requirements = elf.get_section_by_name(".gnu.version_r")
        versions = {
            auxiliary.name
            for _, auxiliaries in (requirements.iter_versions() if requirements else ())
            for auxiliary in auxiliaries
        }
        segment = next((one for one in elf.iter_segments() if one["p_type"] == "PT_INTERP"), None)
        sonames = [tag.soname for tag in tags if tag.entry.d_tag == "DT_SONAME"]
        return Elf(
            path=str(path),
            soname=sonames[0] if sonames else None,
            interpreter=segment.get_interp_name() if segment else None,
            needed=tuple(tag.needed for tag in tags if tag.entry.d_tag == "DT_NEEDED"),
            versions=frozenset(versions),
        )
