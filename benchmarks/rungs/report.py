"""Tables and plots of the ablation."""

from __future__ import annotations

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..features.extractors import FigureNames
from ..reports.plots import Plot
from ..reports.report import Cell, Figure, Table
from .figures import PERTURBED_SHARE, Figures

LADDER, LEVELS, STARTS, VARIANTS = "ladder", "levels", "starts", "variants"
RIVALS, SCRATCH = "rivals", "scratch"
_TITLES = {
    LADDER: "Ideas of the paper",
    LEVELS: "Number of levels, residual VQ (Figure 4)",
    STARTS: "Random start",
    VARIANTS: "Variants of CODA",
    RIVALS: "Rivals without training",
    SCRATCH: "From scratch",
}
_OWN = "the VAE itself"


@dataclass(frozen=True)
class Measured:
    """Figures of one model.

    Attributes:
        runs: One list of figures per seed, in the order of the images seen; the last are those of the finished model.
        levels: Number of levels; None for models without.
    """

    runs: Sequence[Sequence[Figures]]
    levels: int | None = None

    def values(self, name: str, point: int = -1) -> list[Any]:
        """One figure at one point of the training, for every seed; empty if it does not apply."""
        found = [getattr(run[point], name) for run in self.runs]
        return [] if None in found else found

    def mean(self, name: str, point: int = -1) -> float | None:
        """Mean over the seeds."""
        values = self.values(name, point)
        return statistics.fmean(values) if values else None

    def means(self, name: str) -> list[float]:
        """Means over the seeds of a figure that is a list, of the finished model."""
        return [statistics.fmean(values) for values in zip(*self.values(name), strict=True)]

    def spread(self, name: str) -> float | None:
        """Standard deviation over the seeds; None for a single seed."""
        values = self.values(name)
        return statistics.stdev(values) if len(values) > 1 else None


Group = Mapping[str, Measured]


def headline_figures(ladder: Group, names: FigureNames) -> list[Figure]:
    """The Fréchet distance of each rung of the ladder."""
    return [
        Figure(name, found.mean("distance"), spread=found.spread("distance"), note=names.distance)
        for name, found in ladder.items()
    ]


def tables(groups: Mapping[str, Group], own: Measured, names: FigureNames) -> list[Table]:
    """One table per group, with one row per model, and one for the VAE itself; one of the usage per level."""
    found = [_table(_TITLES[key], {**group, _OWN: own}, names) for key, group in groups.items() if group]
    return found + _usage_table({**groups.get(LADDER, {}), **groups.get(STARTS, {}), **groups.get(VARIANTS, {})})


def plots(groups: Mapping[str, Group], own: Measured, names: FigureNames) -> list[Plot]:
    """Quality against ideas, levels, images seen and bits; confidence of the assignments."""
    found = []
    if ladder := groups.get(LADDER):
        labels = [textwrap.fill(name, 14) for name in ladder]
        values = [model.mean("distance") for model in ladder.values()]
        reference = _reference(own, "distance")
        found.append(
            Plot("ideas", _TITLES[LADDER], "", names.distance, labels, values, reference=reference),
        )
        found.append(_confidence_plot(ladder))
    if levels := groups.get(LEVELS):
        values = [model.mean("distance") for model in levels.values()]
        reference = _reference(own, "distance")
        found.append(
            Plot("levels", _TITLES[LEVELS], "levels", names.distance, list(levels), values, "line", reference=reference)
        )
    for figure, label in (("distance", names.distance), ("psnr", "PSNR, dB")):
        found += _over_images(figure, label, groups, own)
        found += _over_bits(figure, label, groups, own)
    return found


def _table(title: str, group: Group, names: FigureNames) -> Table:
    shown = {
        "bits": "bits per image",
        "images_seen": "images seen",
        "psnr": "PSNR dB",
        "ssim": "SSIM",
        "distance": names.distance,
        "kid": names.kid,
        "perturbed": f"{names.distance}, {PERTURBED_SHARE:.0%} perturbed",
        "usage": "usage %",
        "perplexity": "perplexity",
        "effective_rank": "effective rank",
        "seconds": "seconds",
    }
    rows = [[name, model.levels, *(_cell(model, figure) for figure in shown)] for name, model in group.items()]
    return Table(title, ("model", "levels", *shown.values()), rows)


