"""Tests of what works on the directories beneath the mount, on real directories."""
