"""Running other programs: each is shown, and one that fails ends the build with what it said."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class BuildError(Exception):
    """The build cannot go on; the message says what is wrong and what to do."""


def run(
    command: Sequence[str | Path],
    *,
    directory: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Run ``command`` and return its standard output; BuildError with all it said if it fails."""
    words = [str(word) for word in command]
    result = subprocess.run(
        words,
        check=False,
        cwd=directory,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if result.returncode != 0:
        said = (result.stdout + result.stderr)[-4000:]
        raise BuildError(f"{' '.join(words)} ended with status {result.returncode}:\n{said}")
    return result.stdout


def say(text: str) -> None:
    """Tell whoever watches what is being done."""
    print(f"package: {text}", file=sys.stderr, flush=True)
