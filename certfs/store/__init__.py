"""The directories beneath the mount: system calls, reading sources, watching, and the plain copies of the bundles."""
