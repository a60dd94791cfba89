"""Time and memory of the quantizer, against a dense one with the same mathematics, over codebook sizes.

A training step is forward and backward. Encoding gives codes alone; it is compared with the dense forward pass, since
a dense quantizer usually has no other. Beside seconds and memory stands the share of the machine that is used: the
operations that a step needs at least,

    2 N K (4 d + 2 C):  logits in both directions, their gradients for queries and keys;  p·v and g·v,

per second, relative to the rate of a large matrix product in the same run.

If vector-quantize-pytorch is installed, its ResidualVQ runs too, with as many levels, codes per image and codes in the
codebook. It does less: nearest neighbors without gradients through the choice, and no entropies.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any

import torch

from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.quantizer.residual_quantizer import ResidualQuantizer
from coda.tokenizer.quantizer.retrieval import Backend, retrieval_backend

from ..reports.plots import Plot
from ..reports.report import Cell, Figure, Table
from .dense import dense_bytes, dense_forward
from .measure import Measured, available_bytes, matmul_rate, measure_in_turns


@dataclass(frozen=True)
class QuantizerShape:
    """A quantizer to time, on `batch_size` random latents."""

    name: str
    latent_channels: int
    codebook_size: int
    sides: tuple[int, ...]
    attention_dim: int
    batch_size: int = 1


# The published tokenizers (paper, Section 4.1), and one that a laptop can train.
QUANTIZER_SHAPES = (
    QuantizerShape("small", 16, 4096, (1, 2, 4, 8), 32, 8),
    QuantizerShape("kl16", 16, 16384, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 32),
    QuantizerShape("flux", 16, 65536, (1, 2, 3, 4, 6, 9, 13, 18, 24, 32), 32),
)

_LARGER_BATCH = 4  # times the batch, to see how memory grows
_LARGER = f", {_LARGER_BATCH} × the batch"

Work = Callable[[], object]
_WORKS = ("step", "encode")


@dataclass
class QuantizerTimes:
    """Parts of a report about the quantizers: ratios at each shape's own K, tables and plots over K."""

    figures: list[Figure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)


def time_quantizers(
    shapes: Sequence[QuantizerShape], codebook_sizes: Sequence[int], repeats: int, seed: int, device: torch.device
) -> QuantizerTimes:
    """Time a training step and encoding: dense, in tiles and, on CUDA, in fused kernels.

    Args:
        shapes: Quantizers; each is timed with its own codebook size, and once with four times its batch.
        codebook_sizes: Further K, tried with every shape.
        repeats: Repetitions; the fastest counts.
        seed: Seed for weights and latents.
        device: Where to run.
    """
    found = QuantizerTimes()
    if not shapes:
        return found
    gemm = matmul_rate(device, torch.float32, repeats)
    found.figures.append(Figure("matrix product, float32", gemm / 1e9, "GFLOP/s"))
    cases = [(shape, sorted({*codebook_sizes, shape.codebook_size})) for shape in shapes]
    with progress("Timing quantizers", total=sum(len(sizes) for _, sizes in cases), unit="codebooks") as bar:
        for shape, sizes in cases:
            times = {}
            for size in sizes:
                times[size] = _time(replace(shape, codebook_size=size), device, repeats, seed)
                bar.advance(shape=f"{shape.name}, K {size:,}")
            found.figures += _figures(shape, times[shape.codebook_size], _operations(shape) / gemm)
            rows: list[Sequence[Cell]] = [
                [size, work, taken.seconds, taken.slowest, taken.peak_mib]
                for size, works in times.items()
                for work, taken in works.items()
            ]
            found.tables.append(Table(shape.name, ("K", "work", "seconds", "slowest", "peak MiB"), rows))
            if len(times) > 1:
                found.plots += [
                    _plot(shape.name, times, "seconds", "seconds"),
                    _plot(shape.name, times, "peak_mib", "MiB"),
                ]
    return found


def _time(shape: QuantizerShape, device: torch.device, repeats: int, seed: int) -> dict[str, Measured]:
    """Everything that is timed at one shape and one K, by its name."""
    quantizer, latents = _make_quantizer(shape, device, seed)
    best = retrieval_backend(device, quantizer.dtype, shape.attention_dim, shape.latent_channels)
    backends: list[Backend] = ["tiled"] if best == "tiled" else ["tiled", "fused"]
    works: dict[str, Work] = {}
    for backend in backends:
        works[f"{backend} step"] = _with_backend(backend, _training_step(quantizer, latents, quantizer))
        works[f"{backend} encode"] = _with_backend(backend, lambda: quantizer.encode(latents))
    many = latents.repeat(_LARGER_BATCH, 1, 1, 1)
    works[f"{best} step{_LARGER}"] = _with_backend(best, _training_step(quantizer, many, quantizer))
    free = available_bytes(device)
    if free is None or dense_bytes(quantizer, shape.batch_size) < 0.8 * free:

        @torch.no_grad()
        def forward() -> object:
            return dense_forward(quantizer, latents)

        works["dense step"] = _training_step(quantizer, latents, lambda inputs: dense_forward(quantizer, inputs))
        works["dense forward"] = forward
    if find_spec("vector_quantize_pytorch"):
        works |= _peer_works(shape, latents)
    return dict(zip(works, measure_in_turns(list(works.values()), device, repeats), strict=True))


