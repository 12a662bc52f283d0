"""Keys and certificates made by the `openssl` command, as admins make theirs.

Owns making them: nothing here comes from certfs or from the library that it uses, so a misreading
that both share cannot hide.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

_CONFIGURATION = """
[ca]
default_ca = here
[here]
database = {directory}/index.txt
new_certs_dir = {directory}
rand_serial = yes
unique_subject = no
policy = any
default_md = sha256
default_days = 365
email_in_dn = no
[any]
commonName = supplied
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:true
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:false
subjectAltName = DNS:host.example
"""


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key, both in PEM form."""

    certificate: Path
    key: Path


class OpenSsl:
    """The command with a directory of its own; what it made once it gives again."""

    def __init__(self, directory: Path) -> None:
        """Write its configuration."""
        self.directory = directory
        self._configuration = directory / "openssl.cnf"
        self._configuration.write_text(_CONFIGURATION.format(directory=directory))
        (directory / "index.txt").touch()

    def run(self, *arguments: str | Path, feed: bytes = b"") -> bytes:
        """Run the command and give its output."""
        done = subprocess.run(
            ["openssl", *arguments], check=False, capture_output=True, input=feed, timeout=120
        )
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout

    def key(self, name: str = "rsa", *options: str, algorithm: str = "RSA") -> Path:
        """Give the private key of that name, by default RSA 2048; `options` are genpkey's."""
        path = self.directory / f"{name}.key"
        if not path.exists():
            self.run("genpkey", "-quiet", "-algorithm", algorithm, *options, "-out", path)
        return path

    def certificate(  # noqa: PLR0913 - each argument is one field of a certificate
        self,
        name: str,
        key: Path,
        *,
        issuer: Pair | None = None,
        ca: bool = False,
        start: str = "20200101000000Z",
        end: str = "20990101000000Z",
        options: tuple[str, ...] = ("-md", "sha256"),
    ) -> Pair:
        """Have a certificate with CN=`name` signed by `issuer`, or by its own key."""
        request, path = self.directory / f"{name}.csr", self.directory / f"{name}.pem"
        here = ("-config", self._configuration)
        self.run("req", "-new", "-key", key, "-subj", f"/CN={name}", "-out", request, *here)
        signer: tuple[str | Path, ...] = ("-selfsign", "-keyfile", key)
        if issuer is not None:
            signer = ("-cert", issuer.certificate, "-keyfile", issuer.key)
        section = ("-extfile", self._configuration, "-extensions", "authority" if ca else "server")
        validity = ("-startdate", start, "-enddate", end)
        self.run(
            "ca", *here, "-batch", "-notext", *signer, *section, *validity, *options, "-in", request, "-out", path
        )  # fmt: skip
        return Pair(certificate=path, key=key)

    def text(self, path: Path, *options: str) -> str:
        """Give what `openssl x509` says of the first certificate of a file."""
        return self.run("x509", "-in", path, "-noout", *options).decode()

    def fingerprint(self, path: Path) -> str:
        """Give the SHA-256 of the first certificate of a file, in pairs with colons."""
        return self.text(path, "-fingerprint", "-sha256").partition("=")[2].strip()

    def is_pair(self, path: Path) -> bool:
        """Tell whether the key and the first certificate of one file belong together."""
        of_key = self.run("pkey", "-in", path, "-pubout")
        return of_key == self.run("x509", "-in", path, "-noout", "-pubkey")
