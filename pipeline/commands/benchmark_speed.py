"""`coda benchmark speed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from coda.tokenizer.foundation.settings import Count, Seed

from ..cli.arguments import Help, Without
from .flags import Out, Overwrite, Placement, Repeats
from .output import ending_of

Shapes = Annotated[
    tuple[Literal["small", "kl16", "flux"], ...] | None,
    Help("Quantizers to time, each with its own codebook size; by default all."),
]


def speed(
    *,
    shapes: Shapes = None,
    codebook_sizes: Annotated[tuple[Count, ...], Help("Further codebook sizes, tried with every shape.")] = (),
    out: Out = Path("runs/speed"),
    repeats: Repeats = 3,
    seed: Annotated[Seed, Help("Seed for weights and latents.")] = 0,
    placement: Annotated[Placement, Without("dtype")],
    overwrite: Overwrite = False,
) -> str:
    """Measure time and memory of the quantizer, against a dense one.

    A training step and encoding: dense, in tiles and, on CUDA, in fused kernels.

    Examples:
        coda benchmark speed --shapes small
        coda benchmark speed --shapes kl16,flux --codebook-sizes 4096,16384,65536,262144
    """
    from coda.benchmarks import speed as run
    from coda.benchmarks.timing.quantizer import QUANTIZER_SHAPES

    report = run(
        out=out,
        shapes=[shape for shape in QUANTIZER_SHAPES if shapes is None or shape.name in shapes],
        codebook_sizes=codebook_sizes,
        repeats=repeats,
        seed=seed,
        device=placement.device,
        overwrite=overwrite,
    )
    return ending_of(report, out)
