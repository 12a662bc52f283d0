"""What XAPI does to its directories, call by call, on any directory.

Owns the sequences of the section "What XAPI does to these directories" of the
design. Each system call is one step with a name and a result, so that the same
sequence on a plain directory and on a mount can be compared step by step, and
so that a test can look at the bundles after each of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.support.syscalls import Rename, renameat2
from tests.support.tree import Tree

T = TypeVar("T")

# The regeneration script of a host: $1 is the directory, $2 the bundle.
_UPDATE_CA_BUNDLE = """
set -e
mkdir -p "$1"
new=$(find "$1" -name '*.new.pem')
others=$(find "$1" -not -name '*.new.pem' -name '*.pem')
rm -f "$2.tmp"
touch "$2.tmp"
for certificate in $new $others; do
    if cat "$certificate" >> "$2.tmp"; then
        echo "" >> "$2.tmp"
    fi
done
mv "$2.tmp" "$2"
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One system call or program, and how it ended."""

    name: str
    """What was called on what; paths are relative to the tree, the same everywhere."""
    result: str
    """`ok`, the name of an errno, or what was returned."""


@dataclass(slots=True)
class Xapi:
    """A host's toolstack that works on one tree.

    `observe` is called after every step, when its system call has returned.
    """

    tree: Tree
    observe: Callable[[Step], None] = lambda _: None
    steps: list[Step] = field(default_factory=list)
    _temporaries: int = 0

    # -- single steps ---------------------------------------------------------

    def _record(self, name: str, result: str) -> None:
        step = Step(name, result)
        self.steps.append(step)
        self.observe(step)

    def _name(self, call: str, *paths: Path) -> str:
        return " ".join([call, *(str(path.relative_to(self.tree.root)) for path in paths)])

    def _do(self, name: str, function: Callable[..., T], *arguments: object) -> T:
        """Make one system call, record how it ended, and let its error out."""
        try:
            value = function(*arguments)
        except OSError as error:
            self._record(name, errno.errorcode[error.errno or 0])
            raise
        self._record(name, "ok")
        return value

    def _run(self, *command: str | Path) -> None:
        """Run a program as XAPI does, with its output recorded."""
        ended = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=120, umask=0o022
        )
        shown = " ".join(str(word) for word in command if "\n" not in str(word))
        root = str(self.tree.root)
        result = "ok" if ended.returncode == 0 else f"exit {ended.returncode}: {ended.stderr}"
        self._record(shown.replace(root, "."), result.replace(root, "."))
        ended.check_returncode()

    def mkdir_p(self, directory: Path, mode: int) -> None:
        """Make a directory and its parents; one that is there is no error."""
        if not directory.parent.exists():
            self.mkdir_p(directory.parent, mode)
        with contextlib.suppress(FileExistsError):
            self._do(self._name("mkdir", directory), os.mkdir, directory, mode)

    def unlink_if_there(self, path: Path) -> None:
        """Unlink, whatever comes of it."""
        with contextlib.suppress(OSError):
            self._do(self._name("unlink", path), os.unlink, path)

    def rename(self, source: Path, target: Path) -> None:
        """Rename a file or a directory."""
        self._do(self._name("rename", source, target), os.rename, source, target)

    def remove_tree(self, path: Path) -> None:
        """Remove a directory depth first, one call after the other."""
        status = self._do(self._name("lstat", path), os.lstat, path)
        if not stat.S_ISDIR(status.st_mode):
            self._do(self._name("unlink", path), os.unlink, path)
            return
        for name in sorted(self._do(self._name("readdir", path), os.listdir, path)):
            self.remove_tree(path / name)
        self._do(self._name("rmdir", path), os.rmdir, path)

    def atomic_write(self, path: Path, content: bytes, *, mode: int = 0o644) -> None:
        """Write a temporary file beside the target and rename it over the target."""
        self._temporaries += 1
        temporary = path.with_name(f"{path.name}{self._temporaries:06x}.tmp")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        try:
            handle = self._do(self._name("create", temporary), os.open, temporary, flags, 0o600)
            try:
                written = self._do(self._name("write", temporary), os.write, handle, content)
                assert written == len(content), "a short write is an error"
                self._do(self._name("fchmod", temporary), os.fchmod, handle, mode)
                self._do(self._name("fsync", temporary), os.fsync, handle)
            finally:
                self._do(self._name("close", temporary), os.close, handle)
            self.rename(temporary, path)
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                self._do(self._name("fsync", path.parent), os.fsync, directory)
            finally:
                os.close(directory)
        finally:
            with contextlib.suppress(FileNotFoundError):
                self._do(self._name("unlink", temporary), os.unlink, temporary)

    # -- distributions ----------------------------------------------------------

    def erase_old(self, directory: Path, files: Mapping[str, bytes]) -> None:
        """Replace everything in a source directory by what the pool distributes."""
        backup = directory.with_name(directory.name + ".bk")
        with contextlib.suppress(OSError):
            self.mkdir_p(backup, 0o700)
            self.rename(directory, backup)
        self._write_distributed(directory, backup, files)

    def merge(self, directory: Path, files: Mapping[str, bytes]) -> None:
        """Add to a source directory what the pool distributes."""
        backup = directory.with_name(directory.name + ".bk")
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            self.mkdir_p(backup, 0o700)
            self._run("cp", "-r", directory, backup)
        self._write_distributed(directory, backup, files)

    def _write_distributed(self, directory: Path, backup: Path, files: Mapping[str, bytes]) -> None:
        try:
            self.mkdir_p(directory, 0o700)
            for name, content in files.items():
                self.unlink_if_there(directory / name)
                self.atomic_write(directory / name, content)
        except OSError:
            with contextlib.suppress(OSError):
                self.rename(backup, directory)
            raise
        with contextlib.suppress(OSError):
            self.remove_tree(backup)

    # -- bundles ----------------------------------------------------------------

    def script(self, directory: Path, bundle: Path) -> None:
        """Run the regeneration script."""
        self._run("sh", "-c", _UPDATE_CA_BUNDLE, "update-ca-bundle.sh", directory, bundle)

    def script_by_hand(self, directory: Path, bundle: Path) -> None:
        """Make the calls of the regeneration script one by one, as recent coreutils do."""
        temporary = bundle.with_name(bundle.name + ".tmp")
        self.mkdir_p(directory, 0o755)
        self.unlink_if_there(temporary)
        names = [name for name in os.listdir(directory) if name.endswith(".pem")]
        for name in ["", *sorted(names, key=lambda name: (not name.endswith(".new.pem"), name))]:
            content = (directory / name).read_bytes() + b"\n" if name else b""
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            handle = self._do(self._name("append", temporary), os.open, temporary, flags, 0o644)
            try:
                self._do(self._name("write", temporary), os.write, handle, content)
            finally:
                os.close(handle)
        source, target = os.fsencode(temporary), os.fsencode(bundle)
        try:
            self._do(
                self._name("renameat2 NOREPLACE", temporary, bundle),
                *(renameat2, source, target, Rename.NOREPLACE),
            )
        except FileExistsError:
            self.rename(temporary, bundle)

    def regenerate(self, directory: Path, bundle: Path, *, chmod: bool = False) -> None:
        """Run the script, then remove an empty bundle; in one path of XAPI then chmod it."""
        self.script(directory, bundle)
        with contextlib.suppress(FileNotFoundError):
            if self._do(self._name("stat", bundle), os.stat, bundle).st_size == 0:
                self.unlink_if_there(bundle)
        if chmod:
            self._do(self._name("chmod 0644", bundle), os.chmod, bundle, 0o644)

    # -- certificates of users ----------------------------------------------------

    def install_ca(self, name: str, content: bytes) -> None:
        """Install a certificate of a user."""
        path = self.tree.certs / name
        self.mkdir_p(self.tree.certs, 0o700)
        self.atomic_write(path, content)
        self._do(self._name("chmod 0644", path), os.chmod, path, 0o644)
        self.regenerate(self.tree.certs, self.tree.user_bundle, chmod=True)
        self.rehash(self.tree.certs)

    def uninstall_ca(self, name: str) -> None:
        """Remove a certificate of a user; an error if it is not there."""
        path = self.tree.certs / name
        self._do(self._name("unlink", path), os.unlink, path)
        self.regenerate(self.tree.certs, self.tree.user_bundle)
        self.rehash(self.tree.certs)

    def rehash(self, directory: Path) -> None:
        """Make the hash links of OpenSSL anew, with the real program."""
        self._run("openssl", "rehash", directory)

    def install_crl(self, name: str, content: bytes) -> None:
        """Install a revocation list: nothing of it concerns a bundle."""
        directory = self.tree.stunnel / "crls"
        self.mkdir_p(directory, 0o700)
        self.atomic_write(directory / name, content)
        self.rehash(directory)

    # -- hosts ---------------------------------------------------------------------

    def generate_key(
        self, path: Path, content: bytes, *, mode: int = 0o400, gid: int | None = None
    ) -> None:
        """Write a host's key and certificate as at boot, then give it to a group (default: ours)."""
        self.atomic_write(path, content, mode=mode)
        self._do(
            self._name("chown", path), os.chown, path, -1, os.getegid() if gid is None else gid
        )

    def refresh_start(self, host: str, host_pem: bytes, certificate: bytes) -> None:
        """Announce a host's new pool certificate while the old one is still in use."""
        new = self.tree.xensource / "xapi-pool-tls.new"
        self.generate_key(new, host_pem)
        self.merge(self.tree.certs_pool, {f"{host}.new.pem": certificate})
        self.regenerate(self.tree.certs_pool, self.tree.pool_bundle)

    def refresh_switch(self) -> None:
        """Make the new pool certificate the one that the host shows."""
        current = self.tree.pool_host_certificate
        self.rename(current, current.with_suffix(".bak"))
        self.rename(current.with_suffix(".new"), current)

    def refresh_finish(self, host: str) -> None:
        """Make the announced certificate the host's only one."""
        current = self.tree.certs_pool / f"{host}.pem"
        with contextlib.suppress(FileNotFoundError):
            self.rename(current, current.with_suffix(".bak"))
        self.rename(current.with_name(f"{host}.new.pem"), current)
        self.regenerate(self.tree.certs_pool, self.tree.pool_bundle)

    def eject_other(self, host: str) -> None:
        """Forget another host that left the pool."""
        self.unlink_if_there(self.tree.certs_pool / f"{host}.pem")
        self.regenerate(self.tree.certs_pool, self.tree.pool_bundle)

    def eject_self(self) -> None:
        """Forget the pool on the host that left it."""
        self.unlink_if_there(self.tree.user_bundle)
        self.unlink_if_there(self.tree.pool_bundle)
        for directory in (self.tree.certs, self.tree.certs_pool):
            self._run("rm", "-fr", directory)
        self._run("rm", "-f", self.tree.pool_host_certificate)

    def write_token(self, path: Path, content: bytes) -> None:
        """Write the pool token in place: open without O_TRUNC."""
        handle = self._do(self._name("open O_WRONLY", path), os.open, path, os.O_WRONLY)
        try:
            self._do(self._name("write", path), os.write, handle, content)
        finally:
            self._do(self._name("close", path), os.close, handle)
