"""How fast, and in how much memory: the quantizer against a dense one, a tokenizer, a sampler.

Ratios are taken in one run on one machine, in turns: they travel to other machines better than seconds do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.training.run_directory import RunDirectory

from ..reports.plots import Plot
from ..reports.provenance import describe_run
from ..reports.report import Cell, Figure, Report, Table
from .dense import dense_encode, dense_forward
from .measure import Measured, measure, measure_side_by_side
from .quantizer import QUANTIZER_SHAPES, QuantizerShape, dense_fits, make_quantizer, training_step

Sampler = Callable[[Sequence[int], Sequence[int]], torch.Tensor]


def speed(
    tokenizer: Any = None,
    samples: Sampler | None = None,
    out: str | Path = "runs/speed",
    shapes: Sequence[QuantizerShape] = QUANTIZER_SHAPES,
    size: int | None = None,
    batch_size: int = 4,
    repeats: int = 3,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> Report:
    """Time the quantizer, and a tokenizer and a sampler where they are given.

    Args:
        tokenizer: Anything with `encode(images) -> codes` and `decode(codes) -> images`; None leaves it out.
        samples: `samples(class_labels, seeds) -> images`, one seed per image; None leaves it out.
        out: Directory of the report.
        shapes: Quantizers to be compared with a dense one; may be empty. The dense one is left out where its
            N × K tensors would not fit into the memory that is free.
        size: Pixels each way of the images for `tokenizer`; its own `size` if None.
        batch_size: Images at once, for tokenizer and sampler.
        repeats: Repetitions; the fastest counts.
        seed: Of the random latents, images and samples.
        device: "auto", "cpu" or "cuda".
        overwrite: Replace what `out` holds.

    Returns:
        The report; its figures are the ratios and rates, its tables the seconds and MiB.

    Raises:
        CodaError: `out` holds something else, or the tokenizer's image size is not known.
    """
    if repeats < 1:
        raise CodaError(f"repeats is {repeats}; at least one is needed")
    place = resolve_device(device)
    measured_now = describe_run(place)
    # Seconds belong to a moment: a second run is a new measurement, never the old one handed out again.
    run = RunDirectory(out, "speed benchmark", {"date": measured_now["date"]}, overwrite)
    figures: list[Figure] = []
    rows: list[Sequence[Cell]] = []
    with progress("Timing", total=len(shapes) + (tokenizer is not None) + (samples is not None), unit="parts") as bar:
        for shape in shapes:
            more_figures, more_rows = _time_quantizer(shape, place, repeats, seed)
            figures, rows = figures + more_figures, rows + more_rows
            bar.advance(shape=shape.name)
        if tokenizer is not None:
            pixels = _image_size(tokenizer, size)
            more_figures, more_rows = _time_tokenizer(tokenizer, pixels, batch_size, place, repeats, seed)
            figures, rows = figures + more_figures, rows + more_rows
            bar.advance()
        if samples is not None:
            sampler = samples
            taken = measure(lambda: sampler([0] * batch_size, range(seed, seed + batch_size)), place, repeats)
            figures.append(_rate("sampling", batch_size, taken))
            rows.append(_row("sampling", batch_size, taken))
            bar.advance()
    report = Report(
        title="Speed and memory",
        figures=figures,
        tables=[Table("Seconds and memory", ("work", "images", "seconds", "slowest", "peak MiB"), rows)],
        provenance={
            "quantizer_shapes": [asdict(shape) for shape in shapes],
            "timing": f"fastest of {repeats}, after one warm-up; peak above what was held before, in the warm-up",
            "batch_size": batch_size,
            "seed": seed,
            **measured_now,
        },
        plots=_ratio_plot(figures),
    )
    run.finish(report.save)
    return report


def _time_quantizer(
    shape: QuantizerShape, device: torch.device, repeats: int, seed: int
) -> tuple[list[Figure], list[Sequence[Cell]]]:
    quantizer, latents = make_quantizer(shape, device, seed)

    @torch.no_grad()
    def forward_only(forward: Callable[..., Any]) -> Any:
        return forward(latents)

    def dense(inputs: torch.Tensor) -> Any:
        return dense_forward(quantizer, inputs)

    pairs: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "forward": (lambda: forward_only(quantizer), lambda: forward_only(dense)),
        "forward and backward": (
            training_step(quantizer, latents, quantizer),
            training_step(quantizer, latents, dense),
        ),
        "encode": (lambda: quantizer.encode(latents), lambda: dense_encode(quantizer, latents)),
    }
    fits = dense_fits(quantizer, shape.batch_size, device)
    figures: list[Figure] = []
    rows: list[Sequence[Cell]] = []
    for name, (ours, theirs) in pairs.items():
        label = f"{shape.name}: quantizer {name}"
        measured = measure_side_by_side([ours, theirs] if fits else [ours], device, repeats)
        rows.append(_row(label, shape.batch_size, measured[0]))
        if fits:
            rows.append(_row(f"{label}, dense", shape.batch_size, measured[1]))
            ratio = measured[1].seconds / measured[0].seconds
            figures.append(Figure(f"{label}, times faster than dense", ratio, "×", note="dense seconds / ours"))
        else:
            why = "the dense one would not fit into the memory that is free"
            figures.append(Figure(f"{label}, times faster than dense", None, "×", note=why))
    codes = quantizer.encode(latents)
    rows.append(_row(f"{shape.name}: decode", len(codes), measure(lambda: quantizer.decode(codes), device, repeats)))
    return figures, rows


def _time_tokenizer(
    tokenizer: Any, size: tuple[int, int], batch_size: int, device: torch.device, repeats: int, seed: int
) -> tuple[list[Figure], list[Sequence[Cell]]]:
    if isinstance(tokenizer, torch.nn.Module):
        tokenizer = tokenizer.to(device).eval()
    images = torch.rand(batch_size, 3, *size, generator=torch.Generator().manual_seed(seed)).mul(2).sub(1).to(device)
    with torch.inference_mode():
        codes = tokenizer.encode(images)
        encoding = measure(lambda: tokenizer.encode(images), device, repeats)
        decoding = measure(lambda: tokenizer.decode(codes), device, repeats)
    figures = [_rate("encode", batch_size, encoding), _rate("decode", batch_size, decoding)]
    return figures, [_row("tokenizer encode", batch_size, encoding), _row("tokenizer decode", batch_size, decoding)]


def _image_size(tokenizer: Any, size: int | None) -> tuple[int, int]:
    if size is not None:
        return size, size
    own = getattr(tokenizer, "size", None)
    if own is None:
        raise CodaError("this tokenizer does not say what size its images are; give size")
    return (own, own) if isinstance(own, int) else (int(own[0]), int(own[1]))


def _rate(name: str, images: int, measured: Measured) -> Figure:
    return Figure(f"{name} rate", images / measured.seconds, "images/s", note=f"{images} at once")


def _row(name: str, images: int, measured: Measured) -> list[Cell]:
    return [name, images, measured.seconds, measured.slowest, measured.peak_mib]


def _ratio_plot(figures: list[Figure]) -> list[Plot]:
    ratios = [figure for figure in figures if figure.unit == "×"]
    if not ratios:
        return []
    labels = [figure.name.split(",")[0].replace(": quantizer ", "\n") for figure in ratios]
    return [Plot("speed", "Quantizer against a dense one", "", "times faster", labels, [f.value for f in ratios])]
