"""Reading JSON that somebody else may have written: damaged files and names that lead out of a folder are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .errors import CodaError, first_line


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CodaError: If the file is missing or damaged, or holds anything but an object.
    """
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CodaError(f"{path} cannot be read: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise CodaError(f"{path} is damaged: it does not hold a JSON object")
    return value


def plain_name(name: object, source: str | Path) -> str:
    """Check a file name that was read from a file; use it wherever such a name becomes a path.

    Args:
        name: The name as it was read.
        source: File that it was read from, for the message.

    Returns:
        `name`, which names a file directly inside a folder.

    Raises:
        CodaError: If it is not a string, or is absolute, hidden, or leads into another folder.
    """
    if not isinstance(name, str) or not name or name.startswith(".") or set(name) & set("/\\:\0"):
        raise CodaError(f"{source} names the file {name!r}; only plain names in its own folder are allowed")
    return name
