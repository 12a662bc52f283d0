"""The log of the serving process: its form, and one line for every change of trust (promise I20).

Owns the wording. Names from the kernel and from certificates are written so that no terminal and no log reader can be
fooled by them: anything but printable characters is escaped.
"""

import logging
import sys
import warnings
from collections.abc import Iterable
from typing import TextIO

from cryptography.utils import CryptographyDeprecationWarning

from certfs.core.bundle import BundleSpec
from certfs.core.catalog import SourcedCertificate
from certfs.core.certificate import Certificate, Severity
from certfs.core.details import describe
from certfs.core.text import printable
from certfs.linux.log_file import follow
from certfs.store.bundle import Actor, Published
from certfs.store.plain import aside_name

log = logging.getLogger("certfs")

_LEVELS = {
    Severity.NOTE: logging.INFO,
    Severity.WARNING: logging.WARNING,
    Severity.DEFECT: logging.WARNING,
}
# sd-daemon(3): the journal takes a priority from the start of the line.
_PRIORITIES = {
    logging.DEBUG: 7,
    logging.INFO: 6,
    logging.WARNING: 4,
    logging.ERROR: 3,
    logging.CRITICAL: 2,
}


class _JournalFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        prefix = f"<{_PRIORITIES.get(record.levelno, 5)}>"
        return "\n".join(prefix + line for line in super().format(record).splitlines())


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to standard error, and to the file of its name where logrotate has renamed the log."""

    def __init__(self, log: str | None) -> None:
        super().__init__(sys.stderr)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        if self._log:
            follow(self._log)
        super().emit(record)


class _AnswersToTheDead(logging.Filter):
    """Drops pyfuse3's error for a request whose caller was killed: nobody waits for that answer."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "fuse_reply_* failed with No such file or directory" not in record.getMessage()


def start_log(log: str | None, *, journal: bool) -> None:
    """Send the log to standard error, which is the file ``log`` if given; with ``journal`` priorities and no time."""
    handler = _StandardError(log)
    form = "%(message)s" if journal else "%(asctime)s %(levelname)s %(message)s"
    handler.setFormatter(_JournalFormatter(form) if journal else logging.Formatter(form))
    handler.addFilter(_AnswersToTheDead())
    # A negative serial number is no news to an admin, and a Python warning with a line of source no form for any.
    warnings.filterwarnings("ignore", category=CryptographyDeprecationWarning)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("pyfuse3").setLevel(logging.WARNING)


def subject_of(certificate: Certificate) -> str:
    """Return the subject of a certificate for people (RFC 4514)."""
    return describe(certificate).subject or "(no subject)"


def report(published: Published) -> None:
    """Log what changed in a bundle: each certificate with its source, and what was left out and why."""
    spec = published.bundle.spec
    bundle = printable(b"/".join(spec.bundle))
    source = printable(b"/".join(spec.source))
    by = _by(published.actor)
    _report_entries("added", published.change.added, bundle, source, by)
    _report_entries("removed", published.change.removed, bundle, source, by)
    for name, remark in published.remarks:
        where = f"{source}/{printable(name)}" + (f" line {remark.line}" if remark.line else "")
        log.log(_LEVELS[remark.severity], "%s: %s%s", where, printable(remark.reason), by)


def _report_entries(
    what: str, entries: Iterable[SourcedCertificate], bundle: str, source: str, by: str
) -> None:
    for entry in entries:
        certificate = entry.certificate
        log.info(
            "%s %s: %s sha256=%s from %s/%s%s",
            bundle,
            what,
            subject_of(certificate),
            certificate.fingerprint.hex(),
            source,
            printable(entry.source),
            by,
        )


def _by(actor: Actor | None) -> str:
    if actor is None:
        return " (in the store)"
    return f" by uid={actor.uid} pid={actor.pid} command={printable(actor.command)}"


def report_start(bundles: Iterable[tuple[bytes, int, int]]) -> None:
    """Log what a server starts with: path, certificates and sources of each bundle."""
    for path, certificates, sources in bundles:
        log.info("%s: %d certificates from %d sources", printable(path), certificates, sources)


def store_problem(bundle: bytes, error: str) -> None:
    """Log that a plain copy could not be written."""
    log.error("%s: the store's plain copy cannot be written: %s", printable(bundle), error)


def report_kept_aside(spec: BundleSpec, certificates: Iterable[Certificate]) -> None:
    """Log what was in the place of a bundle before the first mount, and is in no source."""
    bundle = printable(b"/".join(spec.bundle))
    for certificate in certificates:
        log.warning(
            "%s held %s sha256=%s before certfs, and %s does not: it is not trusted any more (kept in %s)",
            bundle,
            subject_of(certificate),
            certificate.fingerprint.hex(),
            printable(b"/".join(spec.source)),
            printable(aside_name(spec.bundle[-1])),
        )
