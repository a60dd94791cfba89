"""The paper's ablation at a small budget, direct VQ → residual levels → attention → LoRA, and its sweep over levels.

All rungs share the images, the codebook size, the seed and, if they train, the number of steps, and are measured on the
same images. Untrained rungs are the k-means initialization, where retrieval is nearest neighbor. The paper trains those
too, so its gap between "direct" and "attention" cannot be compared with ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from coda.tokenizer import CodeLayout, adapt, default_sides, load_vae
from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import log_info
from coda.tokenizer.images import ImageSource, open_images
from coda.tokenizer.layout import Grid
from coda.tokenizer.settings import AdaptSettings, RunOptions
from coda.tokenizer.training.run_directory import RunDirectory

from .features.extractors import FigureNames, load_extractor, require_torch_fidelity
from .image_sets.image_set import open_image_set
from .reconstruction import reconstruction_metrics
from .reports.plots import Plot
from .reports.provenance import describe_run, model_identity
from .reports.report import Cell, Figure, Report, Table
from .settings import AblationSettings, ReconstructionSettings


@dataclass(frozen=True)
class Recipe:
    """One tokenizer of the ablation.

    Attributes:
        sides: Grids of its levels.
        steps: Training steps; 0 keeps the k-means initialization.
        lora_rank: 0 trains the quantizer alone.
    """

    sides: tuple[Grid, ...]
    steps: int
    lora_rank: int


Rungs = Mapping[str, Recipe]


def ladder(sides: Sequence[Grid], steps: int, lora_rank: int) -> dict[str, Recipe]:
    """The four rungs; each adds one idea."""
    all_sides = tuple(sides)
    return {
        "direct VQ": Recipe((sides[-1],), 0, 0),
        "+ residual levels": Recipe(all_sides, 0, 0),
        "+ attention, trained": Recipe(all_sides, steps, 0),
        "+ LoRA on the VAE": Recipe(all_sides, steps, lora_rank),
    }


def level_sweep(sides: Sequence[Grid], counts: Sequence[int] | None = None) -> dict[str, Recipe]:
    """One untrained rung per number of levels, with sides evenly spread over all, including the last.

    Args:
        sides: All sides.
        counts: Numbers of levels; None takes 1, 2, 4, … and all.

    Raises:
        CodaError: If a number of levels is not in [1, len(sides)].
    """
    if counts is None:
        counts = [*(2**i for i in range(len(sides).bit_length()) if 2**i < len(sides)), len(sides)]
    for count in counts:
        if not 1 <= count <= len(sides):
            raise CodaError(f"levels {count}: expected 1 to {len(sides)}")
    return {str(count): Recipe(_evenly(sides, count), 0, 0) for count in sorted(set(counts))}


def ablation(
    vae: str | Path,
    data: str | Path | ImageSource,
    test_data: str | Path | ImageSource | None = None,
    out: str | Path = "runs/ablation",
    settings: AblationSettings = AblationSettings(),
    run: RunOptions = RunOptions(),
) -> Report:
    """Adapt one VAE in several ways and measure each. Rerun the same call to resume; finished rungs are kept.

    Args:
        vae: The continuous VAE, see `load_vae`.
        data: Images to adapt on.
        test_data: Images to measure on; None measures on `data`, and the report says so.
        out: Directory of the report; each rung's tokenizer and figures are under `rungs/`.
        settings: What is trained and measured. Empty `levels` skip the sweep.
        run: Device, precision of the training, and workers.

    Returns:
        The report: one row per rung, and `report["direct VQ"]`, … the Fréchet distances.

    Raises:
        CodaError: If `out` holds something else, the size does not fit the VAE, or images cannot be opened.
    """
    require_torch_fidelity()
    network = load_extractor(settings.extractor, resolve_device(run.device))
    settings = replace(settings, extractor=network)
    continuous = load_vae(vae)
    grid, rest = divmod(settings.size, continuous.factor)
    if rest:
        raise CodaError(f"size {settings.size} is not a multiple of the VAE's factor {continuous.factor}")
    sides = CodeLayout(settings.sides or default_sides(grid, grid), settings.codebook_size).sides
    rungs, sweep = ladder(sides, settings.steps, settings.lora_rank), level_sweep(sides, settings.levels)

    def describe(images: str | Path | ImageSource) -> dict[str, Any]:
        return open_image_set(images, settings.size, None, settings).description

    record = {
        "vae": model_identity(continuous),
        "data": describe(data),
        "test_data": None if test_data is None else describe(test_data),
        "rungs": {name: asdict(recipe) for name, recipe in rungs.items()},
        "sweep": {name: asdict(recipe) for name, recipe in sweep.items()},
        **{name: getattr(settings, name) for name in ("codebook_size", "batch_size", "limit", "seed")},
        "extractor": network.name,
    }
    directory = RunDirectory(out, "ablation benchmark", record, run.overwrite)
    if directory.complete:
        return Report.load(out)
    run = replace(run, overwrite=False)  # finished rungs are kept
    source = open_images(data, settings.max_pixels, settings.num_classes)
    measured: dict[Recipe, Report] = {}
    recipes = list(dict.fromkeys([*rungs.values(), *sweep.values()]))
    for number, recipe in enumerate(recipes, 1):
        folder = directory.path / "rungs" / _folder_name(recipe)
        log_info(f"Rung {number} of {len(recipes)}: {_folder_name(recipe)}")
        adapt_settings = AdaptSettings.from_mapping({**vars(settings), **asdict(recipe)})
        made = adapt(vae, source, folder / "tokenizer", adapt_settings, run)
        measured[recipe] = reconstruction_metrics(
            made,
            data if test_data is None else test_data,
            folder / "figures",
            ReconstructionSettings.from_mapping(vars(settings)),
            run,
            continuous=continuous if number == 1 else None,  # it is the same for all
        )
    first = measured[recipes[0]]
    provenance = {
        **record,
        **{key: first.provenance[key] for key in ("reference", "self_check", "extractor", "rounding")},
        **describe_run(network.device),
    }
    warnings = [] if test_data is not None else ["Measured on the images that the tokenizers were adapted on."]
    report = _report(rungs, sweep, measured, network.figure_names, provenance, warnings + first.warnings)
    directory.finish(report.save)
    return report


def _report(
    rungs: Rungs,
    sweep: Rungs,
    measured: Mapping[Recipe, Report],
    names: FigureNames,
    provenance: dict[str, Any],
    warnings: list[str],
) -> Report:
    first, codebook_size = next(iter(measured.values())), provenance["codebook_size"]
    return Report(
        title="Ablation",
        figures=[Figure(name, measured[recipe][names.distance], note=names.distance) for name, recipe in rungs.items()],
        tables=[
            _table("Ideas of the paper", rungs, measured, codebook_size, names, first),
            _table("Number of levels (not trained)", sweep, measured, codebook_size, names, first),
        ],
        warnings=warnings,
        provenance=provenance,
        plots=[
            _plot("ideas", "Ideas of the paper", "", rungs, measured, names.distance),
            _plot("levels", "Number of levels (not trained)", "levels", sweep, measured, names.distance),
        ],
    )


def _evenly(sides: Sequence[Grid], count: int) -> tuple[Grid, ...]:
    """`count` of the sides, evenly spread, including the last; a single one is the last."""
    if count == 1:
        return (sides[-1],)
    return tuple(sides[round(i * (len(sides) - 1) / (count - 1))] for i in range(count))


def _folder_name(recipe: Recipe) -> str:
    return f"levels-{len(recipe.sides):02d}-steps-{recipe.steps}-lora-{recipe.lora_rank}"


def _table(
    title: str, rungs: Rungs, measured: Mapping[Recipe, Report], codebook_size: int, names: FigureNames, first: Report
) -> Table:
    """One row per rung, and one for the continuous VAE, which was measured with the `first` rung."""
    shown = ("psnr", "ssim", names.distance, names.kid)
    rows: list[list[Cell]] = []
    for name, recipe in rungs.items():
        layout = CodeLayout(recipe.sides, codebook_size)
        bits = round(layout.num_tokens * math.log2(codebook_size))
        figures = [measured[recipe][figure] for figure in (*shown, "usage")]
        rows.append([name, layout.num_levels, bits, recipe.steps, recipe.lora_rank, *figures])
    own = [first[f"continuous_{figure}"] for figure in shown]
    rows.append(["continuous VAE", None, None, None, None, *own, None])
    columns = ("rung", "levels", "bits", "steps", "LoRA rank", "PSNR dB", "SSIM", names.distance, names.kid, "usage %")
    return Table(title, columns, rows)


def _plot(name: str, title: str, x_label: str, rungs: Rungs, measured: Mapping[Recipe, Report], distance: str) -> Plot:
    values = [measured[recipe][distance] for recipe in rungs.values()]
    return Plot(name, title, x_label, distance, list(rungs), values, "bars" if name == "ideas" else "line")
