"""Tests on a real mount."""
