"""The tests of certfs."""
