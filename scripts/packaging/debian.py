"""Debian's packages as inputs of the build: pinned by version and SHA-256, fetched by apt from its signed lists.

Where apt fetches from is the machine's configuration; only the name of the release is replaced. Owns the lock file
``debian.lock.toml``.
"""

import hashlib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from scripts.packaging.shell import BuildError, run, say

HERE: Final = Path(__file__).resolve().parent
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """One file that is fetched: of a binary package, or one of those that make a source package."""

    name: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Packages that are used together."""

    release: str
    packages: tuple[str, ...] = ()
    source: str | None = None


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository that the machine uses, as apt names it."""

    uri: str
    suite: str


def read_groups(path: Path = HERE / "debian.toml") -> dict[str, Group]:
    """Return what is wanted, by the name of the group."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    return {
        name: Group(
            release=table["release"],
            packages=tuple(table.get("packages", ())),
            source=table.get("source"),
        )
        for name, table in document.items()
    }


def read_lock(text: str) -> dict[str, tuple[Pin, ...]]:
    """Return the pins of each group."""
    return {name: tuple(Pin(**pin) for pin in pins) for name, pins in tomllib.loads(text).items()}


def write_lock(pins: Mapping[str, Iterable[Pin]]) -> str:
    """Return the lock file's text."""
    lines = ["# Written by scripts/package --lock from debian.toml."]
    for name, group in pins.items():
        for pin in group:
            lines += ["", f"[[{name}]]"]
            lines += [f'{key} = "{value}"' for key, value in asdict(pin).items()]
    return "\n".join(lines) + "\n"


def sources(machine: Iterable[Repository], own: str, release: str) -> str:
    """Return apt's list of sources for ``release``, from the repositories of a machine whose release is ``own``.

    A machine that was just made may have the release alone. The updates then come from beside it, as on every mirror:
    the same place, and for security the one with that word at its end.
    """
    uris = {one.suite: one.uri for one in machine}
    if own not in uris:
        raise BuildError(f"apt on this machine has no repository of {own}: build on Debian 12")
    main = uris[own]
    beside = {"": main, "-updates": main, "-security": f"{main.rstrip('/')}-security"}
    found = [
        (uris.get(own + pocket, default), release + pocket) for pocket, default in beside.items()
    ]
    return "".join(
        f"{kind} [signed-by={_KEYRING}] {uri} {suite} main\n"
        for uri, suite in found
        for kind in ("deb", "deb-src")
    )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Apt:
    """apt for one release, with lists of its own beside those of the machine."""

    def __init__(self, release: str, directory: Path) -> None:
        self._release = release
        self._directory = directory
        self._options = [
            f"-oDir::Etc::sourcelist={directory}/sources.list",
            "-oDir::Etc::sourceparts=-",
            f"-oDir::State::Lists={directory}/lists",
            f"-oDir::State::status={directory}/status",
            f"-oDir::Cache={directory}/cache",
            "-oAPT::Sandbox::User=root",
            "-oAPT::Get::List-Cleanup=false",
        ]
        self._updated = False

    def candidate(self, name: str) -> str:
        """Return the newest version of a binary package."""
        self._update()
        for line in run(["apt-cache", *self._options, "policy", name]).splitlines():
            if line.strip().startswith("Candidate:") and "(none)" not in line:
                return line.split()[1]
        raise BuildError(f"{self._release} has no package {name}")

    def source_candidate(self, name: str) -> str:
        """Return the newest version of a source package."""
        self._update()
        shown = run(["apt-cache", *self._options, "showsrc", "--only-source", name])
        versions = [line.split()[1] for line in shown.splitlines() if line.startswith("Version:")]
        if not versions:
            raise BuildError(f"{self._release} has no source package {name}")
        return versions[0]

    def download(self, wanted: Iterable[str], directory: Path, *, source: bool) -> None:
        """Fetch packages (``NAME=VERSION``) into ``directory``; apt checks them against the signed lists."""
        words = ["source", "--download-only"] if source else ["download"]
        self._update()
        try:
            run(["apt-get", *self._options, "-qq", *words, *wanted], directory=directory)
        except BuildError as error:
            raise BuildError(
                f"{error}\nA version that is no longer offered: scripts/package --lock takes the present ones"
            ) from error

    def _update(self) -> None:
        if self._updated:
            return
        for part in ("lists/partial", "cache/archives/partial"):
            (self._directory / part).mkdir(parents=True, exist_ok=True)
        (self._directory / "status").touch()
        targets = run(
            [
                "apt-get",
                "indextargets",
                "--format",
                "$(REPO_URI) $(RELEASE)",
                "Created-By: Packages",
            ]
        )
        machine = [Repository(*line.split(maxsplit=1)) for line in targets.splitlines()]
        text = sources(machine, own_release(), self._release)
        (self._directory / "sources.list").write_text(text, encoding="utf-8")
        say(f"fetching apt's lists of {self._release}")
        run(["apt-get", *self._options, "-qq", "update"])
        self._updated = True


