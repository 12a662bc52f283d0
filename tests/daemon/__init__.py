"""Tests of the daemon: its parts alone, and its unit."""
