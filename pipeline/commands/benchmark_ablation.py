"""`coda benchmark ablation`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda import benchmarks
from coda.benchmarks.settings import AblationSettings
from coda.tokenizer.settings import RunOptions

from ..cli.arguments import Help, Without
from .flags import Data, Out, Vae
from .output import ending_of


def ablation(
    *,
    data: Data,
    vae: Vae = "runs/vae",
    test_data: Annotated[
        str | None, Help("Images to measure on; by default those of --data, and the report says so.")
    ] = None,
    out: Out = Path("runs/ablation"),
    settings: AblationSettings,
    run: Annotated[RunOptions, Without("dtype", "checkpoint_every", "log_with")],
) -> str:
    """Measure what each idea brings: direct VQ, residual levels, attention, LoRA.

    The paper's ablation on your own images: all rungs are trained on the same images, losses and steps. Beside it:
    numbers of levels, random starts, and quantizers that need no training. Plots show quality against images seen and
    against bits. Checkpoints, figures and tokenizers of the rungs are in rungs/. Rerun the same command to resume an
    interrupted run.

    Examples:
        coda benchmark ablation --vae runs/vae --data "photos[:650]" --test-data "photos[650:]" --size 64
        coda benchmark ablation --data photos --tables ladder --seeds 3
    """
    return ending_of(benchmarks.ablation(vae, data, test_data, out, settings, run), out)
