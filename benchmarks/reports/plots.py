"""Plots of a report, drawn if matplotlib (the extra `plots`) is installed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Literal

from coda.tokenizer.foundation.atomic_io import write_bytes

_COLORS = ("#4878a8", "#d0743c", "#5a9a5a", "#a05a96", "#8a6d4b", "#777777")


@dataclass(frozen=True)
class Plot:
    """One plot: `values` over `labels`.

    Attributes:
        name: File name without suffix.
        title: Heading.
        x_label: Title of the axis of `labels`.
        y_label: Title and unit of the axis of `values`.
        labels: One per value.
        values: The values, or several lines of them by name; None leaves a gap.
        kind: "bars" or "line".
        log: Whether the axis of the values is logarithmic.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    labels: Sequence[str]
    values: Sequence[float | None] | Mapping[str, Sequence[float | None]]
    kind: Literal["bars", "line"] = "bars"
    log: bool = False


def draw(plots: Sequence[Plot], folder: Path) -> list[str]:
    """Write each plot as a PNG into `folder`; returns the file names, none if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return []
    names = []
    for plot in plots:
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = FigureCanvasAgg(figure).figure.add_subplot()
        places = range(len(plot.labels))
        lines = plot.values if isinstance(plot.values, Mapping) else {"": plot.values}
        for (name, line), color in zip(lines.items(), cycle(_COLORS), strict=False):
            values = [float("nan") if value is None else value for value in line]
            if plot.kind == "bars":
                axes.bar(places, values, color=color)
            else:
                axes.plot(places, values, marker="o", color=color, label=name or None)
        if plot.log:
            axes.set_yscale("log")
        if len(lines) > 1:
            axes.legend(fontsize="small")
        axes.set_xticks(places, plot.labels)
        axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
        axes.grid(axis="y", alpha=0.3)
        name = f"{plot.name}.png"
        content = io.BytesIO()
        figure.savefig(content, dpi=150, format="png")
        write_bytes(folder / name, content.getvalue())
        names.append(name)
    return names
