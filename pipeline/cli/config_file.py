"""`--config FILE`: defaults for a command's flags, in JSON or TOML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .arguments import UsageError


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a configuration file.

    Raises:
        OSError: The file cannot be read.
        UsageError: It is neither JSON nor TOML, or no table of keys.
    """
    text = path.read_text(encoding="utf-8")
    try:
        if path.suffix == ".json":
            found = json.loads(text, object_pairs_hook=_unique)
        elif path.suffix == ".toml":
            import tomllib

            found = tomllib.loads(text)
        else:
            raise UsageError(f"--config {path}: expected a name that ends in .json or .toml")
    except ValueError as error:  # of both parsers
        raise UsageError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"--config {path}: expected keys and values, as --dry-run prints them")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is given twice")
        found[key] = value
    return found
