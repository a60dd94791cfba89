"""Curves of the trainings and usage of the caches in a folder of runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from coda.tokenizer import CodaError, CodeLayout
from coda.tokenizer.training.curves import draw_curves
from coda.tokenizer.usage import LevelUsage

USAGE_COLUMNS = ("level", "side", "different codes", "usage %", "of attainable %", "perplexity")


def find_runs(folder: Path, mark: str) -> list[str]:
    """Directories within `folder` that hold a file of that name, newest first, as paths relative to `folder`."""
    found = [path for path in folder.rglob(mark) if path.is_file() and not path.is_symlink()]
    newest = sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)
    return [str(path.parent.relative_to(folder)) for path in newest]


def run_curves(folder: Path, name: str) -> Image.Image:
    """Every figure that the training `name` in `folder` has logged so far.

    Raises:
        CodaError: If there is no such training, it has logged nothing yet, or matplotlib is missing.
    """
    if name not in find_runs(folder, "log.jsonl"):
        raise CodaError(f"there is no training {name} in {folder}")
    text = (folder / name / "log.jsonl").read_text()
    log = [json.loads(line) for line in text.splitlines() if line.endswith("}")]  # a running training cuts the last
    if not log:
        raise CodaError(f"{name} has logged nothing yet")
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "curves.png"
        if not draw_curves(log, path, name):
            raise CodaError("curves are drawn with matplotlib: pip install 'coda[plots]'")
        with Image.open(path) as drawn:
            return drawn.convert("RGB")


def usage_rows(levels: Sequence[LevelUsage], layout: CodeLayout) -> list[list[object]]:
    """Rows of a table with `USAGE_COLUMNS`."""
    return [
        [
            level,
            f"{height}×{width}",
            found.codes_seen,
            round(found.usage, 2),
            round(100 * found.usage / found.attainable, 1) if found.attainable else 0.0,
            round(found.perplexity, 1),
        ]
        for level, (found, (height, width)) in enumerate(zip(levels, layout.sides, strict=True))
    ]