def _usage_table(models: Group) -> list[Table]:
    """Usage of each level, below the tokens per code that it could be seen in; levels of one side in one column."""
    tokens = max((model.means("level_tokens") for model in models.values()), key=len, default=[])
    if not tokens:
        return []
    rows: list[list[Cell]] = [["tokens per code", *tokens]]
    for name, model in models.items():
        usage = model.means("level_usage")
        rows.append([name, *[None] * (len(tokens) - len(usage)), *usage])
    columns = ("model", *(f"level {level}" for level in range(len(tokens))))
    return [Table("Usage per level, %", columns, rows)]


def _cell(model: Measured, figure: str) -> Cell:
    """Mean, and with several seeds its spread."""
    mean, spread = model.mean(figure), model.spread(figure)
    if mean is None or figure in ("bits", "images_seen"):
        return None if mean is None else round(mean)
    return f"{mean:.4g} ± {spread:.2g}" if spread else mean


def _reference(own: Measured, figure: str) -> tuple[str, float] | None:
    mean = own.mean(figure)
    return None if mean is None else (_OWN, mean)


def _over_images(figure: str, label: str, groups: Mapping[str, Group], own: Measured) -> list[Plot]:
    """One line per trained model, over the images it has seen."""
    lines = {name: model for key in (LADDER, STARTS, VARIANTS, SCRATCH) for name, model in groups.get(key, {}).items()}
    points = {
        name: {run.images_seen or 0: model.mean(figure, i) for i, run in enumerate(model.runs[0])}
        for name, model in lines.items()
    }
    return _numeric_plot(
        f"images-seen-{figure}", "Quality against images seen", "images seen", label, points, own, figure
    )


def _over_bits(figure: str, label: str, groups: Mapping[str, Group], own: Measured) -> list[Plot]:
    """One line for the levels and one per kind of rival, one point per rung of the ladder with all levels."""
    lines: dict[str, list[Measured]] = {}
    if levels := groups.get(LEVELS):
        lines["residual VQ, number of levels"] = list(levels.values())
    for name, model in {**groups.get(LADDER, {}), **groups.get(VARIANTS, {}), **groups.get(SCRATCH, {})}.items():
        lines[name] = [model]
    for name, model in groups.get(RIVALS, {}).items():
        lines.setdefault(name.partition(",")[0], []).append(model)
    points = {
        name: {round(bits): model.mean(figure) for model in models if (bits := model.mean("bits")) is not None}
        for name, models in lines.items()
    }
    return _numeric_plot(f"bits-{figure}", "Quality against bits", "bits per image", label, points, own, figure)


def _numeric_plot(
    name: str,
    title: str,
    x_label: str,
    y_label: str,
    points: Mapping[str, Mapping[int, float | None]],
    own: Measured,
    figure: str,
) -> list[Plot]:
    positions = sorted({x for line in points.values() for x in line})
    if not positions:
        return []
    values = {line: [found.get(x) for x in positions] for line, found in points.items()}
    labels = [f"{x:g}" for x in positions]
    log_x = positions[0] > 0 and positions[-1] > 8 * positions[0]
    reference = _reference(own, figure)
    found = [y for line in values.values() for y in line if y is not None]
    log = figure == "distance" and max(found) > 10 * min(found)
    return [Plot(name, title, x_label, y_label, labels, values, "line", log, positions, log_x, reference)]


def _confidence_plot(ladder: Group) -> Plot:
    """Mean over seeds of the largest probabilities of an assignment."""
    lines = {name: model.means("confidences") for name, model in ladder.items()}
    count = max(len(line) for line in lines.values())
    labels = [str(rank) for rank in range(1, count + 1)]
    title = "Confidence of the assignments (Figure 5)"
    return Plot("confidence", title, "rank of the code", "mean probability", labels, lines, "line")
