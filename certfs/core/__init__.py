"""The pure heart: PEM text in, bundles out. Values only; no files, no time, no FUSE, no logging."""
