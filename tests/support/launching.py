"""Mounting with another module as the server (``python -m tests.support.launching MODULE STORE MOUNTPOINT``)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from certfs.client.mount import MountRequest, launch, standalone


def mount_with(module: str, store: Path, mountpoint: Path, runtime: Path) -> dict[str, str]:
    """Mount; return the environment of the commands that are to find the mount."""
    environment = {**os.environ, "CERTFS_RUNTIME_DIR": str(runtime)}
    command = [sys.executable, "-m", "tests.support.launching", module, str(store), str(mountpoint)]
    subprocess.run(
        command, check=True, env=environment, timeout=60, cwd=Path(__file__).resolve().parents[2]
    )
    return environment


def main() -> None:
    """Mount as the command line says."""
    module, store, mountpoint = sys.argv[1:]
    places = standalone(store, mountpoint)
    launch(
        MountRequest(
            mode="standalone",
            places=places,
            config_file=None,
            allow_other=False,
            server_module=module,
        )
    )


if __name__ == "__main__":
    main()
