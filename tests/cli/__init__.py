"""Tests of the command line, run as the program that users run."""
