"""The status of a mount: what ``MOUNT/.certfs/status.json`` and ``summary.json`` hold.

Owns collecting it from the store, the requests and the supervisor's state; the schemas are in `certfs.protocol`.
"""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import Protocol

import msgspec

from certfs import __version__
from certfs.core.certificate import Severity, SourceContent
from certfs.core.text import printable
from certfs.fuse import base
from certfs.linux.processes import ProcessId
from certfs.moment import written
from certfs.protocol.report import (
    BeingWritten,
    BundleReport,
    MountReport,
    PlainCopy,
    Remark,
    ServingProcess,
    SupervisingProcess,
    Target,
    Writer,
    reported,
)
from certfs.protocol.specs import MountSpec
from certfs.protocol.state_file import read_state
from certfs.protocol.summary import BundleSummary, Summary
from certfs.server.plain_copies import PlainCopies
from certfs.server.settings import Settings
from certfs.store.bundle import LiveBundle
from certfs.store.bundles import Trust
from certfs.store.plain import digest


class Experience(Protocol):
    """What requests experience, which the store itself does not show."""

    def being_written(self) -> list[base.BeingWritten]:
        """Return the sources that count as they were, because writers have not closed them."""

    def is_overdue(self, bundle: LiveBundle) -> bool:
        """Whether a bundle is served as last known, because its sources cannot be read in time."""


class StatusReport:
    """Renders the status of one server."""

    def __init__(
        self,
        mount: MountSpec,
        settings: Settings,
        trust: Trust,
        plain: PlainCopies,
        requests: Experience,
    ) -> None:
        self._mount = mount
        self._settings = settings
        self._trust = trust
        self._plain = plain
        self._requests = requests
        self._since = time.time()
        self._digests: dict[LiveBundle, tuple[int, str]] = {}

    def prepare(self) -> None:
        """Digest the bundles that changed: half a second for 100,000 certificates, so this is for a thread."""
        for bundle in list(self._trust.bundles):
            if bundle.exists:
                self._digest(bundle)

    def render(self) -> bytes:
        """Return the status as it is now."""
        state = read_state(self._mount.runtime)
        bundles = tuple(map(self._bundle, self._trust.bundles))
        report = MountReport(
            mode=self._mount.mode,
            config_file=self._settings.file,
            mounts=tuple(
                Target(target=tree.target, store=tree.store) for tree in self._mount.trees
            ),
            server=ServingProcess(pid=os.getpid(), since=written(self._since), version=__version__),
            supervisor=SupervisingProcess(pid=state.supervisor.pid) if state else None,
            since=written(state.since if state else self._since),
            bundles=bundles,
            plain_copies_current=all(bundle.plain_copy.current for bundle in bundles),
            events=reported(state.events) if state else (),
        )
        try:
            return msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
        except UnicodeEncodeError:  # a path that is no UTF-8, as os.fsdecode has it
            return json.dumps(asdict(report), indent=2).encode() + b"\n"

    def summary(self) -> Summary:
        """Return what everybody may know: no name of a source, no reason."""
        state = read_state(self._mount.runtime)
        return Summary(
            mode=self._mount.mode,
            config_file=self._settings.file,
            targets=tuple(tree.target for tree in self._mount.trees),
            since=written(state.since if state is not None else self._since),
            server=ProcessId.of(os.getpid()),
            server_since=written(self._since),
            server_version=__version__,
            bundles=tuple(map(self._bundle_summary, self._trust.bundles)),
            plain_copies_current=all(map(self._plain.is_current, self._trust.bundles)),
        )

    def render_summary(self) -> bytes:
        """Return the summary as it is now."""
        return self.summary().to_json()

    def _bundle_summary(self, bundle: LiveBundle) -> BundleSummary:
        return BundleSummary(
            bundle=os.fsdecode(b"/".join(bundle.spec.bundle)),
            source=os.fsdecode(b"/".join(bundle.spec.source)),
            suffixes=tuple(map(os.fsdecode, bundle.spec.suffixes)),
            readers=tuple(reader.value for reader in bundle.spec.readers),
            exists=bundle.exists,
            certificates=bundle.generation.certificates,
            sources=len(bundle.catalog.names()),
            changed=written(bundle.generation.changed_ns / 1e9),
            left_out=sum(1 for _ in bundle.catalog.remarks(Severity.WARNING)),
            plain_copy_current=self._plain.is_current(bundle),
        )

    def _bundle(self, bundle: LiveBundle) -> BundleReport:
        generation = bundle.generation
        remarks = tuple(
            Remark(source=printable(name), line=remark.line, reason=printable(remark.reason))
            for name, remark in bundle.catalog.remarks(Severity.WARNING)
        )
        return BundleReport(
            bundle=printable(b"/".join(bundle.spec.bundle)),
            source=printable(b"/".join(bundle.spec.source)),
            suffixes=tuple(map(printable, bundle.spec.suffixes)),
            readers=tuple(reader.value for reader in bundle.spec.readers),
            exists=bundle.exists,
            generation=generation.number,
            certificates=generation.certificates,
            sources=len(bundle.catalog.names()),
            size=generation.size,
            sha256=self._digest(bundle) if bundle.exists else None,
            changed=written(generation.changed_ns / 1e9),
            swap=bundle.is_swapping,
            left_out=remarks,
            left_out_count=len(remarks),
            not_answering=(
                *map(printable, bundle.silent_places),
                *(["the store"] if self._requests.is_overdue(bundle) else ()),
            ),
            being_written=tuple(self._incomplete(bundle)),
            plain_copy=PlainCopy(
                current=self._plain.is_current(bundle),
                error=self._plain.state(bundle).error or None,
            ),
        )

    def _incomplete(self, bundle: LiveBundle) -> Iterator[BeingWritten]:
        """Yield the sources that count as they were before somebody began to write them."""
        through_mount = {
            each.name: each
            for each in self._requests.being_written()
            if each.directory == bundle.directory_id
        }
        known = {name: (since, content) for name, since, content in bundle.incomplete()}
        for name in sorted(known.keys() | through_mount.keys()):
            writing = through_mount.get(name)
            since, content = known.get(name, (0.0, SourceContent()))
            yield BeingWritten(
                source=printable(name),
                since=written(writing.since if writing else since),
                writers=tuple(
                    Writer(pid=one.pid, uid=one.uid, command=printable(one.command))
                    for one in (writing.writers if writing else ())
                ),
                certificates=tuple(one.fingerprint.hex() for one in content.certificates),
            )

    def _digest(self, bundle: LiveBundle) -> str:
        generation = bundle.generation
        known = self._digests.get(bundle)
        if known is None or known[0] != generation.number:
            known = (generation.number, digest(generation))
            self._digests[bundle] = known
        return known[1]
