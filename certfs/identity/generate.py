"""Making a host's self-signed certificates the way the platform makes them.

Owns the contents: key, names, validity, extensions. Writes nothing; must not know where files are.

What the platform does (xapi-project/xen-api, ``ocaml/gencert/selfcert.ml``), and so do we:

- RSA 2048, SHA-256, valid for 3,650 days; the key unencrypted PKCS #8 (``PRIVATE KEY``), an empty
  line, the certificate.
- Valid from the moment of making by this host's clock, not backdated: a clock that is ahead at
  installation gives a certificate that clients refuse until their clocks have caught up
  (the health check says so).
- The server certificate: subject and issuer are one CN; a subjectAltName that is not critical, DNS
  names first, then addresses; no other extension.
- The pool certificate: subject and issuer are *one* relative name of two attributes, CN = UUID of
  the host and serialNumber = the time of making. Two certificates of one host, an old one and its
  successor, so have different names, and OpenSSL can tell them apart without key identifiers. No
  extensions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from certfs.identity.hostpem import HostPem

KEY_BITS = 2048
VALID_DAYS = 3650
_COMMON_NAME_LIMIT = 64
"""ub-common-name of RFC 5280, appendix A.1."""


@dataclass(frozen=True, slots=True)
class ServerNames:
    """What a server certificate calls its host: DNS names and addresses, the best one first."""

    dns_names: tuple[str, ...]
    addresses: tuple[IPv4Address | IPv6Address, ...]

    @property
    def common_name(self) -> str:
        """The first DNS name that fits into a CN, else the first address, else ``localhost``."""
        fitting = (name for name in self.dns_names if len(name) <= _COMMON_NAME_LIMIT)
        return next(fitting, None) or next(
            (str(address) for address in self.addresses), "localhost"
        )


def generate_server_certificate(names: ServerNames, *, now: datetime | None = None) -> HostPem:
    """Make a new key and self-signed certificate for ``xapi-ssl.pem``.

    ``now`` is the start of the validity, by default the host's clock.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names.common_name)])
    general_names: list[x509.GeneralName] = [x509.DNSName(name) for name in names.dns_names]
    general_names += [x509.IPAddress(address) for address in names.addresses]
    if not general_names:
        general_names = [x509.DNSName(names.common_name)]
    return _self_signed(subject, [x509.SubjectAlternativeName(general_names)], now=now)


def generate_pool_certificate(host_uuid: str, *, now: datetime | None = None) -> HostPem:
    """Make a new key and self-signed certificate for ``xapi-pool-tls.pem``.

    ``now`` is the start of the validity and the stamp in the name, by default the host's clock.
    """
    moment = now or datetime.now(UTC)
    subject = x509.Name(
        [
            x509.RelativeDistinguishedName(
                [
                    x509.NameAttribute(NameOID.COMMON_NAME, host_uuid),
                    x509.NameAttribute(NameOID.SERIAL_NUMBER, serial_stamp(moment)),
                ]
            )
        ]
    )
    return _self_signed(subject, [], now=moment)


def serial_stamp(moment: datetime) -> str:
    """Return the platform's stamp for a name: seconds since 1970, twelve significant digits."""
    stamp = f"{moment.timestamp():.12g}"
    return stamp if "." in stamp else f"{stamp}."


def _self_signed(
    name: x509.Name, extensions: Sequence[x509.ExtensionType], *, now: datetime | None
) -> HostPem:
    # X.509 counts in whole seconds; without the fraction the certificate is valid from the moment
    # it is made.
    start = (now or datetime.now(UTC)).replace(microsecond=0)
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=VALID_DAYS))
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return HostPem.of(key, [builder.sign(key, SHA256())])
