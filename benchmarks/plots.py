"""Plots beside a report's figures, where matplotlib (the extra `plots`) is installed."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coda.tokenizer.durable import write_bytes


@dataclass(frozen=True)
class Plot:
    """One plot: `values` over `labels`.

    Attributes:
        name: File name without its suffix.
        title: Heading.
        x_label: What the labels are.
        y_label: What the values are, with their unit.
        labels: One per value.
        values: The values; None leaves a gap.
        kind: "bars" or "line".
    """

    name: str
    title: str
    x_label: str
    y_label: str
    labels: Sequence[str]
    values: Sequence[float | None]
    kind: Literal["bars", "line"] = "bars"


def draw(plots: Sequence[Plot], folder: Path) -> list[str]:
    """Write each plot as a PNG into `folder`; the names of the files, none where matplotlib is not installed."""
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
        values = [float("nan") if value is None else value for value in plot.values]
        if plot.kind == "bars":
            axes.bar(places, values, color="#4878a8")
        else:
            axes.plot(places, values, marker="o", color="#4878a8")
        axes.set_xticks(places, plot.labels)
        axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
        axes.grid(axis="y", alpha=0.3)
        name = f"{plot.name}.png"
        content = io.BytesIO()
        figure.savefig(content, dpi=150, format="png")
        write_bytes(folder / name, content.getvalue())
        names.append(name)
    return names