def _peer_works(shape: QuantizerShape, latents: torch.Tensor) -> dict[str, Work]:
    """A training step and encoding of ResidualVQ, on tokens (B, codes of an image / levels, C)."""
    from vector_quantize_pytorch import ResidualVQ

    levels = len(shape.sides)
    peer = ResidualVQ(
        dim=shape.latent_channels, codebook_size=shape.codebook_size, num_quantizers=levels, shared_codebook=True
    ).to(latents.device)
    tokens = latents.flatten(2).mT[:, : sum(side**2 for side in shape.sides) // levels].contiguous()

    def step() -> None:
        quantized, _, loss = peer.train()(tokens.clone().requires_grad_())
        (loss.sum() + quantized.mean()).backward()

    @torch.no_grad()
    def encode() -> object:
        return peer.eval()(tokens)

    return {"ResidualVQ step": step, "ResidualVQ encode": encode}


def _make_quantizer(shape: QuantizerShape, device: torch.device, seed: int) -> tuple[ResidualQuantizer, torch.Tensor]:
    """A quantizer with random weights, and latents (B, C, h, w) for it; the global random state is not changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        quantizer = ResidualQuantizer(
            latent_channels=shape.latent_channels,
            codebook_size=shape.codebook_size,
            sides=shape.sides,
            attention_dim=shape.attention_dim,
            norm="rms_norm",
        )
        latents = torch.randn(shape.batch_size, shape.latent_channels, *quantizer.layout.grid)
    return quantizer.to(device), latents.to(device)


def _training_step(quantizer: ResidualQuantizer, latents: torch.Tensor, forward: Callable[..., Any]) -> Work:
    """Forward and backward of the losses, as in training."""

    def step() -> None:
        quantizer.zero_grad()
        found = forward(latents.clone().requires_grad_())
        (found.quantization_loss + 0.05 * found.entropy_loss + found.quantized.mean()).backward()

    return step


def _with_backend(backend: Backend, work: Work) -> Work:
    def run() -> object:
        before = os.environ.get("CODA_RETRIEVAL")
        os.environ["CODA_RETRIEVAL"] = backend
        try:
            return work()
        finally:
            if before is None:
                del os.environ["CODA_RETRIEVAL"]
            else:
                os.environ["CODA_RETRIEVAL"] = before

    return run


def _figures(shape: QuantizerShape, times: dict[str, Measured], gemm_seconds: float) -> list[Figure]:
    """The ratios at a shape's own K; `gemm_seconds` is how long its operations would take in a large product."""
    figures = []
    dense, forward = times.get("dense step"), times.get("dense forward")
    absent = "" if dense else "the dense quantizer would not fit into the free memory"
    for backend in ("tiled", "fused"):
        step, encode = times.get(f"{backend} step"), times.get(f"{backend} encode")
        if step is None or encode is None:
            continue
        name = f"{shape.name}: {backend}"
        faster, memory = _ratio(dense, step, "seconds"), _ratio(dense, step, "peak_mib")
        faster_encode = _ratio(forward, encode, "seconds")
        figures += [
            Figure(f"{name} step, times faster than dense", faster, "×", note=absent),
            Figure(f"{name} step, times less memory than dense", memory, "×", note=absent),
            Figure(f"{name} encode, times faster than dense forward", faster_encode, "×", note=absent),
            Figure(f"{name} step, share of the matrix product's rate", 100 * gemm_seconds / step.seconds, "%"),
        ]
        if "ResidualVQ step" in times:
            faster, faster_encode = (
                _ratio(times[f"ResidualVQ {w}"], times[f"{backend} {w}"], "seconds") for w in _WORKS
            )
            figures += [
                Figure(f"{name} step, times faster than ResidualVQ", faster, "×"),
                Figure(f"{name} encode, times faster than ResidualVQ", faster_encode, "×"),
            ]
        if larger := times.get(f"{backend} step{_LARGER}"):
            note = f"peak of {_LARGER_BATCH} × the batch over that of the batch"
            figures.append(Figure(f"{name} step, growth of memory", _ratio(larger, step, "peak_mib"), "×", note=note))
    return figures


def _ratio(over: Measured | None, under: Measured | None, what: str) -> float | None:
    if over is None or under is None or not getattr(under, what) or getattr(over, what) is None:
        return None
    return float(getattr(over, what) / getattr(under, what))


def _operations(shape: QuantizerShape) -> float:
    """2 N K (4 d + 2 C), see the head of this file."""
    tokens = shape.batch_size * sum(side**2 for side in shape.sides)
    return 2 * tokens * shape.codebook_size * (4 * shape.attention_dim + 2 * shape.latent_channels)


def _plot(shape: str, times: dict[int, dict[str, Measured]], what: str, unit: str) -> Plot:
    """Seconds or MiB over K, one line per work."""
    works = dict.fromkeys(work for measured in times.values() for work in measured if not work.endswith(_LARGER))
    lines = {
        work: [getattr(measured[work], what) if work in measured else None for measured in times.values()]
        for work in works
    }
    title = f"Quantizer, {shape}: {unit} over the codebook"
    labels = [f"{size:,}" for size in times]
    return Plot(f"{shape}-{what.split('_')[0]}", title, "codes", unit, labels, lines, "line", log=True)
