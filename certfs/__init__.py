"""certfs: a filesystem whose TLS CA bundles are always the certificates that are there now."""

__version__ = "0.1.0"
