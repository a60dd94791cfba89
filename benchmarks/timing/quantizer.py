"""What the quantizer costs, against a dense one of the same mathematics, over codebook sizes.

A training step is forward and backward; encoding is codes alone, compared with the forward pass of the dense one. Next
to seconds and memory stands how much of the machine is used: the operations that a step cannot do without,

    2 N K (4 d + 2 C):  logits in either direction, their gradients towards queries and keys;  p·v and g·v,

per second, as a share of what a large matrix product reaches in the same run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from coda.tokenizer.foundation.device import resolve_device
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.quantizer.residual_quantizer import ResidualQuantizer
from coda.tokenizer.quantizer.retrieval import Backend, retrieval_backend
from coda.tokenizer.training.run_directory import RunDirectory

from ..reports.plots import Plot
from ..reports.provenance import describe_run
from ..reports.report import Cell, Figure, Report, Table
from .dense import dense_bytes, dense_forward
from .measure import Measured, available_bytes, measure, measure_side_by_side


@dataclass(frozen=True)
class QuantizerShape:
    """A quantizer to be timed, on `batch_size` random latents."""

    name: str
    latent_channels: int
    codebook_size: int
    sides: tuple[int, ...]
    attention_dim: int
    batch_size: int = 1


# The published tokenizers (paper, Section 4.1), and one that a laptop trains.
QUANTIZER_SHAPES = (
    QuantizerShape("small", 16, 4096, (1, 2, 4, 8), 32, 8),
    QuantizerShape("kl16", 16, 16384, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 32),
    QuantizerShape("flux", 16, 65536, (1, 2, 3, 4, 6, 9, 13, 18, 24, 32), 32),
)
PUBLISHED_SHAPES = QUANTIZER_SHAPES[1:]
CODEBOOK_SIZES = (4096, 16384, 65536, 262144)

_LARGER_BATCH = 4  # times the batch: how memory grows with it
_GEMM_SIZE = 2048

Work = Callable[[], object]


def quantizer_speed(
    out: str | Path = "runs/speed",
    shapes: Sequence[QuantizerShape] = PUBLISHED_SHAPES,
    codebook_sizes: Sequence[int] = CODEBOOK_SIZES,
    repeats: int = 3,
    seed: int = 0,
    device: str = "auto",
    overwrite: bool = False,
) -> Report:
    """Time a training step and encoding: dense, in tiles and, on CUDA, in fused kernels.

    Args:
        out: Directory of the report.
        shapes: Quantizers; each is also timed with its own codebook size and with four times its batch.
        codebook_sizes: K, each with every shape.
        repeats: Repetitions; the fastest counts.
        seed: Of weights and latents.
        device: "auto", "cpu" or "cuda".
        overwrite: Replace what `out` holds.

    Returns:
        The report: ratios at each shape's own K as figures, seconds and MiB over K as tables and plots.

    Raises:
        CodaError: There is nothing to time, or `out` holds something else.
    """
    if repeats < 1 or not shapes:
        raise CodaError(f"repeats is {repeats} and there are {len(shapes)} shapes; at least one of each is needed")
    place = resolve_device(device)
    measured_now = describe_run(place)
    run = RunDirectory(out, "quantizer benchmark", {"date": measured_now["date"]}, overwrite)
    gemm = _gemm_rate(place, repeats)
    figures: list[Figure] = [Figure("matrix product", gemm / 1e9, "GFLOP/s", note=f"float32, {_GEMM_SIZE}³")]
    tables: list[Table] = []
    plots: list[Plot] = []
    cases = [(shape, sorted({*codebook_sizes, shape.codebook_size})) for shape in shapes]
    with progress("Timing", total=sum(len(sizes) for _, sizes in cases), unit="codebooks") as bar:
        for shape, sizes in cases:
            found = {}
            for size in sizes:
                found[size] = _time(replace(shape, codebook_size=size), place, repeats, seed)
                bar.advance(shape=f"{shape.name}, K {size:,}")
            operations = _operations(shape)
            figures += _figures(shape, found[shape.codebook_size], operations / gemm)
            rows: list[Sequence[Cell]] = [
                [size, work, taken.seconds, taken.slowest, taken.peak_mib]
                for size, works in found.items()
                for work, taken in works.items()
            ]
            tables.append(Table(shape.name, ("K", "work", "seconds", "slowest", "peak MiB"), rows))
            plots += _plots(shape.name, found)
    report = Report(
        title="Speed of the quantizer",
        figures=figures,
        tables=tables,
        plots=plots,
        provenance={
            "quantizer_shapes": [asdict(shape) for shape in shapes],
            "codebook_sizes": list(codebook_sizes),
            "timing": f"in turns, the fastest of {repeats} after one warm-up; peak above what was held before, in the "
            "warm-up",
            "dense": "left out where it would not fit into the memory that is free",
            "seed": seed,
            **measured_now,
        },
    )
    run.finish(report.save)
    return report


def make_quantizer(shape: QuantizerShape, device: torch.device, seed: int) -> tuple[ResidualQuantizer, torch.Tensor]:
    """A quantizer with random weights, and latents (B, C, h, w) for it; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        quantizer = ResidualQuantizer(
            latent_channels=shape.latent_channels,
            codebook_size=shape.codebook_size,
            sides=shape.sides,
            attention_dim=shape.attention_dim,
            norm="rms_norm",
        )
        h, w = quantizer.layout.grid
        latents = torch.randn(shape.batch_size, shape.latent_channels, h, w)
    return quantizer.to(device), latents.to(device)


