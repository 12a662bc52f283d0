"""The log of the serving process: its form, and one line for every change of trust (promise I20).

Owns the wording. Names from the kernel and from certificates are written so that no terminal and no log reader can be
fooled by them: anything but printable characters is escaped, and what may hold any text is quoted.
"""

import logging
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

from cryptography.utils import CryptographyDeprecationWarning

from certfs import __version__
from certfs.core.bundle import BundleSpec
from certfs.core.catalog import SourcedCertificate
from certfs.core.certificate import Certificate, Severity
from certfs.core.details import describe
from certfs.core.text import printable, quoted
from certfs.linux.log_file import follow
from certfs.linux.trust_log import TrustLog
from certfs.moment import written
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


class _Formatter(logging.Formatter):
    """Gives every line of a record the same beginning, and escapes what a reader of the log would act on."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        if self._journal:
            start = f"<{_PRIORITIES.get(record.levelno, 5)}>"
        else:
            start = f"{written(record.created)} {record.levelname} "
        lines = super().format(record).split("\n")
        return "\n".join(start + printable(line) for line in lines)


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
    handler.setFormatter(_Formatter(journal=journal))
    handler.addFilter(_AnswersToTheDead())
    # A Python warning with a line of source is no form for an admin, nor a negative serial number news for any.
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    warnings.filterwarnings("ignore", category=CryptographyDeprecationWarning)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("pyfuse3").setLevel(logging.WARNING)


def subject_of(certificate: Certificate) -> str:
    """Return the subject of a certificate for people (RFC 4514)."""
    return describe(certificate).subject or "(no subject)"


def report(published: Published, trust_log: TrustLog | None = None) -> None:
    """Log what changed in a bundle: each certificate with its source, and what was left out and why.

    What may hold any text is quoted: no name can imitate what follows it. Changes of trust are written to ``trust_log``
    as well.
    """
    spec = published.bundle.spec
    by = _by(published.actor)
    bundle = b"/".join(spec.bundle)
    source = b"/".join(spec.source)
    lines = [
        *_lines("added to", published.change.added, bundle, source, by),
        *_lines("removed from", published.change.removed, bundle, source, by),
    ]
    _log_trust(lines, published.actor, trust_log)
    copies = [
        *_lines("one more copy in a source of", published.change.copied, bundle, source, by),
        *_lines("one copy less in a source of", published.change.uncopied, bundle, source, by),
    ]
    for line in copies:
        log.info("%s", line)
    for name, remark in published.remarks:
        where = quoted(source + b"/" + name) + (f" line {remark.line}" if remark.line else "")
        log.log(_LEVELS[remark.severity], "%s: %s %s", where, printable(remark.reason), by)


def _log_trust(lines: Sequence[str], actor: Actor | None, trust_log: TrustLog | None) -> None:
    for line in lines:
        log.info("%s", line)
    if trust_log is not None and lines:
        moment = written(time.time())
        user = actor.uid if actor is not None else None
        trust_log.write(user, [f"{moment} INFO {line}" for line in lines])


def _lines(
    what: str, entries: Iterable[SourcedCertificate], bundle: bytes, source: bytes, by: str
) -> Iterator[str]:
    for entry in entries:
        certificate = entry.certificate
        yield (
            f"{what} {quoted(bundle)}: subject={quoted(subject_of(certificate))}"
            f" sha256={certificate.fingerprint.hex()}"
            f" source={quoted(source + b'/' + entry.source)} {by}"
        )


def _by(actor: Actor | None) -> str:
    if actor is None:
        return "by=store"
    login = "none" if actor.login is None else actor.login
    return f"uid={actor.uid} login={login} pid={actor.pid} command={quoted(actor.command)}"


def report_absorbed(spec: BundleSpec, actor: Actor, trust_log: TrustLog) -> None:
    """Log that a rename onto a bundle changed nothing, and who made it: somebody meant to replace what is trusted."""
    line = f"rename onto {quoted(b'/'.join(spec.bundle))} changed nothing: {_by(actor)}"
    _log_trust([line], actor, trust_log)


def report_host_certificate(
    path: bytes,
    new: Certificate | None,
    old: Certificate | None,
    actor: Actor | None,
    trust_log: TrustLog,
) -> None:
    """Log that the host shows another certificate than before, and who made it so."""
    words = ["removed" if new is None else "installed" if old is None else "replaced"]
    words.append(f"host certificate {quoted(path)}:")
    if new is not None:
        words.append(f"subject={quoted(subject_of(new))} sha256={new.fingerprint.hex()}")
    if old is not None:
        words.append(f"before={old.fingerprint.hex()}")
    _log_trust([" ".join((*words, _by(actor)))], actor, trust_log)


def report_version(config_file: str | None) -> None:
    """Log what serves: the version, and the configuration file."""
    name = quoted(config_file) if config_file else "none"
    log.info("certfs %s, configuration file %s", __version__, name)


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
