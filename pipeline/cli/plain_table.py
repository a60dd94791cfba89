"""Columns of plain text, which read the same on a terminal, in a file and in a pipe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def plain_table(rows: Iterable[Sequence[object]], numbers: bool = False) -> list[str]:
    """Lines in which the cells of a column stand below one another, two spaces between columns.

    Args:
        rows: As many cells in each; None is an empty one.
        numbers: Align to the right instead of the left.
    """
    texts = [["" if cell is None else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    aligned = str.rjust if numbers else str.ljust
    return ["  ".join(map(aligned, row, widths)).rstrip() for row in texts]
