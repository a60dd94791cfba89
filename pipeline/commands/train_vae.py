"""`coda train-vae`."""

from __future__ import annotations

from pathlib import Path

from coda import tokenizer
from coda.tokenizer import images
from coda.tokenizer.settings import ImageOptions, RunOptions, VaeSettings

from .flags import Data, Out, Validation


def train_vae(
    *,
    data: Data,
    out: Out = Path("runs/vae"),
    validation: Validation = None,
    settings: VaeSettings,
    run: RunOptions,
    options: ImageOptions,
) -> str:
    """Train a small continuous VAE, if you have no pretrained one.

    coda adapt takes its directory by default. Rerun the same command to resume an interrupted run.

    Examples:
        coda train-vae --data photos --size 64
    """
    source = images.open_images(data, **vars(options))
    held_out = None if validation is None else images.open_images(validation, **vars(options))
    made = tokenizer.train_vae(source, out, settings, run, held_out)
    found = source.describe_unreadable(), source.describe_ignored()
    return "; ".join(filter(None, [f"Made a continuous VAE in {made}", *found]))
