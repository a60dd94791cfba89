"""An AutoencoderDC that starts as the linear optimum: the principal components of its patches.

The best linear autoencoder of f × f patches projects them on their first C principal components. Here an AutoencoderDC
holds exactly that before its first step: its pixel-(un)shuffle shortcuts move patches into channels and back, its first
convolution after the encoder's last block projects, the decoder's first convolution reconstructs, and every other
branch adds zero. Training learns the rest, at half resolution and below.

Shapes: images (B, 3, H, W) in [-1, 1]; patches of D = 3·f² values; latents (B, C, h, w) with H = f · h.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from diffusers import AutoencoderDC
from diffusers.models.autoencoders.autoencoder_dc import DCDownBlock2d, DCUpBlock2d, ResBlock
from torch import nn

from ..foundation.errors import CodaError

_SMALLEST_WIDTH = 16  # 12 channels carry the image at half resolution, one a constant
# The decoder's last normalization divides by the norm over channels. One channel this large makes that linear:
# y · A / √(A² + |y|²) = y up to rounding.
_CONSTANT = 1000.0
_OFFSET = 2.0  # keeps pixels above the zero of the decoder's last activation


def linear_start_autoencoder(latent_channels: int, width: int, halvings: int) -> AutoencoderDC:
    """An AutoencoderDC, with random weights, that `initialize_from_principal_components` can start.

    Its channels quadruple where the resolution halves, so that its shortcuts copy every value once.

    Args:
        latent_channels: C, at most D.
        width: Channels at half resolution: a multiple of 4, at least 16.
        halvings: log2 of the factor.

    Raises:
        CodaError: If the width or number of channels is not possible.
    """
    values = 3 * 4**halvings
    if latent_channels > values:
        raise CodaError(f"latent_channels {latent_channels} is more than the {values} values of a patch")
    if width % 4 or width < _SMALLEST_WIDTH:
        raise CodaError(f"width {width} is not a multiple of 4 of at least {_SMALLEST_WIDTH}")
    channels = (width, *(width * 4**i for i in range(halvings)))
    layers = (0,) + (1,) * halvings  # nothing at full resolution
    return AutoencoderDC(
        latent_channels=latent_channels,
        encoder_block_out_channels=channels,
        decoder_block_out_channels=channels,
        encoder_layers_per_block=layers,
        decoder_layers_per_block=layers,
        encoder_qkv_multiscales=((),) * (halvings + 1),
        decoder_qkv_multiscales=((),) * (halvings + 1),
        encoder_out_shortcut=False,
        decoder_in_shortcut=False,
    )


@torch.no_grad()
def principal_components(batches: Iterable[torch.Tensor], halvings: int, count: int) -> tuple[torch.Tensor, ...]:
    """First principal components of patches, whose values are in the order of repeated 2×2 pixel unshuffling.

    Args:
        batches: Images (B, 3, H, W) in [-1, 1].
        halvings: log2 of the side of a patch.
        count: Number of components, C.

    Returns:
        Mean (D), components (D, C) of length 1, and the root mean square of their C standard deviations, a scalar.
    """
    size = 3 * 4**halvings
    number, total, products = 0, torch.zeros(size).double(), torch.zeros(size, size).double()
    for images in batches:
        patches = images.double().cpu()
        for _ in range(halvings):
            patches = F.pixel_unshuffle(patches, 2)
        patches = patches.movedim(1, -1).reshape(-1, size)
        number, total, products = number + len(patches), total + patches.sum(0), products + patches.T @ patches
    if number == 0:
        raise CodaError("there are no images to compute principal components of")
    mean = total / number
    variances, vectors = torch.linalg.eigh(products / number - torch.outer(mean, mean))
    vectors = vectors[:, -count:].flip(1)
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # eigh leaves the sign open
    return mean.float(), vectors.float(), variances[-count:].mean().clamp(min=1e-12).sqrt().float()


@torch.no_grad()
def initialize_from_principal_components(autoencoder: AutoencoderDC, batches: Iterable[torch.Tensor]) -> None:
    """Make an autoencoder of `linear_start_autoencoder` reconstruct images from the components of their patches.

    Latents have mean 0 and, over all channels, variance 1. One scale for all channels keeps distances: an error in the
    latent is as large in pixels, whatever its channel.

    Args:
        autoencoder: Changed in place.
        batches: Images (B, 3, H, W) in [-1, 1]; some thousands are enough.
    """
    encoder, decoder = autoencoder.encoder, autoencoder.decoder
    halvings = len(autoencoder.config.encoder_block_out_channels) - 1
    mean, components, scale = principal_components(batches, halvings, autoencoder.config.latent_channels)
    values = len(mean)
    for module in autoencoder.modules():
        if isinstance(module, ResBlock):
            nn.init.zeros_(module.norm.weight)  # its branch adds zero
        elif isinstance(module, DCDownBlock2d | DCUpBlock2d) and module.shortcut:
            nn.init.zeros_(module.conv.weight)
            nn.init.zeros_(module.conv.bias)

    _copy_channels(encoder.conv_in.conv, 3)
    _set_center(encoder.conv_out, components.T / scale, -(components.T @ mean) / scale)
    decoder.conv_in.weight[:values] = 0
    decoder.conv_in.weight[:values, :, 1, 1] = components * scale
    decoder.conv_in.bias[:values] = mean

    last = decoder.conv_out.conv
    # The last channel at half resolution is the constant that makes the last normalization linear, and nothing else.
    decoder.conv_in.weight[-(4 ** (halvings - 1)) :] = 0
    decoder.conv_in.bias[-(4 ** (halvings - 1)) :] = 0
    decoder.up_blocks[1][-1].norm.bias[-1] = _CONSTANT
    decoder.norm_out.weight.fill_(_CONSTANT / math.sqrt(last.in_channels))
    decoder.norm_out.weight[-1] = 0
    decoder.norm_out.bias[:12] = _OFFSET
    _set_center(last, torch.eye(12, last.in_channels), torch.full((12,), -_OFFSET))


def _copy_channels(convolution: nn.Conv2d, count: int) -> None:
    """Let the first `count` outputs copy the inputs."""
    assert convolution.bias is not None
    convolution.weight[:count] = 0
    convolution.weight[:count, :, 1, 1] = torch.eye(count, convolution.in_channels)
    convolution.bias[:count] = 0


def _set_center(convolution: nn.Conv2d, matrix: torch.Tensor, bias: torch.Tensor) -> None:
    """Set a 3×3 convolution to a matrix (outputs, the first inputs) at its center, zero elsewhere."""
    assert convolution.bias is not None
    nn.init.zeros_(convolution.weight)
    convolution.weight[:, : matrix.shape[1], 1, 1] = matrix
    convolution.bias.copy_(bias)
