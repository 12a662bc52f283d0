"""Programs that watch files notice a change of a bundle wherever they notice that of a replaced file (I21)."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import pytest

from certfs.server.announcing import INTERVAL_SECONDS
from tests.support import pki
from tests.support.mounts import mounted, need_program, scratch_directory, wait_until
from tests.support.tree import Tree
from tests.support.watchers import DEBIAN_AND_PYPI, OTHERS, Kind, Watcher

pytestmark = pytest.mark.mount

KINDS = DEBIAN_AND_PYPI + (OTHERS if os.environ.get("CERTFS_TEST_WATCHERS") == "all" else ())
PEMS = [pki.authority(f"watched {number}").pem for number in range(5)]
CHANGES = 4


@pytest.fixture
def work() -> Iterator[Path]:
    """Give a directory for a file that is replaced, and for programs that have to be built."""
    directory = scratch_directory()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def prepare(kind: Kind, work: Path) -> None:
    """Build what has to be built."""
    need_program(kind.command[0] if not kind.command[0].startswith("{") else "go")
    if "watch.go" in kind.files:
        (work / "watch.go").write_text(kind.files["watch.go"], encoding="utf-8")
        environment = {
            **os.environ,
            "GOPATH": "/usr/share/gocode",
            "GO111MODULE": "off",
            "GOCACHE": str(work),
        }
        subprocess.run(
            ["go", "build", "-o", work / "watch", work / "watch.go"],
            check=True, env=environment, timeout=300,
        )  # fmt: skip


def replace_file(file: Path, content: bytes) -> None:
    """Replace a plain file as careful programs do."""
    draft = file.with_name("draft")
    draft.write_bytes(content)
    draft.rename(file)


class Pair:
    """One kind of watcher, of a plain file and of a bundle, and which changes each noticed."""

    def __init__(self, kind: Kind, plain: Path, bundle: Path, work: Path) -> None:
        self.name, self.follows = kind.name, kind.follows
        self.plain, self.mount = Watcher(kind, plain, work), Watcher(kind, bundle, work)
        self.noticed: list[tuple[bool, bool]] = []
        self._before = (0, 0)

    def has_started(self) -> bool:
        """Whether both watch."""
        return self.plain.has_started() and self.mount.has_started()

    def begin(self) -> None:
        """Take note of what was said before a change."""
        self._before = (len(self.plain.listen()), len(self.mount.listen()))

    def notices(self) -> tuple[bool, bool]:
        """Whether each has said something since."""
        plain, mount = self._before
        return len(self.plain.listen()) > plain, len(self.mount.listen()) > mount

    def is_even(self, number: int) -> bool:
        """Whether both noticed this change, or neither where the first was the last that they could."""
        return self.notices() == ((True, True) if number == 1 or self.follows else (False, False))

    def close(self) -> None:
        """End both."""
        self.plain.close()
        self.mount.close()


def test_watchers_of_the_mount_notice_what_they_would_of_a_plain_file(work: Path) -> None:
    """Four changes, of which the last two come while another reader has the bundle open."""
    (work / "plain").mkdir()
    plain = work / "plain" / "xapi-stunnel-ca-bundle.pem"
    plain.write_bytes(PEMS[0])

    def fill(tree: Tree) -> None:
        (tree.certs / "0.pem").write_bytes(PEMS[0])

    for kind in KINDS:
        prepare(kind, work)
    with mounted(prepare=fill) as mount, ExitStack() as stack:
        bundle = mount.tree.user_bundle
        pairs = [Pair(kind, plain, bundle, work) for kind in KINDS]
        for pair in pairs:
            stack.callback(pair.close)
        for pair in pairs:
            wait_until(pair.has_started, seconds=60, what=f"the start of {pair.name}")
        for number in range(1, CHANGES + 1):
            for pair in pairs:
                pair.begin()
            with bundle.open("rb") if number > CHANGES // 2 else nullcontext():
                replace_file(plain, b"".join(PEMS[: number + 1]))
                (mount.tree.certs / f"{number}.pem").write_bytes(PEMS[number])
                # Two in a row that a watcher takes for one are one: systemd's limit is why there is a pause at all.
                time.sleep(INTERVAL_SECONDS)
            for pair in pairs:
                wait_until(
                    partial(pair.is_even, number), seconds=60, what=f"change {number}, {pair.name}"
                )
            for pair in pairs:
                pair.noticed.append(pair.notices())
        print("\n".join(f"{pair.name}: {pair.noticed}" for pair in pairs))
