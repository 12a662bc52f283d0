"""certfs as mount(8) calls it: ``mount -t fuse.certfs STORE MOUNTPOINT -o OPTIONS``, and a line of fstab(5).

mount(8) runs ``/sbin/mount.fuse.certfs STORE MOUNTPOINT [-sfnv] [-o OPTIONS] [-t TYPE]`` where that is installed, and
else ``mount.fuse``, which runs ``certfs STORE MOUNTPOINT -o OPTIONS``. Owns turning either into the arguments of
``certfs mount``; values in, values out.
"""

import os
from collections.abc import Sequence
from typing import Final

_HELPER: Final = "mount."
"""With what the names of mount helpers begin."""
_WITH_VALUE: Final = frozenset("otN")
_PLACES: Final = 2


def translated(arguments: Sequence[str]) -> list[str] | None:
    """Return the arguments of ``certfs mount`` for a call by mount(8); None if it is another kind of call.

    ``arguments`` begin with the name of the program. What is missing is left for ``certfs mount`` to refuse.
    """
    program, *words = arguments
    is_helper = os.path.basename(program).startswith(_HELPER)
    if not is_helper and not (len(words) >= _PLACES and "/" in words[0]):
        return None
    places: list[str] = []
    options: list[str] = []
    flags = ""
    waiting = iter(words)
    for word in waiting:
        if not word.startswith("-") or word == "-":
            places.append(word)
            continue
        letters = word[1:]
        while letters:
            letter, letters = letters[0], letters[1:]
            if letter not in _WITH_VALUE:
                flags += letter
                continue
            value, letters = letters or next(waiting, ""), ""
            if letter == "o" and value:
                options.append(value)
    result = ["mount", "--store", *places[:1]] if len(places) >= _PLACES else ["mount"]
    if options:
        result += ["-o", ",".join(options)]
    for letter, given, option in (
        ("s", True, "--sloppy"),
        ("f", True, "--fake"),
        ("v", False, "--quiet"),
    ):
        if (letter in flags) == given:
            result.append(option)
    return [*result, "--", *places[1:]]
