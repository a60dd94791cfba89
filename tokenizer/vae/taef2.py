"""TAEF2's architecture: diffusers' AutoencoderTiny with normalized mid-blocks, which diffusers cannot express.

Published by madebyollin/taesd (MIT), distilled from FLUX.2's autoencoder. In the three blocks at the lowest resolution
of each half, a 1×1 bottleneck with group normalization precedes the convolutions: the only place where a cell
depends on the whole image.
"""

from __future__ import annotations

import torch
from diffusers import AutoencoderTiny
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d_blocks import AutoencoderTinyBlock
from torch import nn


class AutoencoderTinyMidNorm(AutoencoderTiny):
    """An AutoencoderTiny, factor 8, images in [-1, 1], whose mid-blocks see the whole image.

    Args:
        latent_channels: C.
    """

    @register_to_config
    def __init__(self, latent_channels: int = 32) -> None:
        super().__init__(latent_channels=latent_channels)
        width = 64
        for index in (11, 12, 13):  # the encoder's last three blocks, before the convolution to the latents
            self.encoder.layers[index] = _MidNormBlock(width)
        for index in (2, 3, 4):  # the decoder's first three, after the convolution from the latents and its ReLU
            self.decoder.layers[index] = _MidNormBlock(width)


class _MidNormBlock(AutoencoderTinyBlock):
    """A block of AutoencoderTiny after a normalized bottleneck."""

    def __init__(self, width: int) -> None:
        super().__init__(width, width, "relu")
        self.pool = nn.Sequential(
            nn.Conv2d(width, 4 * width, 1, bias=False),
            nn.GroupNorm(4, 4 * width),
            nn.ReLU(),
            nn.Conv2d(4 * width, width, 1, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, width, h, w) to the same."""
        return super().forward(x + self.pool(x))
