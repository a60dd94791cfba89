"""How fast, and in how much memory: the quantizer against a dense one, generators, a tokenizer, a sampler.

Ratios are measured in one run on one machine, in turns: they carry over to other machines better than seconds do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.settings import RunOptions
from coda.tokenizer.training.run_directory import RunDirectory

from ..image_sets.sample_store import Sampler
from ..peers.muse import muse_problem
from ..reports.provenance import describe_run
from ..reports.report import Figure, Report, Table
from ..settings import SpeedSettings
from .generator import sampling_shapes, time_generators
from .measure import Measured, measure
from .peers import time_peers
from .quantizer import QUANTIZER_SHAPES, QuantizerShape, time_quantizers


def speed(
    tokenizer: Any = None,
    samples: Sampler | None = None,
    out: str | Path = "runs/speed",
    shapes: Sequence[QuantizerShape] = QUANTIZER_SHAPES,
    settings: SpeedSettings = SpeedSettings(),
    run: RunOptions = RunOptions(),
    class_label: int = 0,
) -> Report:
    """Time quantizers against dense ones, and optionally a tokenizer and a sampler.

    Args:
        tokenizer: Anything with `encode(images) -> codes` and `decode(codes) -> images`; None leaves it out.
        samples: `samples(class_labels, seeds) -> images`, one seed per image; None leaves it out.
        out: Directory of the report.
        shapes: Quantizers to compare with a dense one; may be empty. The dense one is left out where its N × K tensors
            would not fit into the free memory.
        settings: How much is timed.
        run: The device.
        class_label: Class of all samples.

    Returns:
        The report: ratios and rates as figures, seconds and MiB as tables.

    Raises:
        CodaError: If there is nothing to time, `out` holds something else, a peer cannot be loaded, or the tokenizer's
            image size is not known.
    """
    if not shapes and tokenizer is None and samples is None:
        raise CodaError("nothing to time: give shapes, a tokenizer or a sampler")
    if "muse" in settings.peers and (problem := muse_problem()) is not None:
        raise CodaError(problem)
    device, batch_size = resolve_device(run.device), settings.batch_size
    image_size = None if tokenizer is None else _image_size(tokenizer, settings.size)
    run_description = describe_run(device)
    # Seconds belong to a moment: a second run is a new measurement, so the date is part of the settings.
    directory = RunDirectory(out, "speed benchmark", {"date": run_description["date"]}, run.overwrite)
    found = time_quantizers(shapes, settings.codebook_sizes, settings.repeats, settings.seed, device)
    for shape in shapes:
        samplings = sampling_shapes(sorted({1, batch_size}), len(shape.sides))
        figures, tables = time_generators(
            settings.generators, shape, samplings, batch_size, settings.repeats, settings.seed, device
        )
        found.figures += figures
        found.tables += tables
        found.tables += time_peers(
            settings.peers, settings.generators, shape, batch_size, settings.repeats, settings.seed, device
        )
    models: dict[str, Measured] = {}
    if image_size is not None:
        models |= _time_tokenizer(tokenizer, image_size, device, settings)
    if samples is not None:
        seeds = range(settings.seed, settings.seed + batch_size)
        models["sampling"] = measure(lambda: samples([class_label] * batch_size, seeds), device, settings.repeats)
    rows = [[name, batch_size, taken.seconds, taken.slowest, taken.peak_mib] for name, taken in models.items()]
    columns = ("work", "images", "seconds", "slowest", "peak MiB")
    report = Report(
        title="Speed and memory",
        figures=[
            *found.figures,
            *(
                Figure(f"{name} rate", batch_size / taken.seconds, "images/s", note=f"{batch_size} at once")
                for name, taken in models.items()
            ),
        ],
        tables=[*found.tables, *([Table("Seconds and memory", columns, rows)] if rows else [])],
        plots=found.plots,
        provenance={
            "quantizer_shapes": [asdict(shape) for shape in shapes],
            "codebook_sizes": list(settings.codebook_sizes),
            "timing": f"in turns, the fastest of {settings.repeats} (on CUDA the median) after one warm-up; "
            "peak above what was held before, in the warm-up",
            "batch_size": batch_size,
            "seed": settings.seed,
            **run_description,
        },
    )
    directory.finish(report.save)
    return report


def _time_tokenizer(
    tokenizer: Any, size: tuple[int, int], device: torch.device, settings: SpeedSettings
) -> dict[str, Measured]:
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer = tokenizer.to(device).eval()
    generator, repeats = torch.Generator().manual_seed(settings.seed), settings.repeats
    images = torch.rand(settings.batch_size, 3, *size, generator=generator).mul(2).sub(1).to(device)
    with torch.inference_mode():
        codes = tokenizer.encode(images)
        return {
            "encode": measure(lambda: tokenizer.encode(images), device, repeats),
            "decode": measure(lambda: tokenizer.decode(codes), device, repeats),
        }


def _image_size(tokenizer: Any, size: int | None) -> tuple[int, int]:
    own = size or getattr(tokenizer, "size", None)
    if own is None:
        raise CodaError("this tokenizer does not say what size its images are; give size")
    return (own, own) if isinstance(own, int) else (int(own[0]), int(own[1]))
