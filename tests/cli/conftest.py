"""Fixtures for the tests of the certificate commands."""

from tests.support.identity import _identity, authority, host, openssl, paths, server

__all__ = ["_identity", "authority", "host", "openssl", "paths", "server"]
