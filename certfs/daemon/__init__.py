"""Processes and mounts: the server, its supervisor, the janitor, and what they tell each other.

``server`` (the process that serves FUSE) is the only module here that may import the event loop or FUSE; the others
are the standard library's alone, because the supervisor must be small and must never be what breaks.
"""
