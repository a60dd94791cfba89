"""`--config FILE`: defaults for a command's flags, in JSON or TOML."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

from .arguments import UsageError


def read_config(path: Path) -> dict[str, Any]:
    """The keys and values of a configuration file.

    Raises:
        OSError: If the file cannot be read.
        UsageError: If it is neither JSON nor TOML, or does not hold keys and values.
    """
    text = path.read_bytes()
    try:
        if path.suffix == ".json":
            found = json.loads(text, object_pairs_hook=_unique)
        elif path.suffix == ".toml":
            found = tomllib.loads(text.decode("utf-8"))
        else:
            raise UsageError(f"--config {path}: expected a name that ends in .json or .toml")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UsageError(f"--config {path}: expected keys and values, as --dry-run prints them")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key, times in Counter(key for key, _ in pairs).items():
        if times > 1:
            raise ValueError(f"{key!r} is given twice")
    return dict(pairs)
