"""The platform's names for what is wrong with a certificate, so that runbooks still match.

Owns names and exit codes; the sentence about a particular file is written where the file is judged.
The names are those of the platform's API (xapi-project/xen-api, ``ocaml/idl/api_errors.ml``).
"""

from typing import ClassVar

from certfs.errors import CertfsError


class CertificateError(CertfsError):
    """A check of the platform's failed."""

    name: ClassVar[str]

    def __str__(self) -> str:
        return f"{self.name}: {super().__str__()}"


class ServerKeyInvalidError(CertificateError):
    """The private key is not one unencrypted key in PEM form."""

    name = "SERVER_CERTIFICATE_KEY_INVALID"
    exit_code = 20


class ServerKeyMismatchError(CertificateError):
    """The private key does not belong to the certificate."""

    name = "SERVER_CERTIFICATE_KEY_MISMATCH"
    exit_code = 21


class ServerKeyAlgorithmError(CertificateError):
    """The private key is of a kind other than RSA."""

    name = "SERVER_CERTIFICATE_KEY_ALGORITHM_NOT_SUPPORTED"
    exit_code = 22


class ServerKeyLengthError(CertificateError):
    """The RSA key is shorter than 2048 or longer than 4096 bits."""

    name = "SERVER_CERTIFICATE_KEY_RSA_LENGTH_NOT_SUPPORTED"
    exit_code = 23


class ServerKeyMultiPrimeError(CertificateError):
    """The RSA key has more than two primes."""

    name = "SERVER_CERTIFICATE_KEY_RSA_MULTI_NOT_SUPPORTED"
    exit_code = 24


class ServerCertificateInvalidError(CertificateError):
    """The certificate is not one X.509 certificate in PEM form."""

    name = "SERVER_CERTIFICATE_INVALID"
    exit_code = 25


class ServerCertificateExpiredError(CertificateError):
    """The certificate's validity is over."""

    name = "SERVER_CERTIFICATE_EXPIRED"
    exit_code = 26


class ServerCertificateNotValidYetError(CertificateError):
    """The certificate's validity has not begun."""

    name = "SERVER_CERTIFICATE_NOT_VALID_YET"
    exit_code = 27


class ServerCertificateSignatureError(CertificateError):
    """The certificate is signed with something other than SHA-256 or SHA-512."""

    name = "SERVER_CERTIFICATE_SIGNATURE_NOT_SUPPORTED"
    exit_code = 28


class ServerCertificateChainInvalidError(CertificateError):
    """The chain is not one or more X.509 certificates in PEM form."""

    name = "SERVER_CERTIFICATE_CHAIN_INVALID"
    exit_code = 29


class CertificateNameInvalidError(CertificateError):
    """The name has characters that are not allowed, a leading dot, or does not end in .pem."""

    name = "CERTIFICATE_NAME_INVALID"
    exit_code = 30


class CertificateAlreadyExistsError(CertificateError):
    """A certificate of that name is installed already."""

    name = "CERTIFICATE_ALREADY_EXISTS"
    exit_code = 31


class CertificateDoesNotExistError(CertificateError):
    """No certificate of that name is installed."""

    name = "CERTIFICATE_DOES_NOT_EXIST"
    exit_code = 32


class CertificateCorruptError(CertificateError):
    """The file is not certificates in PEM form, or cannot be removed."""

    name = "CERTIFICATE_CORRUPT"
    exit_code = 33


class CertificateLibraryCorruptError(CertificateError):
    """A file or directory of the host's own is not what it must be."""

    name = "CERTIFICATE_LIBRARY_CORRUPT"
    exit_code = 34


class NotDistributedError(CertfsError):
    """Other hosts of the pool have to get this host's new certificate before it is put in use."""

    exit_code = 37


class StillPresentedError(CertfsError):
    """A running stunnel still presents the certificate that was to be retired."""

    exit_code = 38


class NotInUseError(CertfsError):
    """The host's new pool certificate is not in use yet: the old one cannot be retired."""

    exit_code = 39


class CrlNameInvalidError(CertificateError):
    """The name of a revocation list has characters that are not allowed, a leading dot, or does not end in .pem."""

    name = "CRL_NAME_INVALID"
    exit_code = 42


class CrlAlreadyExistsError(CertificateError):
    """A revocation list of that name is installed already."""

    name = "CRL_ALREADY_EXISTS"
    exit_code = 43


class CrlDoesNotExistError(CertificateError):
    """No revocation list of that name is installed."""

    name = "CRL_DOES_NOT_EXIST"
    exit_code = 44


class CrlCorruptError(CertificateError):
    """The file is not one revocation list in PEM form, or cannot be removed."""

    name = "CRL_CORRUPT"
    exit_code = 45
