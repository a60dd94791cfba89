"""`coda benchmark speed`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..cli.arguments import Count, Device, Seed
from .output import ending_of

Shape = Literal["small", "kl16", "flux"]


def speed(
    *,
    shapes: tuple[Shape, ...] | None = None,
    codebook_sizes: tuple[Count, ...] = (),
    out: Path = Path("runs/speed"),
    repeats: Count = 3,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: bool = False,
) -> str:
    """Seconds and memory of the quantizer, against a dense one.

    A training step and encoding: dense, in tiles and, on CUDA, in fused kernels.

    Args:
        shapes: Quantizers to time, each with its own codebook size; all if not given.
        codebook_sizes: Further codebook sizes, tried with every shape.
        out: Directory of the report.
        repeats: Repetitions; the fastest counts.
        seed: Seed for weights and latents.
        device: auto, cpu, cuda, cuda:1.
        overwrite: Replace what --out holds.

    Examples:
        coda benchmark speed --shapes small
        coda benchmark speed --shapes kl16,flux --codebook-sizes 4096,16384,65536,262144
    """
    from coda.benchmarks import speed as run
    from coda.benchmarks.timing.quantizer import QUANTIZER_SHAPES

    chosen = [shape for shape in QUANTIZER_SHAPES if shapes is None or shape.name in shapes]
    report = run(
        out=out,
        shapes=chosen,
        codebook_sizes=codebook_sizes,
        repeats=repeats,
        seed=seed,
        device=device,
        overwrite=overwrite,
    )
    return ending_of(report, out)
