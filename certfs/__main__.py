"""``python -m certfs`` is the command ``certfs``."""

from certfs.cli import main

main()
