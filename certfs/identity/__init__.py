"""The TLS identity of a host and the trust of its pool: generating, checking, replacing, judging.

Works on files through directory descriptors, on a mount and on a bare store alike; must not know
FUSE, the daemon, the configuration or the command line.
"""
