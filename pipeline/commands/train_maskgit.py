"""`coda train-maskgit`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..cli.arguments import Count, Device, Fraction, Natural, Positive, Seed, TrainingPrecision


def train_maskgit(
    *,
    cache: Path = Path("runs/cache"),
    out: Path = Path("runs/generator"),
    tokenizer: str | None = None,
    preset: Literal["pocket", "tiny", "small", "medium", "large"] = "small",
    hidden_size: Count | None = None,
    depth: Count | None = None,
    num_heads: Count | None = None,
    steps: Count = 10_000,
    batch_size: Count = 64,
    lr: Positive = 5e-4,
    lr_decay: Literal["cosine", "constant"] = "cosine",
    warmup: Natural | None = None,
    class_dropout: Fraction = 0.1,
    corruption: Fraction = 0.2,
    mask_law: Literal["cosine", "arccos", "linear"] = "cosine",
    ema_decay: Fraction = 0.9995,
    gradient_checkpointing: bool = False,
    workers: Natural = 0,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: TrainingPrecision = "auto",
    overwrite: bool = False,
    checkpoint_every: Count = 500,
) -> str:
    """Code cache -> generator.

    Trains a masked transformer on codes alone: no VAE is loaded and no picture is read. The same command again goes on
    where it was interrupted.

    Args:
        cache: Code cache that tokenize-dataset made.
        out: Directory to make.
        tokenizer: Directory of the tokenizer that is to decode the samples: a cache of another one's codes is refused.
            Where none is given, runs/cache has to be of runs/tokenizer, if that is there.
        preset: Size of the transformer.
        hidden_size: Width, instead of the preset's.
        depth: Number of blocks, instead of the preset's.
        num_heads: Attention heads, instead of the preset's.
        steps: Optimiser steps in all.
        batch_size: Pictures per step.
        lr: Peak learning rate.
        lr_decay: What the learning rate does after the warm-up.
        warmup: Steps of linear warm-up; a twentieth of --steps, at most 1,000, if not given.
        class_dropout: Share of pictures whose class is withheld, for guidance.
        corruption: Largest share of a picture's codes that are replaced at random in what the next level sees.
        mask_law: Law of the mask ratios; sampling takes the same.
        ema_decay: Decay of the averaged weights.
        gradient_checkpointing: Less memory for a third more work.
        workers: Processes that read ahead; 0 reads in this one.
        seed: Seed of weights, order and masks.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: Precision of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Start anew over what --out holds.
        checkpoint_every: Steps between checkpoints.

    Examples:
        coda train-maskgit
        coda train-maskgit --cache runs/cache --preset tiny --steps 5000
    """
    given = locals()
    from coda.generator import train_maskgit as train
    from coda.generator.settings import MaskGitSettings
    from coda.tokenizer.fingerprint import MANIFEST
    from coda.tokenizer.settings import RunOptions

    from .model import TOKENIZER

    if tokenizer is None and cache == Path("runs/cache") and Path(TOKENIZER, MANIFEST).is_file():
        tokenizer = TOKENIZER
    path = train(cache, out, MaskGitSettings.from_mapping(given), RunOptions.from_mapping(given), tokenizer)
    return f"Made a generator in {path}"
