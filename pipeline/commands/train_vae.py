"""`coda train-vae`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda import tokenizer
from coda.tokenizer import images
from coda.tokenizer.settings import ImageOptions, RunOptions, VaeSettings

from ..cli.arguments import Help
from .flags import Data, Out, Validation

Start = Annotated[str | None, Help("A VAE to go on training, as coda adapt takes it; by default a new one.")]


def train_vae(
    *,
    data: Data,
    vae: Start = None,
    out: Out = Path("runs/vae"),
    validation: Validation = None,
    settings: VaeSettings,
    run: RunOptions,
    options: ImageOptions,
) -> str:
    """Train a small continuous VAE, if you have no pretrained one, or go on training one that you have.

    coda adapt takes its directory by default. Rerun the same command to resume an interrupted run.

    Examples:
        coda train-vae --data photos --size 64
        coda train-vae --data photos --vae runs/vae --lr 1e-3 --out runs/longer-trained-vae
    """
    source = images.open_images(data, **vars(options))
    held_out = None if validation is None else images.open_images(validation, **vars(options))
    made = tokenizer.train_vae(source, out, settings, run, held_out, vae)
    found = source.describe_unreadable(), source.describe_ignored()
    return "; ".join(filter(None, [f"Made a continuous VAE in {made}", *found]))
