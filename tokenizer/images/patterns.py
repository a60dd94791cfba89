"""Patterns of file names: braces, wildcards and a slice at the end."""

from __future__ import annotations

import glob
import os
import re
from itertools import product

from ..foundation.errors import CodaError

_SLICE = re.compile(r"(?P<path>.+)\[(?P<start>-?\d*):(?P<stop>-?\d*)\]")
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_FILES = 1_000_000


def split_slice(path: str) -> tuple[str, slice | None]:
    """`DIR[:650]` as `DIR` and slice(None, 650); a path without a slice, or that exists with it, unchanged."""
    match = _SLICE.fullmatch(path)
    if match is None or os.path.exists(path):
        return path, None
    start, stop = (int(match[bound]) if match[bound] else None for bound in ("start", "stop"))
    return match["path"], slice(start, stop)


def is_pattern(path: str) -> bool:
    """Whether a path has braces or wildcards."""
    return not os.path.exists(path) and bool(_BRACES.search(path) or glob.has_magic(path))


def expand(pattern: str) -> list[str]:
    """The files named by braces (`{00000..00099}`, `{train,val}`) and wildcards (`*`, `?`, `[ab]`), sorted.

    Raises:
        CodaError: If a file named by braces is missing, or nothing matches the wildcards.
    """
    found: list[str] = []
    for path in _expand_braces(pattern):
        matches = glob.glob(path) if glob.has_magic(path) and not os.path.exists(path) else [path]
        if not matches:
            raise CodaError(f"nothing matches {path}")
        if not os.path.exists(matches[0]):
            raise CodaError(f"{path} does not exist" + (f" (named by {pattern})" if path != pattern else ""))
        found += matches
    return sorted(set(found))


def _expand_braces(pattern: str) -> list[str]:
    texts = _BRACES.split(pattern)  # text, braces' content, text, …
    choices = [[text] if i % 2 == 0 else _choices(text, pattern) for i, text in enumerate(texts)]
    total = 1
    for options in choices:
        total *= len(options)
    if total > _MAX_FILES:
        raise CodaError(f"{pattern} names {total:,} files; at most {_MAX_FILES:,} are allowed")
    return ["".join(parts) for parts in product(*choices)]


def _choices(content: str, pattern: str) -> list[str]:
    match = _RANGE.fullmatch(content)
    if match is None:
        return content.split(",")
    first, last = int(match[1]), int(match[2])
    if last - first >= _MAX_FILES:
        raise CodaError(f"{pattern} names {last - first + 1:,} files; at most {_MAX_FILES:,} are allowed")
    return [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
