"""A server that announces each change at once, instead of a moment after the one before."""

from certfs.server import announcing
from certfs.server.main import main

if __name__ == "__main__":
    announcing.INTERVAL_SECONDS = 0  # type: ignore[misc]
    main()
