"""Columns of plain text, for terminals, files and pipes alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coda.tokenizer.foundation.errors import shown


def plain_table(rows: Iterable[Sequence[object]], numbers: bool = False) -> list[str]:
    """Lines of aligned columns, two spaces between them; names from files are shown escaped.

    Args:
        rows: The same number of cells in each; None is an empty cell.
        numbers: Align to the right instead of the left.
    """
    texts = [["" if cell is None else shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    aligned = str.rjust if numbers else str.ljust
    return ["  ".join(map(aligned, row, widths)).rstrip() for row in texts]
