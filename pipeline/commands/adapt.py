"""`coda adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda import tokenizer
from coda.tokenizer import images
from coda.tokenizer.presets import PRESETS
from coda.tokenizer.settings import AdaptSettings, ImageOptions, RunOptions

from ..cli.arguments import Help, Presets
from .flags import Data, Out, Vae, Validation

NamedRecipe = Annotated[
    str | None,
    Presets(PRESETS),
    Help("Values for the flags below that are not given: paper-f8 for FLUX.1's VAE, paper-f16 for KL16."),
]


def adapt(
    *,
    data: Data,
    vae: Vae = "runs/vae",
    out: Out = Path("runs/tokenizer"),
    preset: NamedRecipe = None,
    validation: Validation = None,
    settings: AdaptSettings,
    run: RunOptions,
    options: ImageOptions,
) -> str:
    """Turn a continuous VAE into a tokenizer.

    Finds a codebook by residual k-means, then trains the quantizer and a LoRA of the VAE together. Rerun the same
    command to resume an interrupted run.

    Examples:
        coda adapt --data photos
        coda adapt --vae kl16.safetensors --data "train-{000..255}.tar" --codebook-size 16384 --workers 8
        coda adapt --preset paper-f16 --vae kl16.safetensors --data imagenet/train --workers 8
    """
    source = images.open_images(data, **vars(options))
    held_out = None if validation is None else images.open_images(validation, **vars(options))
    made = tokenizer.adapt(vae, source, out, settings, run, held_out)
    found = source.describe_unreadable(), source.describe_ignored()
    return "; ".join(filter(None, [f"Made a tokenizer in {made}", *found]))
