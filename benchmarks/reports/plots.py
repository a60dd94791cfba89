"""Plots of a report, drawn if matplotlib (the extra `plots`) is installed."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from coda.tokenizer.foundation.atomic_io import write_bytes

_COLORS = ("#4878a8", "#d0743c", "#5a9a5a", "#a05a96", "#8a6d4b", "#777777", "#c44e52", "#64b5cd", "#b5a642", "#e377c2")
_MARKERS = "os^DvPX*<>"  # as many as colors, so that lines can be told in black and white
_MOST_INSIDE = 6  # lines whose legend is inside the plot
_DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Plot:
    """One plot: `values` over `labels`.

    Attributes:
        name: File name without suffix.
        title: Heading.
        x_label: Title of the axis of `labels`.
        y_label: Title and unit of the axis of `values`.
        labels: One per value.
        values: The values, or several lines of them by name; None leaves a gap. Lines whose names agree up to the
            first comma share color and marker.
        kind: "bars" or "line".
        log: Whether the axis of the values is logarithmic.
        positions: Where the labels stand on the x axis, for a numeric axis; a line then passes over its gaps.
        log_x: Whether the x axis is logarithmic, if there are positions.
        reference: Name and value of a horizontal line.
    """

    name: str
    title: str
    x_label: str
    y_label: str
    labels: Sequence[str]
    values: Sequence[float | None] | Mapping[str, Sequence[float | None]]
    kind: Literal["bars", "line"] = "bars"
    log: bool = False
    positions: Sequence[float] | None = None
    log_x: bool = False
    reference: tuple[str, float] | None = None


def draw(plots: Sequence[Plot], folder: Path) -> list[str]:
    """Write each plot as a PNG into `folder`; returns the file names, none if matplotlib is not installed."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return []
    names = []
    for plot in plots:
        lines = plot.values if isinstance(plot.values, Mapping) else {"": plot.values}
        many = len(lines) > _MOST_INSIDE
        figure = Figure(figsize=(9, 4.5) if many else (6, 3.5), layout="constrained")
        axes = FigureCanvasAgg(figure).figure.add_subplot()
        places = range(len(plot.labels)) if plot.positions is None else plot.positions
        families: dict[str, int] = {}  # lines drawn so far in each color
        for name, line in lines.items():
            family = name.partition(",")[0]
            number = families.setdefault(family, 0)
            turns, place = divmod(list(families).index(family), len(_COLORS))
            color, marker, style = _COLORS[place], _MARKERS[place], _DASHES[(number + turns) % len(_DASHES)]
            families[family] += 1
            points = [(x, float("nan") if y is None else y) for x, y in zip(places, line, strict=True)]
            if plot.positions is not None:
                points = [(x, y) for x, y in points if y == y]  # not NaN
            if plot.kind == "bars":
                axes.bar(*zip(*points, strict=True), color=color)
            elif points:
                axes.plot(*zip(*points, strict=True), marker=marker, color=color, linestyle=style, label=name or None)
        if plot.reference is not None:
            axes.axhline(plot.reference[1], color="black", linewidth=1, linestyle="-.", label=plot.reference[0])
        if plot.log:
            axes.set_yscale("log")
        if len(lines) > 1 or plot.reference is not None:
            axes.legend(
                fontsize="small", loc="center left" if many else "best", bbox_to_anchor=(1, 0.5) if many else None
            )
        if plot.positions is None:
            axes.set_xticks(places, plot.labels)
        elif plot.log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
        axes.set(title=plot.title, xlabel=plot.x_label, ylabel=plot.y_label)
        axes.grid(axis="y", alpha=0.3)
        name = f"{plot.name}.png"
        content = io.BytesIO()
        figure.savefig(content, dpi=150, format="png")
        write_bytes(folder / name, content.getvalue())
        names.append(name)
    return names
