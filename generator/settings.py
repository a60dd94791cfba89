"""Settings of the generator: `train_maskgit` and sampling. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from coda.tokenizer.foundation.settings import (
    OPTIMIZER_HELP,
    Choices,
    Count,
    Derived,
    Fraction,
    Natural,
    OptimizerName,
    Positive,
    Range,
    Seed,
    Settings,
    Weight,
    setting,
)

from .presets import PRESETS, resolve_preset

MaskLaw = Literal["cosine", "arccos", "linear"]


@dataclass(frozen=True)
class MaskGitSettings(Settings):
    """Settings of `train_maskgit` that change its result; what is left out has been filled in from the preset."""

    preset: Annotated[str, Choices(tuple(PRESETS))] = setting(
        "small", "Size of the transformer, and defaults for some of the flags below."
    )
    hidden_size: Annotated[Count, Derived] = setting(None, "Hidden size; by default the preset's.")
    depth: Annotated[Count, Derived] = setting(None, "Number of blocks; by default the preset's.")
    num_heads: Annotated[Count, Derived] = setting(None, "Number of attention heads; by default the preset's.")
    dropout: Annotated[float, Range(0, 0.9)] = setting(
        0.0, "Dropout in the blocks; 0.1 to 0.25 for some 10,000 images and many epochs."
    )
    steps: Annotated[Count, Derived] = setting(None, "Optimizer steps; by default 10,000, or the preset's.")
    batch_size: Annotated[Count, Derived] = setting(
        None, "Images per step, over all processes; by default 64, or the preset's."
    )
    accumulation: Count = setting(
        1, "Parts of a batch whose gradients are computed one after the other, to save memory."
    )
    optimizer: OptimizerName = setting("adamw", OPTIMIZER_HELP)
    lr: Annotated[Positive, Derived] = setting(None, "Peak learning rate; by default the preset's.")
    lr_decay: Literal["cosine", "constant"] = setting("cosine", "Learning rate after the warm-up.")
    warmup: Annotated[Natural, Derived] = setting(
        None, "Steps of linear warm-up; by default a twentieth of the steps, at most 1,000."
    )
    weight_decay: Weight = setting(0.03, "Weight decay of matrices other than embeddings.")
    class_dropout: Fraction = setting(0.1, "Probability of dropping the class, for classifier-free guidance.")
    corruption: Fraction = setting(
        0.2, "Largest share of an image's codes that are replaced at random before the prefix latent is computed."
    )
    mask_law: MaskLaw = setting("cosine", "Schedule of the mask ratio; sampling uses the same.")
    mask_all: Fraction = setting(
        0.0, "Probability of masking a level whole, as sampling finds it; for few sampling steps."
    )
    level_weights: Literal["equal", "sqrt", "tokens", "lognormal"] = setting(
        "equal", "Weight of a level's loss: equal, by its cells (tokens) or their root, or a bell over the levels."
    )
    label_smoothing: Fraction = setting(0.0, "Share of the target that is spread over all codes.")
    ema_decay: Annotated[Fraction, Derived] = setting(
        None, "EMA decay; by default the preset's. The averaged weights are saved."
    )
    ema_half_life: Positive | None = setting(None, "Half-life of the EMA in images, instead of the decay.")
    validation_share: Fraction = setting(
        0.02, "Share of the images, at most about 1,000, that is not trained on but validated on; 0 for none."
    )
    validate_every: Count | None = setting(None, "Steps between validations; by default about ten in a run.")
    keep: Literal["last", "best"] = setting(
        "last", "Which averaged weights are saved: the last, or those with the best validation loss."
    )
    gradient_checkpointing: bool = setting(False, "Recompute activations: less memory for a third more work.")
    seed: Seed = setting(0, "Seed for all randomness.")

    def __post_init__(self) -> None:
        super().__post_init__()
        names = ("hidden_size", "depth", "num_heads", "steps", "batch_size", "lr", "ema_decay")
        values = resolve_preset(self.preset, **{name: getattr(self, name) for name in names})
        values["warmup"] = min(1_000, values["steps"] // 20) if self.warmup is None else self.warmup
        if self.ema_half_life is not None:
            values["ema_decay"] = 0.5 ** (values["batch_size"] / self.ema_half_life)
        for name, value in values.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class SamplingSettings(Settings):
    """Settings of a sampling run that change its images."""

    steps: tuple[Count, ...] | None = setting(
        None, "Sampling steps: one number for all levels together, or one per level (1,1,2,4); by default the model's."
    )
    guidance: Annotated[float, Range(0, 1000)] | None = setting(
        None, "Classifier-free guidance scale; 1 turns it off; by default the model's."
    )
    guidance_schedule: Literal["constant", "linear", "cosine"] | None = setting(
        None, "Guidance from the first step on (constant), or growing from 1; by default the model's."
    )
    temperature: Weight | None = setting(
        None, "Temperature of the codes; 0 takes the most likely one; by default the model's."
    )
    noise: Weight | None = setting(
        None, "Gumbel noise on the confidence that orders the cells; by default the model's."
    )
    top_k: Natural | None = setting(
        None, "Draw from so many of the most likely codes; 0 for all; by default the model's."
    )
    top_p: Annotated[Fraction, Range(0, 1, open_low=True)] | None = setting(
        None, "Draw from the most likely codes that together have this probability; by default the model's."
    )
    redraw: Fraction | None = setting(
        None, "Share of a finished level's codes, the least likely, to draw once more; by default the model's."
    )
    seed: Seed = setting(0, "Seed for all randomness.")
