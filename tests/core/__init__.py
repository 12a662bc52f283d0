"""Tests of the pure heart: values in, values out."""
