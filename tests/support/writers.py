"""What other processes do to a directory when a test tells them to, many at a time.

Owns functions for a Peer. Imports little, because each of these processes imports this module.
"""

from __future__ import annotations

import os
import time

from tests.support import peer


def churn(directory: str, bundle: str, name: str, texts: list[bytes]) -> list[str]:
    """Overwrite one's own file again and again; say each time the bundle was wrong about it."""
    wrong = []
    previous = b""
    for number, text in enumerate(texts):
        with open(f"{directory}/{name}", "wb", buffering=0) as file:
            file.write(text)
        seen = peer.read_or_none(bundle) or b""
        if text not in seen:
            wrong.append(f"{name} {number}: not there")
        if previous and previous in seen:
            wrong.append(f"{name} {number}: the one before is there")
        previous = text
    return wrong


def write_many(directory: str, prefix: str, texts: list[bytes]) -> None:
    """Have many files open for writing at once, then close all of them in one go."""
    handles = [
        os.open(f"{directory}/{prefix}-{number}.pem", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for number in range(len(texts))
    ]
    for handle, text in zip(handles, texts, strict=True):
        os.write(handle, text)
    for handle in handles:
        os.close(handle)


def exit_without_closing(directory: str, name: str, text: bytes) -> None:
    """Write a file in a child process that ends without closing it; wait for its end."""
    child = os.fork()
    if child == 0:
        handle = os.open(f"{directory}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(handle, text)
        os._exit(0)
    os.waitpid(child, 0)


def write_slowly(path: str, texts: list[bytes], seconds: float) -> int:
    """Overwrite a file in small pieces until the time is over, at least three times; give how often it was done."""
    deadline = time.monotonic() + seconds
    turn = 0
    while time.monotonic() < deadline or turn < 3:
        text = texts[turn % len(texts)]
        flags = os.O_TRUNC if turn % 2 else 0
        handle = os.open(path, os.O_WRONLY | flags)
        for at in range(0, len(text), 100):
            os.write(handle, text[at : at + 100])
        os.ftruncate(handle, len(text))
        os.close(handle)
        turn += 1
    return turn


def cycle(place: str, count: int) -> None:
    """Create, link, rename, read, list and remove, with names that are all new."""
    for number in range(count):
        base = f"{place}/{os.getpid()}-{number}"
        with open(base, "wb", buffering=0) as file:
            file.write(b"x" * (number % 5000))
        os.link(base, f"{base}.link")
        os.rename(base, f"{base}.renamed")
        os.mkdir(f"{base}.directory")
        with open(f"{base}.renamed", "rb", buffering=0) as file:
            file.read()
        os.rmdir(f"{base}.directory")
        os.unlink(f"{base}.renamed")
        os.unlink(f"{base}.link")
