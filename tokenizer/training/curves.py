"""Curves of a training's log as one picture, drawn if matplotlib (the extra `plots`) is installed."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path

from ..foundation.atomic_io import write_bytes

_COLUMNS = 3
_MOST_IN_LEGEND = 12
_DASHES = ("-", "--", ":", "-.")  # so that lines can be told in black and white
_VALIDATION = "validation_"


def draw_curves(log: Sequence[dict[str, float]], path: Path, title: str) -> bool:
    """Draw every figure of a log over the steps; figures of levels and of validation share a panel with their like.

    A figure and its validation share color and line style; that of validation has dots.

    Args:
        log: Lines of `log.jsonl`: "step", and figures by name; a line need not have all of them.
        path: PNG to write.
        title: Heading.

    Returns:
        Whether matplotlib is installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return False
    panels: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for line in log for name in line if name not in ("step", "skipped")):
        panels.setdefault(_panel(name), []).append(name)
    rows = max(1, math.ceil(len(panels) / _COLUMNS))
    height = 2.5 * rows + 0.5
    figure = Figure(figsize=(4 * _COLUMNS, height))
    figure.subplots_adjust(0.06, 0.3 / height, 0.98, 1 - 0.8 / height, wspace=0.2, hspace=0.4)
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for place, (panel, names) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(rows, _COLUMNS, place)
        bases = list(dict.fromkeys(name.removeprefix(_VALIDATION) for name in names))
        for name in names:
            points = [(line["step"], line[name]) for line in log if name in line]
            base = name.removeprefix(_VALIDATION)
            number = bases.index(base)
            axes.plot(
                *zip(*points, strict=True),
                label=None if name != base in names else base.removeprefix(f"{panel}_").replace("_", " "),
                color=f"C{number % 10}",
                linestyle=_DASHES[number % len(_DASHES)],
                marker="o" if name.startswith(_VALIDATION) else "." if len(points) < 30 else "",
                markersize=4,
                linewidth=1.2,
            )
        validated = any(name.startswith(_VALIDATION) for name in names)
        axes.set_title(panel.replace("_", " ") + (" (dots: validation)" if validated else ""), fontsize="medium")
        if 1 < len(bases) <= _MOST_IN_LEGEND:
            axes.legend(fontsize="xx-small", loc="upper right" if panel == "loss" else "best")
        axes.grid(alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, dpi=100, format="png")
    write_bytes(path, content.getvalue())
    return True


def _panel(name: str) -> str:
    """`validation_psnr` belongs to `psnr`, `usage_level_3` to `usage`."""
    return re.sub(r"_level_\d+$", "", name.removeprefix(_VALIDATION))
