"""Tests of `certfs.pool`."""
