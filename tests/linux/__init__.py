"""Tests of certfs.linux."""
