"""A server of which one request waits for ever, for nothing that is the store's: what I15 calls a hang of requests.

The answer about a bundle hangs from the moment at which there is a source named ``stuck.pem``.
"""

import trio

from certfs.fuse.base import FilesystemBase
from certfs.server.main import main
from certfs.store.bundle import LiveBundle

_told = FilesystemBase.wait_until_current


async def _wait(self: FilesystemBase, bundle: LiveBundle) -> None:
    await _told(self, bundle)
    if any(name == b"stuck.pem" for name in bundle.catalog.names()):
        await trio.sleep_forever()


if __name__ == "__main__":
    FilesystemBase.wait_until_current = _wait  # type: ignore[method-assign]
    main()
