"""The FUSE adapter: the only place that knows pyfuse3, node numbers and ``FUSEError``."""
