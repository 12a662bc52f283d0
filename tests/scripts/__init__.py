"""Tests of the scripts that people start with."""
