"""`coda benchmark speed`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from coda import benchmarks
from coda.benchmarks.settings import SpeedSettings
from coda.tokenizer.settings import RunOptions

from ..cli.arguments import Help, Without
from .flags import Out
from .output import ending_of

Shapes = Annotated[
    tuple[Literal["small", "kl16", "flux"], ...] | None,
    Help("Quantizers to time, each with its own codebook size; by default all."),
]


def speed(
    *,
    shapes: Shapes = None,
    out: Out = Path("runs/speed"),
    settings: Annotated[SpeedSettings, Without("size")],
    run: Annotated[RunOptions, Without("workers", "dtype", "strict", "checkpoint_every", "log_with")],
) -> str:
    """Measure time and memory of the quantizer, compared with a dense one, and of generators.

    A training step and encoding: dense, in tiles, on CUDA in fused kernels, and vector-quantize-pytorch's if installed.

    Examples:
        coda benchmark speed --shapes small
        coda benchmark speed --shapes kl16,flux --codebook-sizes 4096,16384,65536,262144
        coda benchmark speed --shapes kl16 --generators small,medium,large --batch-size 32
        coda benchmark speed --shapes kl16 --generators medium --peers ours,flattened,amused
    """
    from coda.benchmarks.timing.quantizer import QUANTIZER_SHAPES

    chosen = [shape for shape in QUANTIZER_SHAPES if shapes is None or shape.name in shapes]
    return ending_of(benchmarks.speed(out=out, shapes=chosen, settings=settings, run=run), out)
