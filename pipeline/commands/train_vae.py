"""`coda train-vae`."""

from __future__ import annotations

from pathlib import Path

from coda import tokenizer
from coda.tokenizer.settings import RunOptions, VaeSettings

from .flags import Data, Out


def train_vae(*, data: Data, out: Out = Path("runs/vae"), settings: VaeSettings, run: RunOptions) -> str:
    """Train a small continuous VAE, if you have no pretrained one.

    coda adapt takes its directory by default. Rerun the same command to resume an interrupted run.

    Examples:
        coda train-vae --data photos --size 64
    """
    return f"Made a continuous VAE in {tokenizer.train_vae(data, out, settings, run)}"
