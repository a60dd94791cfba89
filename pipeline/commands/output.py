"""Output of commands: directories made whole or not at all, and the line that a command ends with."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from coda.tokenizer.foundation import output_directory

if TYPE_CHECKING:
    from coda.benchmarks.reports.report import Report

# What commands leave in their directories, and keys of the JSON object in it, by which it is known as theirs.
_MARKS = {
    "coda_tokenizer.json": ("fingerprint", "layout"),
    "edit.json": ("edit", "model", "seeds"),
    "onnx.json": ("fingerprint", "layout", "size"),
    "reconstruction.json": ("fingerprint", "images", "tokenizer"),
    "samples.json": ("guidance", "model", "steps"),
}


def new_directory(out: Path, overwrite: bool, mark: str) -> AbstractContextManager[Path]:
    """A folder to write into; it becomes `out` at the end, and vanishes if anything goes wrong.

    Args:
        out: The directory to make, or a link to it.
        overwrite: Whether `out` may be replaced, if it was made by the same command.
        mark: Name of the JSON file that tells what that command makes.

    Raises:
        CodaError: If `out` holds something that may not be replaced, or another process is making it.
    """
    keys = set(_MARKS[mark])
    problem = "holds something that this command did not make"
    return output_directory.new_directory(
        out, overwrite, lambda folder: keys <= output_directory.read_mark(folder / mark).keys(), problem
    )


def ending_of(report: Report, out: Path) -> str:
    """The report, and as the last line what was made and where."""
    return f"{report.to_markdown()}\nMade the report in {out}: report.md and report.json"
