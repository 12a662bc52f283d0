"""Tests of the host's certificates, with the openssl command as the second opinion."""
