"""Fixtures for the tests of the certificate commands: those of the host certificates."""

from tests.identity.conftest import _identity, authority, host, openssl, paths, server

__all__ = ["_identity", "authority", "host", "openssl", "paths", "server"]
