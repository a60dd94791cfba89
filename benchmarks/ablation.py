"""The paper's ablation at a small budget, direct VQ → residual levels → attention → LoRA, and its sweep over levels.

All rungs share the images, the codebook size, the seed and, if they train, the number of steps, and are measured on the
same images. Untrained rungs are the k-means initialization, where retrieval is nearest neighbor. The paper trains those
too, so its gap between "direct" and "attention" cannot be compared with ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coda.tokenizer import CodeLayout, adapt, default_sides, load_vae
from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import log_info
from coda.tokenizer.images import ImageSource
from coda.tokenizer.layout import Grid
from coda.tokenizer.settings import AdaptSettings, RunOptions
from coda.tokenizer.training.run_directory import RunDirectory

from .features.extractors import FeatureExtractor, FigureNames, load_extractor, require_torch_fidelity
from .image_sets.image_set import open_image_set
from .reconstruction import reconstruction_metrics
from .reports.plots import Plot
from .reports.provenance import describe_run, model_identity
from .reports.report import Cell, Figure, Report, Table


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
    size: int = 256,
    sides: Sequence[Grid | int] | None = None,
    codebook_size: int = 4096,
    levels: Sequence[int] | None = None,
    steps: int = 200,
    batch_size: int = 8,
    lora_rank: int = 32,
    limit: int | None = None,
    workers: int = 0,
    extractor: str | FeatureExtractor = "auto",
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
    strict: bool = False,
) -> Report:
    """Adapt one VAE in several ways and measure each. Rerun the same call to resume; finished rungs are kept.

    Args:
        vae: The continuous VAE, see `load_vae`.
        data: Images to adapt on.
        test_data: Images to measure on; None measures on `data`, and the report says so.
        out: Directory of the report; each rung's tokenizer and figures are under `rungs/`.
        size: Image size in pixels.
        sides: Grids of the levels; None takes `default_sides`.
        codebook_size: K.
        levels: Numbers of levels of the sweep; None takes 1, 2, 4, … and all. Empty skips the sweep.
        steps: Training steps of the rungs that train.
        batch_size: Images per batch.
        lora_rank: LoRA rank of the last rung.
        limit: Measure on at most this many images, drawn by `seed`.
        workers: Processes that decode.
        extractor: "auto", "inception", "efficientnet_lite0", or a `FeatureExtractor`.
        seed: Seed for all randomness.
        device: "auto", "cpu" or "cuda".
        overwrite: Replace what `out` holds.
        strict: Raise an error for an image that cannot be read, instead of skipping it.

    Returns:
        The report: one row per rung, and `report["direct VQ"]`, … the Fréchet distances.

    Raises:
        CodaError: If `out` holds something else, the size does not fit the VAE, or images cannot be opened.
    """
    require_torch_fidelity()
    network = load_extractor(extractor, resolve_device(device))
    continuous = load_vae(vae)
    grid, rest = divmod(size, continuous.factor)
    if rest:
        raise CodaError(f"size {size} is not a multiple of the VAE's factor {continuous.factor}")
    all_sides = CodeLayout(sides or default_sides(grid, grid), codebook_size).sides
    rungs, sweep = ladder(all_sides, steps, lora_rank), level_sweep(all_sides, levels)
    settings = {
        "vae": model_identity(continuous),
        "data": open_image_set(data, size).description,
        "test_data": None if test_data is None else open_image_set(test_data, size).description,
        "rungs": {name: asdict(recipe) for name, recipe in rungs.items()},
        "sweep": {name: asdict(recipe) for name, recipe in sweep.items()},
        "codebook_size": codebook_size,
        "batch_size": batch_size,
        "limit": limit,
        "extractor": network.name,
        "seed": seed,
    }
    run = RunDirectory(out, "ablation benchmark", settings, overwrite)
    if run.complete:
        return Report.load(out)
    shared: dict[str, Any] = {"size": size, "batch_size": batch_size, "workers": workers, "strict": strict}
    shared |= {"seed": seed, "device": device}
    measured: dict[Recipe, Report] = {}
    recipes = list(dict.fromkeys([*rungs.values(), *sweep.values()]))
    for number, recipe in enumerate(recipes, 1):
        folder = run.path / "rungs" / _folder_name(recipe)
        log_info(f"Rung {number} of {len(recipes)}: {_folder_name(recipe)}")
        adapt_settings = AdaptSettings.from_mapping({**shared, **asdict(recipe), "codebook_size": codebook_size})
        made = adapt(vae, data, folder / "tokenizer", adapt_settings, RunOptions.from_mapping(shared))
        measured[recipe] = reconstruction_metrics(
            made,
            data if test_data is None else test_data,
            folder / "figures",
            limit=limit,
            continuous=continuous if number == 1 else None,  # it is the same for all
            extractor=network,
            **shared,
        )
    first = measured[recipes[0]]
    provenance = {
        **settings,
        **{key: first.provenance[key] for key in ("reference", "self_check", "extractor", "rounding")},
        **describe_run(network.device),
    }
    warnings = [] if test_data is not None else ["Measured on the images that the tokenizers were adapted on."]
    report = _report(rungs, sweep, measured, network.figure_names, provenance, warnings + first.warnings)
    run.finish(report.save)
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