def own_release(path: Path = Path("/etc/os-release")) -> str:
    """Return the code name of this machine's release (os-release(5)); BuildError where it has none."""
    for line in path.read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME":
            return value.strip('"')
    raise BuildError("/etc/os-release names no release of Debian: build on Debian 12")


class Debian:
    """The locked packages, fetched into one directory when they are first asked for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._files = directory / "files"
        self._groups = read_groups()
        self._apts: dict[str, Apt] = {}

    @property
    def lock_file(self) -> Path:
        """Where the pins are."""
        return HERE / "debian.lock.toml"

    def pins(self, group: str) -> tuple[Pin, ...]:
        """Return the pins of a group."""
        return read_lock(self.lock_file.read_text(encoding="utf-8"))[group]

    def files(self, name: str) -> list[Path]:
        """Return the files of a group, each with the hash that is pinned."""
        group, pins = self._groups[name], self.pins(name)
        self._files.mkdir(parents=True, exist_ok=True)
        missing = {
            f"{pin.name}={pin.version}" for pin in pins if not (self._files / pin.file).exists()
        }
        if missing:
            say(f"fetching {' '.join(sorted(missing))}")
            apt = self._apt(group.release)
            apt.download(sorted(missing), self._files, source=bool(group.source))
        for pin in pins:
            path = self._files / pin.file
            found = sha256(path) if path.exists() else "not there"
            if found != pin.sha256:
                raise BuildError(
                    f"{path}: the hash is {found}, pinned is {pin.sha256}: remove the file, and ask why"
                )
        return [self._files / pin.file for pin in pins]

    def extract(self, name: str, target: Path) -> None:
        """Unpack the binary packages of a group into ``target``."""
        target.mkdir(parents=True, exist_ok=True)
        for path in self.files(name):
            run(["dpkg-deb", "-x", path, target])

    def lock(self) -> str:
        """Return the lock file for the versions that the releases have now."""
        self._files.mkdir(parents=True, exist_ok=True)
        return write_lock({name: self._pin(group) for name, group in self._groups.items()})

    def _pin(self, group: Group) -> list[Pin]:
        apt = self._apt(group.release)
        if group.source:
            version = apt.source_candidate(group.source)
            apt.download([f"{group.source}={version}"], self._files, source=True)
            stem = f"{group.source}_{version.rpartition('-')[0]}"
            found = sorted(path for path in self._files.glob(f"{stem}*") if path.suffix != ".asc")
            names = [(group.source, version, path) for path in found]
        else:
            versions = {name: apt.candidate(name) for name in group.packages}
            wanted = [f"{name}={version}" for name, version in versions.items()]
            apt.download(wanted, self._files, source=False)
            names = [
                (
                    name,
                    version,
                    next(self._files.glob(f"{name}_{version.replace(':', '%3a')}_*.deb")),
                )
                for name, version in versions.items()
            ]
        return [
            Pin(name=name, version=version, file=path.name, sha256=sha256(path))
            for name, version, path in names
        ]

    def _apt(self, release: str) -> Apt:
        return self._apts.setdefault(release, Apt(release, self._directory / release))
