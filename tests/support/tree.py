"""Where things are in a directory under test: a mount, or a plain twin of one.

Owns the layout of a host's directories and of nothing else, so that every test
can take the directory that it works on as a parameter.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory that looks like a host's `/etc`: `xensource` and `stunnel`."""

    root: Path
    """What programs see: the mountpoint, or the directory itself."""
    store: Path
    """What is beneath. The same directory when nothing is mounted."""

    @property
    def xensource(self) -> Path:
        """Where the host keeps its own certificates."""
        return self.root / "xensource"

    @property
    def stunnel(self) -> Path:
        """Where the host keeps its trust."""
        return self.root / "stunnel"

    @property
    def certs(self) -> Path:
        """The certificates of users."""
        return self.stunnel / "certs"

    @property
    def certs_pool(self) -> Path:
        """The certificates of the pool's hosts."""
        return self.stunnel / "certs-pool"

    @property
    def user_bundle(self) -> Path:
        """The bundle of `certs`."""
        return self.stunnel / "xapi-stunnel-ca-bundle.pem"

    @property
    def pool_bundle(self) -> Path:
        """The bundle of `certs-pool`."""
        return self.stunnel / "xapi-pool-ca-bundle.pem"

    @property
    def api_certificate(self) -> Path:
        """The certificate and key for clients outside of the pool."""
        return self.xensource / "xapi-ssl.pem"

    @property
    def pool_host_certificate(self) -> Path:
        """The certificate and key for the other hosts of the pool."""
        return self.xensource / "xapi-pool-tls.pem"

    def make(self) -> None:
        """Make the directories as an installed host has them."""
        for directory in (self.xensource, self.stunnel, self.certs, self.certs_pool):
            directory.mkdir(parents=True, exist_ok=True)
            directory.chmod(0o755)
