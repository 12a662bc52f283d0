"""All operations of the filesystem, put together from their families.

Owns nothing but the composition; each family says what it owns.
"""

from certfs.fuse.directories import DirectoryOperations
from certfs.fuse.files import FileOperations
from certfs.fuse.metadata import MetadataOperations
from certfs.fuse.names import NameOperations


class Operations(NameOperations, FileOperations, DirectoryOperations, MetadataOperations):
    """The filesystem as pyfuse3 calls it."""

    def close(self) -> None:
        """Let go of every descriptor, when the session is over."""
        self.calls.close()
        self.handles.close()
        self.inodes.close()
