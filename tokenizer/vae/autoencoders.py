"""Which of diffusers' autoencoders can be adapted, and what each of them says about its latents.

An autoencoder belongs here if it takes one RGB image (B, 3, H, W) to one continuous latent (B, C, h, w) and back, the
same way every time. Those that do not, and why, are in `_REFUSED`; classes for video (B, C, T, H, W), audio and
molecules are refused as a whole.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

from ..foundation.errors import CodaError
from .taef2 import AutoencoderTinyMidNorm

# What the published training adapts (paper, Section 3.4), as ends of module names, which is what peft matches: both
# convolutions of every residual block; in KL16 those that change the resolution too.
_RESNET_CONVOLUTIONS = ("conv1", "conv2")
_KL16_RESAMPLING = ("downsamplers.0.conv", "upsamplers.0.conv")

_REFUSED = {
    "VQModel": "it is discrete already",
    "ConsistencyDecoderVAE": "its decoder draws samples; take the AutoencoderKL that it was made for",
    "AutoencoderKLTemporalDecoder": "its decoder makes video",
}


# One of diffusers' models; which of them, and so its attributes, is only known when it runs.
Autoencoder = Any


@dataclass(frozen=True)
class AutoencoderSpec:
    """What differs from class to class; each function reads the autoencoder's config.

    Attributes:
        factor: Pixels per latent cell along one axis.
        latent_channels: Key of C in the config.
        lora_targets: Ends of the names of the modules that LoRA goes to.
        image_range: What the autoencoder calls black and white, "-1,1" or "0,1".
        fixed_size: The one image side it can take, where there is just one.
    """

    factor: Callable[[Any], int]
    latent_channels: str = "latent_channels"
    lora_targets: tuple[str, ...] = _RESNET_CONVOLUTIONS
    image_range: str = "-1,1"
    fixed_size: Callable[[Any], int] | None = None


def _halvings(key: str) -> Callable[[Any], int]:
    """A factor of two between any two entries of the config's `key`."""
    return lambda config: 2 ** (len(config[key]) - 1)


_TINY = AutoencoderSpec(
    factor=lambda config: config.upsampling_scaling_factor ** (len(config.encoder_block_out_channels) - 1),
    lora_targets=("conv.0", "conv.2", "conv.4"),
)

