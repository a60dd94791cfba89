"""`CodaError`, the exception for what a user can put right, and how foreign text is shown in messages."""

from __future__ import annotations


class CodaError(Exception):
    """A failed run. The message is one line: what was wrong, where, and what would be right."""

    def __init__(self, message: object = "") -> None:
        super().__init__(shown(message))


def first_line(error: BaseException) -> str:
    """The first line of an error's text, which may have many."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def shown(text: object) -> str:
    r"""Foreign text (a file name, a class name, a key) as it may be printed.

    Control characters and bytes that are not UTF-8 are escaped: `a\x1b[2Jb.jpg`, `caf\udce9.png`.
    """
    plain = str(text)
    return plain if plain.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in plain)
