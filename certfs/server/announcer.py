"""The announcer: makes a change of a bundle an event of inotify(7) on the mount (promise I21).

    python -I -S announcer.py <order

No process writes a bundle, so the kernel has nothing to report. This one makes the system calls of a program that
replaces the file: it renames a name of certfs's own onto the bundle, and removes the generations that are not current
any more. The server answers these calls to this process alone, and changes nothing. The kernel then reports MOVED_TO in
the directory, and ATTRIB and DELETE_SELF of the generation that a watcher has open.

A process of its own, and a short one: calls on the mount wait for the server, so they must never be made by the server
itself; and nothing of the mount is held between two orders. An order is JSON: the path of the mount, and what to do
beneath it. Only the standard library, and little of it, since it is started for each announcement.
"""

import json
import os
import sys


def main() -> None:
    """Do what standard input says; a step that fails has nobody to tell."""
    order = json.load(sys.stdin)
    for operation, *names in order["steps"]:
        paths = [os.fsencode(f"{order['mount']}/{name}") for name in names]
        try:
            if operation == "rename":
                os.rename(*paths)
            else:
                os.unlink(*paths)
        except OSError:
            continue


if __name__ == "__main__":
    main()
