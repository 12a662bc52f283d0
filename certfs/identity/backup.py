"""Whether the host's own backup holds what certfs presents.

XAPI's ``host-backup`` archives with ``tar --one-file-system``, which leaves out what is mounted on the directories that
it archives. Owns reading which program XAPI runs for it (xapi.conf and xapi.conf.d), and what is wrong with that.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from certfs.core.text import printable
from certfs.identity.finding import Finding, Severity
from certfs.identity.paths import HostPaths, read_file

ORIGINAL: Final = "/opt/xensource/libexec/host-backup"
"""XAPI's own program, which it runs if its configuration names no other."""
WRAPPER: Final = "/opt/certfs/current/libexec/host-backup"
"""What certfs's packages install."""
_KEY: Final = "host-backup"


def find_backup(paths: HostPaths) -> Iterator[Finding]:
    """Yield what is wrong with the backup of a host that has XAPI; of any other, nothing."""
    etc = paths.xensource.parent
    main = etc / "xapi.conf"
    if not main.is_file():
        return
    own = etc / "xapi.conf.d" / "certfs.conf"
    program, named_in = _program(main)
    if program == ORIGINAL:
        yield Finding(
            Severity.WARNING,
            "HOST_BACKUP_EMPTY",
            named_in or own,
            "lets xe host-backup archive /etc/xensource and /etc/stunnel empty while certfs is mounted"
            if named_in
            else "is missing: xe host-backup archives /etc/xensource and /etc/stunnel empty while certfs is mounted",
            f"write to {own}: {_KEY} = {WRAPPER} (or a program that runs: certfs detached --if-mounted -- {ORIGINAL})",
        )
    elif named_in and not os.access(program, os.X_OK):
        yield Finding(
            Severity.WARNING,
            "HOST_BACKUP_MISSING",
            named_in,
            f"names {printable(program)} for xe host-backup, which is no program: every backup fails",
            f"install it, or remove the line: then XAPI runs {ORIGINAL}",
        )


def _program(main: Path) -> tuple[str, Path | None]:
    """Return the program that XAPI runs, and the file that names it (None: no file does).

    The files of xapi.conf.d are read after xapi.conf, by name; the last value counts.
    """
    program, named_in = ORIGINAL, None
    try:
        drop_ins = sorted(main.with_name("xapi.conf.d").glob("*.conf"))
    except OSError:
        drop_ins = []
    for path in (main, *drop_ins):
        try:
            text = read_file(path).decode(errors="replace")
        except OSError:
            continue  # XAPI cannot read it either
        for line in text.splitlines():
            key, separator, value = line.partition("=")
            if separator and key.strip() == _KEY:
                program, named_in = value.strip().strip("\"'"), path
    return program, named_in
