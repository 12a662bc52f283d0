"""Tests of certfs.supervisor."""
