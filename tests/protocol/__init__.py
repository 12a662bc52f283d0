"""Tests of certfs.protocol."""
