"""Tests of what the commands do to find, start, restart and end a mount."""
