"""Text that is shown to people: names from the kernel and from certificates, made safe to print.

Owns the escaping. A file name or a subject may hold anything, a terminal's control sequences and line feeds included.
"""


def printable(text: bytes | str) -> str:
    """Return ``text`` with everything escaped that a terminal or a reader of the log would act on."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text
    )


def counted(number: int, noun: str) -> str:
    """Return a number with what it is of, such as "1 host" or "2 hosts"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def quoted(text: bytes | str) -> str:
    """Return ``text`` in quotation marks, safe to print: no text can look as if it ended earlier, and went on."""
    escaped = printable(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
