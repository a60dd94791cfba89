"""`coda benchmark peers`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda import benchmarks
from coda.benchmarks.settings import PeersSettings
from coda.tokenizer.settings import RunOptions

from ..cli.arguments import Help, Without
from .flags import Cache, Out, Tokenizer
from .model import tokenizer_place
from .output import ending_of


def peers(
    *,
    cache: Cache = Path("runs/cache"),
    tokenizer: Tokenizer = "runs/tokenizer",
    reference: Annotated[str, Help("Images (as --data elsewhere) that samples are compared with.")],
    data: Annotated[
        str | None, Help("Images that the U-Net learns; by default those of --reference, and the report says so.")
    ] = None,
    out: Out = Path("runs/peers"),
    settings: PeersSettings,
    run: Annotated[RunOptions, Without("checkpoint_every", "log_with")],
) -> str:
    """Compare our generator with others at equal width, depth, codes and training time.

    Ours level by level, ours flattened into one sequence, UVit2DModel with AmusedScheduler (diffusers),
    muse-maskgit-pytorch if it is installed, and a small flow-matching U-Net on pixels as the yardstick: parameters,
    seconds per step and per image, Frechet distance, loss on held-out codes. samples-ours.png, ... show
    samples of each. Rerun the same command to resume an interrupted run.

    Examples:
        coda benchmark peers --reference photos --minutes 30
        coda benchmark peers --reference others --data photos --peers ours,flattened,unet
    """
    report = benchmarks.compare_peers(cache, tokenizer_place(tokenizer), reference, data, out, settings, run)
    return ending_of(report, out)
