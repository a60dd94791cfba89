"""The paper's ablation at a small budget: what each idea brings, every rung trained on the same images and losses.

Measured beside it: numbers of levels (Figure 4), random starts, confidence of the assignments (Figure 5), and
quantizers that need no training.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from coda.tokenizer import CodeLayout, default_sides, load_vae
from coda.tokenizer.foundation.atomic_io import write_json
from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import log_info
from coda.tokenizer.images import ImageSource, open_images
from coda.tokenizer.settings import AdaptSettings, RunOptions
from coda.tokenizer.training.run_directory import RunDirectory
from coda.tokenizer.vae.continuous_vae import ContinuousVAE

from .comparison import sample_size_warnings
from .features.extractors import load_extractor, require_torch_fidelity
from .image_sets.image_set import ROUNDING, open_image_set
from .reports.provenance import describe_run, model_identity
from .reports.report import Report
from .rungs.figures import Figures, TestImages
from .rungs.report import (
    LADDER,
    LEVELS,
    RIVALS,
    SCRATCH,
    STARTS,
    VARIANTS,
    Group,
    Measured,
    headline_figures,
    plots,
    tables,
)
from .rungs.rivals import Standardized, rivals
from .rungs.rung import Rung, Rungs, ladder, level_sweep, scratch, starts, variants
from .rungs.starts import Starts
from .rungs.training import train_rung
from .settings import AblationSettings

_VECTORS_PER_CODE = 128  # for k-means, by default
_WARMUP_PART = 10  # at most one step in ten warms up


def ablation(
    vae: str | Path,
    data: str | Path | ImageSource,
    test_data: str | Path | ImageSource | None = None,
    out: str | Path = "runs/ablation",
    settings: AblationSettings = AblationSettings(),
    run: RunOptions = RunOptions(),
) -> Report:
    """Make tokenizers of one VAE in several ways and measure each. Rerun the same call to resume.

    Args:
        vae: The continuous VAE, see `load_vae`.
        data: Images to train on.
        test_data: Images to measure on; None measures on `data`, and the report says so.
        out: Directory of the report; checkpoints, figures and tokenizers of the rungs are under `rungs/`.
        settings: What is trained and measured. Empty `levels` skip the sweep.
        run: Device and workers; the precision is float32.

    Returns:
        The report: a table per group, and `report["direct VQ"]`, … the Fréchet distances of the ladder.

    Raises:
        CodaError: If `out` holds something else, the size does not fit the VAE, or images cannot be opened.
    """
    require_torch_fidelity()
    network = load_extractor(settings.extractor, resolve_device(run.device))
    continuous = load_vae(vae).requires_grad_(False)
    layout = _layout(continuous, settings)
    rungs = _rungs(layout, settings)

    def describe(images: str | Path | ImageSource) -> dict[str, Any]:
        return open_image_set(images, settings.size, None, settings).description

    record = {
        **vars(settings),
        "extractor": network.name,
        "vae": model_identity(continuous),
        "data": describe(data),
        "test_data": None if test_data is None else describe(test_data),
        "sides": [list(side) for side in layout.sides],
    }
    directory = RunDirectory(out, "ablation benchmark", record, run.overwrite)
    if directory.complete:
        return Report.load(out)
    continuous = continuous.to(network.device)
    images = open_image_set(data if test_data is None else test_data, settings.size, settings.limit, settings, run)
    test = TestImages(images, network, settings.batch_size, settings.seed)
    training = _training_settings(layout, settings)
    source = open_images(data, settings.max_pixels, settings.num_classes)
    start = Starts(continuous, source, directory.path / "rungs" / "starts", training, run)
    own = Measured([[test.measure(start.vae)]])
    without_training: dict[str, Group] = {}
    if RIVALS in settings.tables:
        without_training[RIVALS] = _measure_rivals(start, layout, settings.seed, directory.path / "rungs", test)
    groups = _train(rungs, start, directory.path / "rungs", settings, test) | without_training
    names = network.figure_names
    warnings = [] if test_data is not None else ["Measured on the images that the tokenizers were adapted on."]
    report = Report(
        title="Ablation",
        figures=headline_figures(groups.get(LADDER, {}), names),
        tables=tables(groups, own, names),
        plots=plots(groups, own, names),
        warnings=warnings + sample_size_warnings(*test.dimensions, names.distance),
        provenance={
            **record,
            "reference": test.description,
            "self_check": f"{test.self_check:.3g} (the originals against themselves)",
            "extractor": network.description,
            "rounding": ROUNDING,
            "images seen": f"{start.images} of k-means (random starts train on as many more), then {settings.steps} "
            f"steps of {settings.batch_size}",
            **describe_run(network.device),
        },
    )
    directory.finish(report.save)
    return report


def _layout(vae: ContinuousVAE, settings: AblationSettings) -> CodeLayout:
    """Layout of the rungs with all levels."""
    grid, rest = divmod(settings.size, vae.factor)
    if rest:
        raise CodaError(f"size {settings.size} is not a multiple of the VAE's factor {vae.factor}")
    layout = CodeLayout(settings.sides or default_sides(grid, grid), settings.codebook_size)
    if layout.grid != (grid, grid):
        raise CodaError(f"the last side is {layout.grid}, the latent's grid at {settings.size} pixels is {grid, grid}")
    return layout


def _rungs(layout: CodeLayout, settings: AblationSettings) -> dict[str, Rungs]:
    """The rungs of each table that trains."""
    found = {
        LADDER: ladder(layout.sides, settings.lora_rank),
        LEVELS: level_sweep(layout.sides, settings.levels),
        STARTS: starts(layout.sides, settings.lora_rank),
        VARIANTS: variants(layout.sides, settings.lora_rank),
        SCRATCH: scratch(layout.sides),
    }
    return {key: rungs for key, rungs in found.items() if key in settings.tables}


def _training_settings(layout: CodeLayout, settings: AblationSettings) -> AdaptSettings:
    """Settings that all rungs share: losses, schedule, images of k-means."""
    shared = AdaptSettings.from_mapping(vars(settings))
    images = settings.kmeans_images or -(-_VECTORS_PER_CODE * layout.codebook_size // layout.num_tokens)
    return replace(shared, kmeans_images=images, warmup=min(shared.warmup, settings.steps // _WARMUP_PART))


def _train(
    rungs: Mapping[str, Rungs], start: Starts, folder: Path, settings: AblationSettings, test: TestImages
) -> dict[str, Group]:
    """Train and measure every rung with every seed; a rung of several tables only once."""
    distinct = list(dict.fromkeys(rung for group in rungs.values() for rung in group.values()))
    runs: dict[Rung, list[list[Figures]]] = {rung: [] for rung in distinct}
    for seed in range(settings.seed, settings.seed + settings.seeds):
        for number, (rung, done) in enumerate(runs.items(), 1):
            log_info(f"Seed {seed}, rung {number} of {len(runs)}: {rung.slug}")
            done.append(train_rung(rung, seed, start, folder / f"{rung.slug}-seed-{seed}", settings.measurements, test))
    found = {rung: Measured(done, len(rung.sides)) for rung, done in runs.items()}
    return {key: {name: found[rung] for name, rung in group.items()} for key, group in rungs.items()}


def _measure_rivals(start: Starts, layout: CodeLayout, seed: int, folder: Path, test: TestImages) -> Group:
    """Figures of the quantizers that need no training, on standardized latents."""
    found = {}
    vae, kinds = start.vae, rivals(start.vae.latent_channels, layout.grid, layout.codebook_size)
    for kind, sizes in kinds.items():
        for size, make in sizes.items():
            name = f"{kind}, {size}"
            file = folder / f"rival-{re.sub(r'[^a-z0-9]+', '-', name.lower())}.json"
            if not file.exists():
                log_info(f"Rival: {name}")
                quantizer = Standardized(make(seed), *start.moments(seed))
                figures = test.measure_codes(vae, quantizer)
                write_json(file, asdict(figures) | {"images_seen": start.images})
            found[name] = Measured([[Figures(**json.loads(file.read_text()))]])
    return found
