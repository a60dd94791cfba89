"""`coda adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from ..cli.arguments import (
    Count,
    Device,
    Fraction,
    Natural,
    Positive,
    Range,
    Seed,
    Side,
    Size,
    TrainingPrecision,
    Weight,
)


def adapt(
    *,
    data: str,
    vae: str = "runs/vae",
    out: Path = Path("runs/tokenizer"),
    size: Size | None = None,
    sides: tuple[Side, ...] | None = None,
    codebook_size: Annotated[int, Range(2)] = 4096,
    attention_dim: Count | None = None,
    norm: Literal["rms_norm", "layer_norm"] = "rms_norm",
    lora_rank: Natural = 32,
    steps: Natural = 500,
    batch_size: Count = 16,
    lr: Positive = 5e-4,
    warmup: Natural = 50,
    kmeans_images: Count | None = None,
    l1_weight: Weight = 1.0,
    l2_weight: Weight = 1.0,
    perceptual_weight: Weight = 0.1,
    entropy_weight: Weight = 0.05,
    adversarial_weight: Weight = 0.0,
    adversarial_start: Natural = 0,
    ema_decay: Fraction = 0.995,
    workers: Natural = 0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: TrainingPrecision = "auto",
    overwrite: bool = False,
    strict: bool = False,
    checkpoint_every: Count = 100,
) -> str:
    """Continuous VAE + images -> tokenizer directory.

    Finds a codebook by residual k-means, then trains the quantizer and a LoRA of the VAE together. The same command
    again goes on where it was interrupted.

    Args:
        data: Photographs: ImageFolder, folder, WebDataset tars or parquet; DIR[:650] takes a part.
        vae: The continuous VAE: a directory, a weights file of MAR's KL16 or of TAEF2, or a hub id.
        out: Directory to make.
        size: Pixels, one number or HEIGHTxWIDTH; the short side of the first picture, 256 at most, if not given.
        sides: Sides of the levels, smallest first (1,2,4,8 or 1x2,2x4); chosen by the latent's size if not given.
        codebook_size: Number of codes.
        attention_dim: Width of the retrieval; twice the latent's channels if not given.
        norm: Of queries and keys.
        lora_rank: Rank of the VAE's adaptation; 0 leaves the VAE as it is.
        steps: Optimiser steps in all; 0 keeps the start from k-means.
        batch_size: Pictures per step.
        lr: Highest learning rate.
        warmup: Steps of linear warm-up.
        kmeans_images: Pictures for the codebook's start; as many as give 128 vectors per code if not given.
        l1_weight: Weight of the mean absolute error.
        l2_weight: Weight of the mean squared error.
        perceptual_weight: Weight of the perceptual distance.
        entropy_weight: Weight of the quantizer's entropy loss.
        adversarial_weight: Weight of a discriminator's loss; 0 trains without one.
        adversarial_start: First step with a discriminator.
        ema_decay: Decay of the averaged weights, which are kept.
        workers: Processes that decode; 0 decodes in this one.
        seed: Seed of every random choice.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: Precision of the VAE's arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Start anew over what --out holds.
        strict: Stop at a broken picture instead of leaving it out.
        checkpoint_every: Steps between checkpoints.

    Examples:
        coda adapt --data photographs
        coda adapt --vae kl16.safetensors --data "train-{000..255}.tar" --codebook-size 16384 --workers 8
    """
    given = locals()
    from coda.tokenizer import adapt as train
    from coda.tokenizer.settings import AdaptSettings, RunOptions

    path = train(vae, data, out, AdaptSettings.from_mapping(given), RunOptions.from_mapping(given))
    return f"Made a tokenizer in {path}"
