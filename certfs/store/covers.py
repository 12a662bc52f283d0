"""What is mounted over our own mount: people see it, and the store beneath does not have it (proc(5), mountinfo).

Owns finding such directories. They are opened by the path that people use, which leads over the mount that this very
process serves: only a thread may do that, while the event loop answers.
"""

import os
from collections.abc import Callable, Iterable

from certfs import procfs
from certfs.store.backing import unpin

Path = tuple[bytes, ...]


def find_covers(
    device: str | None, wanted: Iterable[Path], components: Callable[[bytes], Path]
) -> dict[Path, int]:
    """Return a descriptor, the caller's to close, of each directory of ``wanted`` that is mounted over our mount.

    ``device`` is our mount's. Blocks for as long as our own answers take. Paths are from the root of the mount;
    ``components`` makes one of what mountinfo shows.
    """
    paths = set(wanted)
    found: dict[Path, int] = {}
    entries = procfs.mounts() if device is not None else ()
    ours = {entry.mount_id: entry for entry in entries if entry.device == device}
    for entry in entries:
        below = ours.get(entry.parent_id)
        if below is None or entry.device == device:
            continue
        path = components(os.fsencode(f"{below.root}/{entry.point.removeprefix(below.point)}"))
        if path in paths:
            _take(found, path, entry)
    return found


def _take(found: dict[Path, int], path: Path, entry: procfs.Entry) -> None:
    try:
        descriptor = os.open(entry.point, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    # Something else may be mounted over that in turn, which is in view then.
    unpin(descriptor)
    if path in found:
        os.close(found[path])
    found[path] = descriptor
