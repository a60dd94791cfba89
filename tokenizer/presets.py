"""Named settings of `adapt`: `coda adapt --preset NAME`. Flags that are given win over the preset. Imports no torch.

rFID is that of reconstructions of ImageNet's 50,000 validation images at 256 pixels.

| preset | VAE | bits per image | rFID | source | hardware | hours |
| --- | --- | --- | --- | --- | --- | --- |
| paper-f8 | FLUX.1's, f 8, C 16 | 35,840 | 0.43 | paper, Table 1 | 8 GPUs | not published |
| paper-f16 | KL16 of MAR, f 16, C 16 | 10,880 | 1.34 | paper, Table 1 | 8 GPUs | not published |

| preset | VAE | bits per image | right class | source | hardware | hours |
| --- | --- | --- | --- | --- | --- | --- |
| tiny-64 | `train-vae`'s, f 8, C 16 | 1,595 | 73.5 % | docs/RESULTS.md | 2 CPU cores with AMX, bfloat16 | 0.2 |

tiny-64 is the bundled model's, for images of 64 pixels. Right class: what a classifier says of reconstructions of 253
validation images of ten classes (94.1 % for the images themselves).

The paper's two are ten epochs of ImageNet in the paper's 50,000 steps, with the losses, optimizer and discriminator of
the published configuration files (β 0.05 and τ 0.01 are the quantizer's defaults). Those files take 288 and 512 images
per step, which makes 44,480 and 25,020 steps, and 16,384 codes at f 16 (rFID 1.43): `--batch-size`, `--steps`
and `--codebook-size` give these.

What differs from the published training on purpose: gradients are averaged over processes, the discriminator's step
uses its own gradients only, the adaptive weight is taken at the decoder's last layer, the cosine ends at zero, the
heads of the discriminator have group instead of batch normalization, the encoder gives the mean of its posterior, the
codebook starts from k-means, images are also mirrored, and the weights are averaged from the first step on.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from .foundation.errors import CodaError
from .settings import AdaptSettings

_PAPER: dict[str, Any] = {
    "size": 256,
    "codebook_size": 65_536,
    "attention_dim": 32,
    "norm": "rms_norm",
    "lora_rank": 32,
    "steps": 50_000,
    "batch_size": 256,
    "lr": 5e-4,
    "warmup": 0,
    "max_gradient_norm": 10.0,
    "weight_decay": 0.005,
    "l1_weight": 0.2,
    "l2_weight": 1.0,
    "perceptual_weight": 1.0,
    "perceptual": "lpips",
    "entropy_weight": 0.05,
    "adversarial_weight": 1.0,
    "adversarial_start": 0,
    "adversarial_ramp": 1.0,
    "discriminator": "dino",
    "dino": "facebook/dino-vits16",
    "ema_decay": 0.9999,
    "seed": 42,
}

# Of the bundled model: few codes for small images, most of them on the latent's own grid, twice.
_TINY_64: dict[str, Any] = {
    "size": 64,
    "sides": (1, 4, 8, 8),
    "codebook_size": 2048,
    "kmeans_images": 5000,
    "lora_rank": 64,
    "decoder_steps": 1500,
    "steps": 0,
    "batch_size": 16,
    "lr": 1e-3,
}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        # With eight processes, an accumulation of 4 or 2 leaves 8 or 16 images at a time.
        "paper-f8": {**_PAPER, "sides": (1, 2, 3, 4, 6, 9, 13, 18, 24, 32), "accumulation": 4},
        "paper-f16": {**_PAPER, "sides": (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), "accumulation": 2},
        "tiny-64": _TINY_64,
    }
)


def adapt_preset(name: str, **changes: Any) -> AdaptSettings:
    """The settings of a preset, some of them changed: `adapt_preset("paper-f8", batch_size=64)`.

    Raises:
        CodaError: If there is no such preset.
    """
    if name not in PRESETS:
        raise CodaError(f"preset {name!r} is not one of {', '.join(PRESETS)}")
    return AdaptSettings(**{**PRESETS[name], **changes})
