"""The result of a benchmark: figures, tables, and everything needed to compare them with others.

Saved as `report.json`, `report.md` (for reading) and, if matplotlib is installed, plots. Names that come from the data
are escaped, see `shown`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from coda.tokenizer.foundation.atomic_io import write_bytes, write_json
from coda.tokenizer.foundation.errors import CodaError, shown

from .plots import Plot, draw

Cell = str | int | float | None


@dataclass(frozen=True)
class Figure:
    """One measured number.

    Attributes:
        name: Name, such as "fd_efficientnet_lite0".
        value: The number; None if it could not be measured (`note` says why).
        unit: "dB", "%", "images/s"; empty for a bare number.
        spread: Standard deviation, if there is one.
        note: How it was measured, in a few words.
    """

    name: str
    value: float | None
    unit: str = ""
    spread: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table of a report; every row has one cell per column."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Report:
    """Figures and their provenance.

    Attributes:
        title: Title of the report.
        figures: The figures, in reading order.
        tables: Further tables (usage per level, rungs of an ablation, timings).
        provenance: Extractor, sets and hashes, N, class balance, crop, rounding, seed, versions, hardware, …
        warnings: Caveats to know before comparing.
        plots: Drawn on saving, if matplotlib is installed.
    """

    title: str
    figures: list[Figure]
    provenance: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)

    def __getitem__(self, name: str) -> float | None:
        """The value of the figure of that name."""
        for figure in self.figures:
            if figure.name == name:
                return figure.value
        raise KeyError(f"{self.title} has no figure {name!r}; it has {', '.join(f.name for f in self.figures)}")

    def to_json(self) -> dict[str, Any]:
        """The report as JSON; numbers that are not finite become null."""
        return _plain(asdict(self))

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Report:
        """Read the result of `to_json`."""
        return cls(
            title=found["title"],
            figures=[Figure(**figure) for figure in found["figures"]],
            provenance=dict(found["provenance"]),
            tables=[Table(**table) for table in found["tables"]],
            warnings=list(found["warnings"]),
            plots=[Plot(**plot) for plot in found["plots"]],
        )

    @classmethod
    def load(cls, folder: str | Path) -> Report:
        """Read a saved report.

        Raises:
            CodaError: If there is none in `folder`, or it is damaged.
        """
        path = Path(folder) / "report.json"
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise CodaError(f"{folder} holds no report.json") from None
        except (ValueError, KeyError, TypeError) as error:
            raise CodaError(f"{path} is damaged; give --overwrite to measure again") from error

    def to_markdown(self) -> str:
        """The report as a page of Markdown."""
        parts = [f"# {self.title}", *(f"> **Note.** {_cell(warning)}" for warning in self.warnings)]
        if self.figures:
            rows = [(f.name, _with_unit(f), f.note) for f in self.figures]
            parts.append(_markdown_table(("figure", "value", "how"), rows))
        for table in self.tables:
            parts += [f"## {table.title}", _markdown_table(table.columns, table.rows)]
        origins = [(key, _text(value)) for key, value in self.provenance.items()]
        parts += ["## How it was measured", _markdown_table(("", ""), origins)]
        return "\n\n".join(parts) + "\n"

    def to_eval_results(self, task: str, dataset: str) -> list[EvalResult]:
        """The figures in the hub's form, for a model card.

        Args:
            task: The hub's name of the task, such as "unconditional-image-generation".
            dataset: Name of the images that were measured.
        """
        return [
            EvalResult(
                task_type=task,
                dataset_type="imagefolder",
                dataset_name=dataset,
                metric_type=figure.name,
                metric_name=f"{figure.name}, {figure.unit}" if figure.unit else figure.name,
                metric_value=figure.value,
            )
            for figure in self.figures
            if figure.value is not None and math.isfinite(figure.value)
        ]

    def save(self, folder: str | Path) -> Path:
        """Write `report.json`, `report.md` and the plots into `folder`; returns it."""
        folder = Path(folder)
        plots = draw(self.plots, folder)
        markdown = self.to_markdown() + "".join(f"\n![{name}]({name})\n" for name in plots)
        write_bytes(folder / "report.md", markdown.encode())
        write_json(folder / "report.json", self.to_json())
        return folder


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Cell) -> str:
    return shown(_text(value)).replace("|", "\\|").replace("<", "&lt;")


def _text(value: Any) -> str:
    """A value in one line."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_text(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_text, value))
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _with_unit(figure: Figure) -> str:
    spread = "" if figure.spread is None else f" ± {figure.spread:.3g}"
    return f"{_text(figure.value)}{spread} {figure.unit}".rstrip()


def _plain(value: Any) -> Any:
    """A JSON value without infinite numbers, and with text escaped (but for the line breaks of plots)."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return "\n".join(shown(line) for line in value.split("\n"))
    return None if isinstance(value, float) and not math.isfinite(value) else value
