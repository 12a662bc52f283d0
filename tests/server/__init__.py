"""Tests of certfs.server."""
