"""The bill of materials of a package, in the CycloneDX format: every component with its version, origin and hash."""

import email
import uuid
import zipfile
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.license import DisjunctiveLicense
from cyclonedx.output.json import JsonV1Dot5
from packageurl import PackageURL

from scripts.packaging.debian import Pin, sha256
from scripts.packaging.shell import BuildError


def document(
    name: str, version: str, *, wheels: Iterable[Path], packages: Iterable[Pin], epoch: int
) -> str:
    """Return the bill of materials of one package as JSON; the same inputs give the same text."""
    root = Component(name=name, version=version, type=ComponentType.APPLICATION, bom_ref=name)
    bom = Bom(
        components=[*map(_wheel, wheels), *map(_package, packages)],
    )
    bom.metadata.component = root
    bom.metadata.timestamp = datetime.fromtimestamp(epoch, tz=UTC)
    bom.register_dependency(root, bom.components)
    bom.serial_number = _serial(bom)
    return f"{JsonV1Dot5(bom).output_as_string(indent=2)}\n"


def _serial(bom: Bom) -> uuid.UUID:
    content = "\n".join(
        sorted(f"{one.purl} {[h.content for h in one.hashes]}" for one in bom.components)
    )
    return uuid.uuid5(uuid.NAMESPACE_URL, content)


def _wheel(path: Path) -> Component:
    with zipfile.ZipFile(path) as archive:
        (name,) = (one for one in archive.namelist() if one.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    distribution, version = metadata["Name"], metadata["Version"]
    if not distribution or not version:
        raise BuildError(f"{path}: the wheel does not say what it is")
    licence = metadata["License-Expression"] or metadata["License"]
    short = licence if licence and "\n" not in licence else None
    return Component(
        name=distribution,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"pypi:{distribution}",
        purl=PackageURL("pypi", None, distribution.lower().replace("_", "-"), version),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=sha256(path))],
        licenses=[DisjunctiveLicense(name=short)] if short else (),
    )


def _package(pin: Pin) -> Component:
    qualifiers = {} if pin.file.endswith(".deb") else {"arch": "source"}
    return Component(
        name=pin.name,
        version=pin.version,
        type=ComponentType.LIBRARY,
        bom_ref=f"deb:{pin.file}",
        purl=PackageURL("deb", "debian", pin.name, pin.version, qualifiers),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=pin.sha256)],
    )
