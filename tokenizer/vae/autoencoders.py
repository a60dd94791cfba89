"""The autoencoders that can be adapted, diffusers' and two of our own, and how each describes its latents.

An autoencoder can be adapted if it takes an RGB image (B, 3, H, W) to a continuous latent (B, C, h, w) and back,
deterministically. `_REFUSED` lists some that do not, and why; classes for video (B, C, T, H, W), audio and molecules
are refused altogether.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import nn

from ..foundation.bounds import check_integer
from ..foundation.errors import CodaError, first_line, shown
from .patch_autoencoder import AutoencoderPatch
from .taef2 import AutoencoderTinyMidNorm

# The layers that the published training adapts (paper, Section 3.4), as suffixes of module names, which peft matches:
# both convolutions of every residual block; in KL16 also those that change the resolution.
_RESNET_CONVOLUTIONS = ("conv1", "conv2")
_KL16_RESAMPLING = ("downsamplers.0.conv", "upsamplers.0.conv")

_REFUSED = {
    "VQModel": "it is already discrete",
    "ConsistencyDecoderVAE": "its decoder is random; use the AutoencoderKL that it was made for",
    "AutoencoderKLTemporalDecoder": "its decoder makes video",
}

_MOST_MODULES = 512  # greatest number of layers, blocks, heads, … that a config may ask for
_LARGEST_INTEGER = 65_536  # greatest of its other integers, such as channels

Autoencoder = Any  # a model of diffusers or of `_OWN`; its attributes depend on the class

_OWN: Mapping[str, type[Autoencoder]] = {cls.__name__: cls for cls in (AutoencoderPatch, AutoencoderTinyMidNorm)}


@dataclass(frozen=True)
class AutoencoderSpec:
    """The differences between classes of autoencoders; each function takes the autoencoder's config.

    Attributes:
        factor: Pixels per latent cell along one axis.
        latent_channels: Key of C in the config.
        lora_targets: Suffixes of the names of modules that get a LoRA.
        image_range: Range of the autoencoder's images, "-1,1" or "0,1".
        fixed_size: Side of the only square images that it takes, if there is only one.
    """

    factor: Callable[[Any], int]
    latent_channels: str = "latent_channels"
    lora_targets: tuple[str, ...] = _RESNET_CONVOLUTIONS
    image_range: str = "-1,1"
    fixed_size: Callable[[Any], int] | None = None


def _halvings(key: str) -> Callable[[Any], int]:
    """A factor of two between consecutive entries of the config's `key`."""
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
    "AutoencoderPatch": AutoencoderSpec(
        lambda config: 2 ** len(config.block_out_channels),
        # All convolutions: the whole network is small.
        lora_targets=("conv1", "conv2", "conv", "conv_in", "conv_out", "linear"),
    ),
    "AutoencoderDC": AutoencoderSpec(
        _halvings("encoder_block_out_channels"),
        # Also what changes the resolution, and the ends: the whole network.
        lora_targets=("conv1", "conv2", "conv_inverted", "conv_point", "conv", "encoder.conv_out", "decoder.conv_in"),
    ),
    "AutoencoderKLHunyuanImage": AutoencoderSpec(lambda config: config.spatial_compression_ratio),
    "AutoencoderKLKVAE": AutoencoderSpec(
        _halvings("ch_mult"),
        latent_channels="z_channels",
        lora_targets=("conv1", "conv2", "downsample.spatial_conv", "upsample.spatial_conv"),
    ),
    # A frozen vision transformer and a decoder trained on its features: only the decoder is adapted.
    "AutoencoderRAE": AutoencoderSpec(
        lambda config: config.patch_size,
        latent_channels="encoder_hidden_size",
        lora_targets=("to_q", "to_k", "to_v", "to_out.0", "dense"),
        image_range="0,1",
        fixed_size=lambda config: config.patch_size * (config.encoder_input_size // config.encoder_patch_size),
    ),
}


