"""`coda train-vae`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..arguments import Count, Device, Natural, Positive, Precision, Seed, Weight


def train_vae(
    *,
    data: str,
    out: Path = Path("runs/vae"),
    size: Count = 64,
    architecture: Literal["kl", "tiny"] = "kl",
    factor: Literal[2, 4, 8, 16, 32] = 8,
    latent_channels: Count = 16,
    width: Count = 64,
    steps: Count = 10_000,
    batch_size: Count = 16,
    lr: Positive = 1e-4,
    kl_weight: Weight = 1e-6,
    perceptual_weight: Weight = 1.0,
    workers: Natural = 0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
    strict: bool = False,
    checkpoint_every: Count = 500,
) -> str:
    """train a small continuous VAE of your own

    For those who can download none. The directory it makes is what `coda adapt` takes by default.
    The same command again goes on where it was interrupted.
    """
    from coda.tokenizer import train_vae as run

    path = run(data=data, out=out, size=size)
    return f"Made a continuous VAE in {path}"
