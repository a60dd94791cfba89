"""Settings of the generator: `train_maskgit` and sampling. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from coda.tokenizer.foundation.settings import (
    Choices,
    Count,
    Fraction,
    Natural,
    Positive,
    Range,
    Seed,
    Settings,
    setting,
)

from .presets import PRESETS

MaskLaw = Literal["cosine", "arccos", "linear"]


@dataclass(frozen=True)
class MaskGitSettings(Settings):
    """Settings of `train_maskgit` that change its result."""

    preset: Annotated[str, Choices(tuple(PRESETS))] = setting("small", "Size of the transformer.")
    hidden_size: Count | None = setting(None, "Hidden size; by default the preset's.")
    depth: Count | None = setting(None, "Number of blocks; by default the preset's.")
    num_heads: Count | None = setting(None, "Number of attention heads; by default the preset's.")
    steps: Count = setting(10_000, "Optimizer steps.")
    batch_size: Count = setting(64, "Images per step, over all processes.")
    lr: Positive = setting(5e-4, "Peak learning rate.")
    lr_decay: Literal["cosine", "constant"] = setting("cosine", "Learning rate after the warm-up.")
    warmup: Natural | None = setting(
        None, "Steps of linear warm-up; by default a twentieth of the steps, at most 1,000."
    )
    class_dropout: Fraction = setting(0.1, "Probability of dropping the class, for classifier-free guidance.")
    corruption: Fraction = setting(
        0.2, "Largest share of an image's codes that are replaced at random before the prefix latent is computed."
    )
    mask_law: MaskLaw = setting("cosine", "Schedule of the mask ratio; sampling uses the same.")
    ema_decay: Fraction = setting(0.9995, "EMA decay. The averaged weights are saved.")
    gradient_checkpointing: bool = setting(False, "Recompute activations: less memory for a third more work.")
    seed: Seed = setting(0, "Seed for all randomness.")


@dataclass(frozen=True)
class SamplingSettings(Settings):
    """Settings of a sampling run that change its images."""

    steps: tuple[Count, ...] | None = setting(
        None, "Sampling steps: one number for all levels together, or one per level (1,1,2,4); by default the model's."
    )
    guidance: Annotated[float, Range(0, 1000)] | None = setting(
        None, "Classifier-free guidance scale; 1 turns it off; by default the model's."
    )
    seed: Seed = setting(0, "Seed for all randomness.")
