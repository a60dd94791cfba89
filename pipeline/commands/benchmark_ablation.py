"""`coda benchmark ablation`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from coda.tokenizer.foundation.settings import Count, Natural, Range, Side, setting

from ..cli.arguments import Help
from .flags import Data, MeasureOptions, Out, Vae
from .output import ending_of


@dataclass(frozen=True)
class AblationOptions(MeasureOptions):
    """What is ablated, and how it is measured."""

    size: Count = setting(256, "Image size in pixels, center crop.")
    sides: tuple[Side, ...] | None = setting(
        None, "Sides of the levels, smallest first (1,2,4,8 or 1x2,2x4); by default chosen by the latent's size."
    )
    codebook_size: Annotated[int, Range(2)] = setting(4096, "Number of codes, K.")
    levels: tuple[Count, ...] | None = setting(
        None, "Numbers of levels of the sweep; by default 1, 2, 4, ... and all of them."
    )
    steps: Natural = setting(200, "Optimizer steps of the rungs that train.")
    batch_size: Count = setting(8, "Images per batch.")
    lora_rank: Natural = setting(32, "LoRA rank of the last rung.")
    limit: Count | None = setting(None, "Measure at most this many images, drawn by --seed.")


def ablation(
    *,
    data: Data,
    vae: Vae = "runs/vae",
    test_data: Annotated[
        str | None, Help("Images to measure on; by default those of --data, and the report says so.")
    ] = None,
    out: Out = Path("runs/ablation"),
    options: AblationOptions,
) -> str:
    """Measure what each idea brings: direct VQ, residual levels, attention, LoRA.

    The paper's ablation on your own images, and its sweep over the number of levels. Each rung's tokenizer and figures
    are in rungs/. Rerun the same command to resume an interrupted run: finished rungs are kept.

    Examples:
        coda benchmark ablation --vae runs/vae --data "photos[:650]" --test-data "photos[650:]" --size 64
    """
    from coda.benchmarks import ablation as run

    return ending_of(run(vae, data, test_data, out, **vars(options)), out)
