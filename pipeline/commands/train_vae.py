"""`coda train-vae`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..cli.arguments import Count, Device, Fraction, Natural, Positive, Seed, TrainingPrecision, Weight


def train_vae(
    *,
    data: str,
    out: Path = Path("runs/vae"),
    size: Count = 64,
    architecture: Literal["kl", "tiny"] = "kl",
    factor: Count = 8,
    latent_channels: Count = 16,
    width: Count = 16,
    steps: Count = 3000,
    batch_size: Count = 32,
    lr: Positive = 1e-3,
    warmup: Natural = 100,
    l1_weight: Weight = 1.0,
    l2_weight: Weight = 1.0,
    perceptual_weight: Weight = 0.1,
    kl_weight: Weight = 1e-4,
    ema_decay: Fraction = 0.995,
    workers: Natural = 0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: TrainingPrecision = "auto",
    overwrite: bool = False,
    strict: bool = False,
    checkpoint_every: Count = 250,
) -> str:
    """Images -> a small continuous VAE of your own, for those who can download none.

    The directory that it makes is what coda adapt takes by default. The same command again goes on where it was
    interrupted.

    Args:
        data: Photographs: ImageFolder, folder, WebDataset tars or parquet; DIR[:650] takes a part.
        out: Directory to make.
        size: Pixels each way, a multiple of --factor.
        architecture: kl (better pictures) or tiny (faster).
        factor: Pixels per latent cell along one axis, a power of two.
        latent_channels: Channels of the latent.
        width: Channels at full resolution.
        steps: Optimiser steps in all.
        batch_size: Pictures per step.
        lr: Highest learning rate.
        warmup: Steps of linear warm-up.
        l1_weight: Weight of the mean absolute error.
        l2_weight: Weight of the mean squared error.
        perceptual_weight: Weight of the perceptual distance.
        kl_weight: Weight of the KL divergence from N(0, 1).
        ema_decay: Decay of the averaged weights, which are kept.
        workers: Processes that decode; 0 decodes in this one.
        seed: Seed of every random choice.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: Precision of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Start anew over what --out holds.
        strict: Stop at a broken picture instead of leaving it out.
        checkpoint_every: Steps between checkpoints.

    Examples:
        coda train-vae --data photographs --size 64
    """
    given = locals()
    from coda.tokenizer import train_vae as train
    from coda.tokenizer.settings import RunOptions, VaeSettings

    path = train(data, out, VaeSettings.from_mapping(given), RunOptions.from_mapping(given))
    return f"Made a continuous VAE in {path}"