def training_step(quantizer: ResidualQuantizer, latents: torch.Tensor, forward: Callable[..., Any]) -> Work:
    """Forward and backward of the losses, as training has them."""

    def step() -> None:
        quantizer.zero_grad()
        found = forward(latents.clone().requires_grad_())
        (found.quantization_loss + 0.05 * found.entropy_loss + found.quantized.mean()).backward()

    return step


def dense_fits(quantizer: ResidualQuantizer, batch_size: int, device: torch.device) -> bool:
    """Whether the dense one's N × K tensors would fit into the memory that is free."""
    free = available_bytes(device)
    return free is None or dense_bytes(quantizer, batch_size) < 0.8 * free


def _time(shape: QuantizerShape, device: torch.device, repeats: int, seed: int) -> dict[str, Measured]:
    quantizer, latents = make_quantizer(shape, device, seed)
    works: dict[str, Work] = {}
    best = retrieval_backend(device, quantizer.dtype, max(shape.attention_dim, shape.latent_channels))
    backends: list[Backend] = ["tiled"] if best == "tiled" else ["tiled", "fused"]
    for backend in backends:
        works[f"{backend} step"] = _with(backend, training_step(quantizer, latents, quantizer))
        works[f"{backend} encode"] = _with(backend, lambda: quantizer.encode(latents))
    many = latents.repeat(_LARGER_BATCH, 1, 1, 1)
    works[f"{best} step, {_LARGER_BATCH} × the batch"] = _with(best, training_step(quantizer, many, quantizer))
    if dense_fits(quantizer, shape.batch_size, device):

        @torch.no_grad()
        def forward() -> object:
            return dense_forward(quantizer, latents)

        works["dense step"] = training_step(quantizer, latents, lambda inputs: dense_forward(quantizer, inputs))
        works["dense forward"] = forward
    return dict(zip(works, measure_side_by_side(list(works.values()), device, repeats), strict=True))


def _with(backend: Backend, work: Work) -> Work:
    def run() -> object:
        with _backend(backend):
            return work()

    return run


@contextmanager
def _backend(name: Backend) -> Iterator[None]:
    before = os.environ.get("CODA_RETRIEVAL")
    os.environ["CODA_RETRIEVAL"] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ["CODA_RETRIEVAL"]
        else:
            os.environ["CODA_RETRIEVAL"] = before


def _figures(shape: QuantizerShape, found: dict[str, Measured], gemm_seconds: float) -> list[Figure]:
    """The ratios at a shape's own K; `gemm_seconds` is how long its operations would take in a large product."""
    figures = []
    dense, forward = found.get("dense step"), found.get("dense forward")
    absent = "" if dense else "the dense one would not fit into memory"
    for backend in ("tiled", "fused"):
        step, encode = found.get(f"{backend} step"), found.get(f"{backend} encode")
        if step is None or encode is None:
            continue
        name = f"{shape.name}: {backend}"
        share = 100 * gemm_seconds / step.seconds
        faster, memory = _ratio(dense, step, "seconds"), _ratio(dense, step, "peak_mib")
        faster_encode = _ratio(forward, encode, "seconds")
        figures += [
            Figure(f"{name} step, times faster than dense", faster, "×", note=absent),
            Figure(f"{name} step, times less memory than dense", memory, "×", note=absent),
            Figure(f"{name} encode, times faster than dense forward", faster_encode, "×", note=absent),
            Figure(f"{name} step, share of the matrix product's rate", share, "%"),
        ]
        if larger := found.get(f"{backend} step, {_LARGER_BATCH} × the batch"):
            note = f"peak of {_LARGER_BATCH} × the batch over that of the batch"
            figures.append(Figure(f"{name} step, growth of memory", _ratio(larger, step, "peak_mib"), "×", note=note))
    return figures


def _ratio(over: Measured | None, under: Measured | None, what: str) -> float | None:
    if over is None or under is None or not getattr(under, what) or getattr(over, what) is None:
        return None
    return float(getattr(over, what) / getattr(under, what))


def _operations(shape: QuantizerShape) -> float:
    tokens = shape.batch_size * sum(side**2 for side in shape.sides)
    return 2 * tokens * shape.codebook_size * (4 * shape.attention_dim + 2 * shape.latent_channels)


def _gemm_rate(device: torch.device, repeats: int) -> float:
    """Floating-point operations per second of a large float32 matrix product."""
    a = torch.randn(_GEMM_SIZE, _GEMM_SIZE, device=device)
    return 2 * _GEMM_SIZE**3 / measure(lambda: a @ a, device, repeats).seconds


def _plots(name: str, found: dict[int, dict[str, Measured]]) -> list[Plot]:
    works = dict.fromkeys(work for measured in found.values() for work in measured if "×" not in work)
    labels = [f"{size:,}" for size in found]

    def plot(what: str, y_label: str) -> Plot:
        lines = {
            work: [getattr(measured[work], what) if work in measured else None for measured in found.values()]
            for work in works
        }
        title = f"Quantizer, {name}: {y_label} over the codebook"
        return Plot(f"{name}-{what.split('_')[0]}", title, "codes", y_label, labels, lines, "line", log=True)

    return [plot("seconds", "seconds"), plot("peak_mib", "MiB")]
