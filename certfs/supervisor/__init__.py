"""S, the process that starts the server, watches it, and decides what is in view.

The standard library's alone: it must be small, and must never be what breaks.
"""