def autoencoder_class(name: object, where: object) -> type[Autoencoder]:
    """Look up a class of autoencoders.

    Args:
        name: `_class_name` of a config.
        where: Source of the config, for the message.

    Raises:
        CodaError: If there is no such class, or it cannot be adapted.
    """
    if isinstance(name, str) and name in SPECS:
        found = _OWN.get(name) or getattr(diffusers, name, None)
        if found is not None:
            return found
        raise CodaError(
            f"{where} holds a {shown(name)}, which diffusers {diffusers.__version__} does not have; update it"
        )
    reason = _REFUSED.get(str(name), "it is not a 2-D image autoencoder that coda knows")
    raise CodaError(f"{where} holds a {shown(name)}, which cannot be adapted: {reason} (known: {', '.join(SPECS)})")


def lora_targets(autoencoder: Autoencoder) -> tuple[str, ...]:
    """Suffixes of the names of modules that get a LoRA: as published, 66 modules in KL16 and 48 in FLUX.1's VAE."""
    targets = SPECS[type(autoencoder).__name__].lora_targets
    is_kl16 = "AttnDownEncoderBlock2D" in autoencoder.config.get("down_block_types", ())
    return targets + _KL16_RESAMPLING if is_kl16 else targets


def to_config(autoencoder: Autoencoder) -> dict[str, Any]:
    """Config of an autoencoder, as JSON, for `from_config`."""
    parameters = inspect.signature(type(autoencoder).__init__).parameters
    config = {key: value for key, value in autoencoder.config.items() if key in parameters}
    return {"_class_name": type(autoencoder).__name__, **config}


def from_config(config: Mapping[str, Any]) -> Autoencoder:
    """Make an autoencoder with random weights from what `to_config` gave.

    Raises:
        CodaError: If the config is damaged, or asks for an absurdly large model.
    """
    if not isinstance(config, Mapping):
        raise CodaError(f"the architecture is {shown(repr(config))[:60]}, expected a JSON object")
    arguments = dict(config)
    cls = autoencoder_class(arguments.pop("_class_name", None), "the config")
    check_architecture(arguments, cls.__name__)
    try:
        return cls(**arguments)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # diffusers checks few of its arguments
        raise CodaError(f"the config of the {cls.__name__} is damaged: {first_line(error)}") from error


def check_architecture(config: Mapping[str, Any], where: object) -> None:
    """Check the numbers in an autoencoder's config before a model is made from it.

    Raises:
        CodaError: If one of them is out of bounds.
    """
    for key, value in config.items():
        if key.startswith("_") or key in ("latents_mean", "latents_std"):
            continue
        counts = any(word in key for word in ("num_", "layers", "blocks", "depth"))
        _check_integers(f"{where}: {shown(key)}", value, _MOST_MODULES if counts else _LARGEST_INTEGER)


def _check_integers(name: str, value: object, high: int) -> None:
    """Check integers in a value and in its nested lists, none of which may be longer than `_MOST_MODULES`."""
    if isinstance(value, list | tuple):
        check_integer(f"{name}: length", len(value), 0, _MOST_MODULES)
        for item in value:
            _check_integers(name, item, high)
    elif isinstance(value, int) and not isinstance(value, bool):
        check_integer(name, value, 0, high)


def published_normalization(autoencoder: Autoencoder) -> tuple[list[float], list[float]] | None:
    """Shift and scale of an autoencoder's latents according to its config or weights, each one number or C.

    Normalized latents are `(z - shift) * scale`. A scaling factor of 1 without a shift is the default of classes that
    know neither, and counts as unknown.

    - `latents_mean` and `latents_std` in a config are per channel, and multiplied by `scaling_factor`.
    - AutoencoderKLFlux2 has BatchNorm statistics of latents folded 2×2 into channels, as its pipeline uses them. The
      latents here are not folded (C channels at factor 8), so the statistics of a channel's four positions are pooled:
      mean of the means, mean of the variances plus variance of the means.
    - AutoencoderRAE normalizes inside `encode` and `decode`.

    Returns:
        (shift, scale), or None if both are unknown.
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
    """Shift and scale per channel, from running statistics of (channel, row in the patch, column in the patch)."""
    assert norm.running_mean is not None and norm.running_var is not None
    means = norm.running_mean.double().reshape(channels, -1)
    variances = norm.running_var.double().reshape(channels, -1)
    if not means.any() and bool((variances == 1).all()):
        return None  # never trained
    pooled = variances.mean(1) + means.var(1, unbiased=False)
    return means.mean(1).tolist(), torch.rsqrt(pooled + norm.eps).tolist()
