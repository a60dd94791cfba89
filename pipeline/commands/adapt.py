"""`coda adapt`."""

from __future__ import annotations

from pathlib import Path

from coda import tokenizer
from coda.tokenizer.settings import AdaptSettings, RunOptions

from .flags import Data, Out, Vae


def adapt(
    *,
    data: Data,
    vae: Vae = "runs/vae",
    out: Out = Path("runs/tokenizer"),
    settings: AdaptSettings,
    run: RunOptions,
) -> str:
    """Turn a continuous VAE into a tokenizer.

    Finds a codebook by residual k-means, then trains the quantizer and a LoRA of the VAE together. Rerun the same
    command to resume an interrupted run.

    Examples:
        coda adapt --data photos
        coda adapt --vae kl16.safetensors --data "train-{000..255}.tar" --codebook-size 16384 --workers 8
    """
    return f"Made a tokenizer in {tokenizer.adapt(vae, data, out, settings, run)}"
