"""Hosts with certificates that the real `openssl` made, for the tests of host certificates and of their commands.

Owns fixtures that the conftest of each of these folders imports.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from certfs.cli import failures, group
from certfs.identity.bundles import update_bundles_of
from certfs.identity.ensure import ensure_identity
from certfs.identity.paths import HostPaths
from tests.support.forked import run_forked
from tests.support.mounts import need_program
from tests.support.openssl import OpenSsl, Pair


def run_certfs(*words: str | Path, feed: bytes | None = None) -> subprocess.CompletedProcess[str]:
    """Run the `certfs` command to its end."""
    return run_forked(words, feed=feed or b"")


UUID = "960abfff-6017-4d97-bd56-0a8f1a43e51a"
"""The UUID of the host that the tests look after."""


@pytest.fixture(scope="session")
def openssl(tmp_path_factory: pytest.TempPathFactory) -> OpenSsl:
    """Give the `openssl` command with a directory for the whole session."""
    need_program("openssl")
    return OpenSsl(tmp_path_factory.mktemp("openssl"))


@pytest.fixture(scope="session")
def authority(openssl: OpenSsl) -> Pair:
    """Give a CA that `openssl` made."""
    return openssl.certificate("certfs test root", openssl.key("root"), ca=True)


@pytest.fixture(scope="session")
def server(openssl: OpenSsl, authority: Pair) -> Pair:
    """Give a host's certificate from that CA."""
    return openssl.certificate("host.example", openssl.key(), issuer=authority)


@pytest.fixture
def paths(tmp_path: Path) -> HostPaths:
    """Give the empty directories of a host."""
    root = tmp_path / "store"
    for directory in ("xensource", "stunnel", "stunnel/certs", "stunnel/certs-pool"):
        (root / directory).mkdir(parents=True)
    return HostPaths.of_store(root)


@pytest.fixture(scope="session")
def _identity(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a store with an identity, to be copied: its keys take a second to make."""
    root = tmp_path_factory.mktemp("identity") / "store"
    for directory in ("xensource", "stunnel", "stunnel/certs", "stunnel/certs-pool"):
        (root / directory).mkdir(parents=True)
    fd = os.open(root, os.O_PATH)
    try:
        ensure_identity(fd, host_uuid=UUID)
    finally:
        os.close(fd)
    # As a mount leaves it.
    paths = HostPaths.of_store(root)
    update_bundles_of(paths, paths.certs_pool)
    return root


@pytest.fixture
def host(_identity: Path, tmp_path: Path) -> HostPaths:
    """Give the directories of a host with an identity."""
    shutil.copytree(_identity, tmp_path / "host")
    return HostPaths.of_store(tmp_path / "host")


def call_certfs(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Do as `run_certfs` in this process, which saves a start: for what does not depend on the process."""
    arguments = ["certfs", *map(str, words)]
    said, errors = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", arguments),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(errors),
    ):
        try:
            code = failures.run(group)
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(arguments, code, said.getvalue(), errors.getvalue())