SPECS: Mapping[str, AutoencoderSpec] = {
    "AutoencoderKL": AutoencoderSpec(_halvings("block_out_channels")),
    "AutoencoderKLFlux2": AutoencoderSpec(_halvings("block_out_channels")),
    "AsymmetricAutoencoderKL": AutoencoderSpec(_halvings("down_block_out_channels")),
    "AutoencoderTiny": _TINY,
    "AutoencoderTinyMidNorm": _TINY,
    "AutoencoderDC": AutoencoderSpec(
        _halvings("encoder_block_out_channels"), lora_targets=("conv1", "conv2", "conv_inverted", "conv_point")
    ),
    "AutoencoderKLHunyuanImage": AutoencoderSpec(lambda config: config.spatial_compression_ratio),
    "AutoencoderKLKVAE": AutoencoderSpec(
        _halvings("ch_mult"),
        latent_channels="z_channels",
        lora_targets=("conv1", "conv2", "downsample.spatial_conv", "upsample.spatial_conv"),
    ),
    # A frozen vision transformer with a decoder trained on its features: only the decoder is adapted.
    "AutoencoderRAE": AutoencoderSpec(
        lambda config: config.patch_size,
        latent_channels="encoder_hidden_size",
        lora_targets=("to_q", "to_k", "to_v", "to_out.0", "dense"),
        image_range="0,1",
        fixed_size=lambda config: config.patch_size * (config.encoder_input_size // config.encoder_patch_size),
    ),
}


def autoencoder_class(name: object, where: object) -> type[Autoencoder]:
    """The class called `name`, if it can be adapted.

    Args:
        name: `_class_name` of a config.
        where: What the config belongs to, for the message.

    Raises:
        CodaError: It cannot, or there is no such class.
    """
    if name in SPECS:
        if name == "AutoencoderTinyMidNorm":
            return AutoencoderTinyMidNorm
        found = getattr(diffusers, str(name), None)
        if found is not None:
            return found
        raise CodaError(f"{where} holds a {name}, which diffusers {diffusers.__version__} does not have; update it")
    reason = _REFUSED.get(str(name), "it is not a 2-D image autoencoder that coda knows")
    raise CodaError(f"{where} holds a {name}, which cannot be adapted: {reason} (known: {', '.join(SPECS)})")


def lora_targets(autoencoder: Autoencoder) -> tuple[str, ...]:
    """Ends of the names of the modules that LoRA goes to: 66 in KL16 and 48 in FLUX.1's VAE, as published."""
    targets = SPECS[type(autoencoder).__name__].lora_targets
    is_kl16 = "AttnDownEncoderBlock2D" in autoencoder.config.get("down_block_types", ())
    return targets + _KL16_RESAMPLING if is_kl16 else targets


def to_config(autoencoder: Autoencoder) -> dict[str, Any]:
    """The config from which `from_config` makes the same autoencoder, with random weights."""
    parameters = inspect.signature(type(autoencoder).__init__).parameters
    config = {key: value for key, value in autoencoder.config.items() if key in parameters}
    return {"_class_name": type(autoencoder).__name__, **config}


def from_config(description: Mapping[str, Any]) -> Autoencoder:
    """An autoencoder with random weights, from what `to_config` gave."""
    arguments = dict(description)
    cls = autoencoder_class(arguments.pop("_class_name", None), "the description")
    try:
        return cls(**arguments)
    except (TypeError, ValueError) as error:
        raise CodaError(f"the description of the {cls.__name__} is wrong: {error}") from error


def published_normalization(autoencoder: Autoencoder) -> tuple[list[float], list[float]] | None:
    """Shift and scale of the latents as the autoencoder itself states them, each one number or C.

    Normalised latents are `(z - shift) * scale`. A scaling factor of 1 without a shift is what classes say when they
    know nothing, so it counts as nothing.

    - `latents_mean` and `latents_std` in a config are per channel; `scaling_factor` comes on top.
    - AutoencoderKLFlux2 keeps BatchNorm statistics of latents folded 2×2 into channels, as its pipeline uses them. The
      latents here stay unfolded (C channels at factor 8), so the statistics of a channel's four places are pooled:
      mean of the means, mean of the variances plus variance of the means.
    - AutoencoderRAE normalises inside `encode` and `decode`.

    Returns:
        (shift, scale), or None where it states neither.
    """
    config = autoencoder.config
    if isinstance(getattr(autoencoder, "bn", None), nn.BatchNorm2d):
        return _pooled_statistics(autoencoder.bn, config.latent_channels)
    if type(autoencoder).__name__ == "AutoencoderRAE":
        return ([0.0], [1.0]) if config.latents_std is not None else None
    mean, std, factor = (config.get(key) for key in ("latents_mean", "latents_std", "scaling_factor"))
    if mean is not None and std is not None:
        return [float(m) for m in mean], [(factor or 1.0) / float(s) for s in std]
    shift = config.get("shift_factor") or 0.0
    if shift == 0 and factor in (None, 1.0):
        return None
    return [float(shift)], [float(factor or 1.0)]


def _pooled_statistics(norm: nn.BatchNorm2d, channels: int) -> tuple[list[float], list[float]] | None:
    """Per channel, from the running statistics of (channel, row in the patch, column in the patch)."""
    assert norm.running_mean is not None and norm.running_var is not None
    means = norm.running_mean.double().reshape(channels, -1)
    variances = norm.running_var.double().reshape(channels, -1)
    if not means.any() and bool((variances == 1).all()):
        return None  # never trained
    pooled = variances.mean(1) + means.var(1, unbiased=False)
    return means.mean(1).tolist(), torch.rsqrt(pooled + norm.eps).tolist()
