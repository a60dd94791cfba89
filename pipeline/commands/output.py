"""What commands leave: directories made in one go, whole or not at all, and the words they end with."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from coda.benchmarks.reports.report import Report


@contextmanager
def new_directory(out: Path, overwrite: bool, mark: str) -> Iterator[Path]:
    """A folder beside `out` to write into; it becomes `out` at the end, and vanishes if anything goes wrong.

    Args:
        out: The directory to make.
        overwrite: Whether `out` may be replaced, if it was made by the same command.
        mark: Name of a file by which what that command makes is known.

    Raises:
        CodaError: `out` holds something that may not be replaced; before anything else is done.
    """
    from coda.tokenizer.foundation.atomic_io import publish_directory
    from coda.tokenizer.foundation.errors import CodaError

    if out.is_file():
        raise CodaError(f"{out} is a file; --out names a directory")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise CodaError(f"{out} exists already; choose another --out or give --overwrite")
    if out.is_dir() and any(out.iterdir()) and not (out / mark).exists():
        raise CodaError(f"{out} holds something that this command did not make (no {mark}); choose another --out")
    partial = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        publish_directory(partial, out.absolute(), overwrite=overwrite)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def ending_of(report: Report, out: Path) -> str:
    """The report, and as the last line what was made and where."""
    return f"{report.to_markdown()}\nMade the report in {out}: report.md and report.json"
