"""A small autoencoder that starts as the linear optimum, the principal components of patches, and learns the rest.

The best linear autoencoder of f × f patches projects them on their first C principal components. Here that is one path
of the encoder and of the decoder: a 1×1 convolution between latents and pixels folded into channels. Beside it runs a
residual network at half resolution and below, whose last convolution is zero at the start. So the first step already
has the quality of the linear optimum, and every layer behind the last gets its gradient from the second step on.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w) with H = f · h.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput, EncoderOutput
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from ..foundation.errors import CodaError

_GROUP = 16  # channels of a group of the normalization


class AutoencoderPatch(ModelMixin, ConfigMixin):
    """A deterministic autoencoder: a linear map of patches plus a residual network.

    Args:
        in_channels: Color channels, 3.
        latent_channels: C, at most the 3·f² values of a patch.
        block_out_channels: Widths at 1/2, 1/4, … of the images' size; the factor f is 2 to their number.
        layers_per_block: Residual blocks at each of those sizes, in the encoder and in the decoder.
    """

    @register_to_config
    def __init__(
        self,
        in_channels: int = 3,
        latent_channels: int = 16,
        block_out_channels: Sequence[int] = (32, 64, 128),
        layers_per_block: Sequence[int] = (1, 1, 1),
    ) -> None:
        super().__init__()
        halvings = len(block_out_channels)
        if not halvings:
            raise CodaError("block_out_channels is empty: expected one width per halving of the size")
        if len(layers_per_block) != halvings:
            given = ",".join(map(str, layers_per_block))
            raise CodaError(f"layers_per_block {given}: expected {halvings} numbers, one per halving of the size")
        values = in_channels * 4**halvings
        if not 0 < latent_channels <= values:
            raise CodaError(f"latent_channels {latent_channels}: expected 1 to the {values} values of a patch")
        for width in block_out_channels:
            if width % _GROUP:
                raise CodaError(f"a width of {width} is not a multiple of {_GROUP}")
        self.encoder = _Encoder(in_channels, latent_channels, block_out_channels, layers_per_block)
        self.decoder = _Decoder(in_channels, latent_channels, block_out_channels, layers_per_block)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> EncoderOutput | tuple[torch.Tensor]:
        """Latents of images."""
        latent = self.encoder(x)
        return EncoderOutput(latent=latent) if return_dict else (latent,)

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Images of latents, not clamped."""
        sample = self.decoder(z)
        return DecoderOutput(sample=sample) if return_dict else (sample,)

    def forward(self, sample: torch.Tensor, return_dict: bool = True) -> DecoderOutput | tuple[torch.Tensor]:
        """Encode and decode images."""
        return self.decode(self.encoder(sample), return_dict)


class _Encoder(nn.Module):
    def __init__(self, colors: int, latent_channels: int, widths: Sequence[int], layers: Sequence[int]) -> None:
        super().__init__()
        self.factor = 2 ** len(widths)
        self.linear = nn.Conv2d(colors * self.factor**2, latent_channels, 1)
        stages: list[nn.Module] = []
        for before, width, count in zip([colors, *widths], widths, layers, strict=False):
            stages += [_Downsample(before, width), *(_Block(width) for _ in range(count))]
        self.stages = nn.Sequential(*stages)
        self.conv_norm_out = nn.GroupNorm(widths[-1] // _GROUP, widths[-1])
        self.conv_out = _zero(nn.Conv2d(widths[-1], latent_channels, 3, padding=1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        learned = self.conv_out(F.silu(self.conv_norm_out(self.stages(images))))
        return self.linear(F.pixel_unshuffle(images, self.factor)) + learned


class _Decoder(nn.Module):
    def __init__(self, colors: int, latent_channels: int, widths: Sequence[int], layers: Sequence[int]) -> None:
        super().__init__()
        self.factor = 2 ** len(widths)
        self.linear = nn.Conv2d(latent_channels, colors * self.factor**2, 1)
        self.conv_in = nn.Conv2d(latent_channels, widths[-1], 3, padding=1)
        stages: list[nn.Module] = []
        for width, after, count in zip(widths[::-1], [*widths[-2::-1], None], layers[::-1], strict=True):
            stages += [_Block(width) for _ in range(count)]
            if after is not None:
                stages.append(_Upsample(width, after))
        self.stages = nn.Sequential(*stages)
        self.conv_norm_out = nn.GroupNorm(widths[0] // _GROUP, widths[0])
        self.conv_out = _zero(nn.Conv2d(widths[0], 4 * colors, 3, padding=1))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        learned = self.conv_out(F.silu(self.conv_norm_out(self.stages(self.conv_in(z)))))
        return F.pixel_shuffle(self.linear(z), self.factor) + F.pixel_shuffle(learned, 2)


class _Downsample(nn.Module):
    """Fold 2×2 cells into channels, then a convolution: (B, before, H, W) to (B, after, H/2, W/2)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * before, after, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pixel_unshuffle(x, 2))


class _Upsample(nn.Module):
    """A convolution, then channels unfolded into 2×2 cells: (B, before, H, W) to (B, after, 2H, 2W)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, 4 * after, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.conv(x), 2)


class _Block(ResnetBlock2D):
    """A residual block, without a time embedding, that starts as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__(in_channels=width, temb_channels=None, groups=width // _GROUP, eps=1e-6)
        _zero(self.conv2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x, None)


def _zero(convolution: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(convolution.weight)
    assert convolution.bias is not None
    nn.init.zeros_(convolution.bias)
    return convolution


@torch.no_grad()
def principal_components(batches: Iterable[torch.Tensor], factor: int, count: int) -> tuple[torch.Tensor, ...]:
    """First principal components of patches, whose values are in the order of `pixel_unshuffle`.

    Args:
        batches: Images (B, 3, H, W) in [-1, 1].
        factor: Side of a patch.
        count: Number of components, C.

    Returns:
        Mean (D), components (D, C) of length 1, and the root mean square of their C standard deviations, a scalar.
    """
    size = 3 * factor**2
    number, total, products = 0, torch.zeros(size).double(), torch.zeros(size, size).double()
    for images in batches:
        patches = F.pixel_unshuffle(images.double().cpu(), factor).movedim(1, -1).reshape(-1, size)
        number, total, products = number + len(patches), total + patches.sum(0), products + patches.T @ patches
    if number == 0:
        raise CodaError("there are no images to compute principal components of")
    mean = total / number
    variances, vectors = torch.linalg.eigh(products / number - torch.outer(mean, mean))
    vectors = vectors[:, -count:].flip(1)
    vectors = vectors * vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()  # eigh leaves the sign open
    return mean.float(), vectors.float(), variances[-count:].mean().clamp(min=1e-12).sqrt().float()


@torch.no_grad()
def initialize_from_principal_components(autoencoder: AutoencoderPatch, batches: Iterable[torch.Tensor]) -> None:
    """Make a new autoencoder reconstruct images from the components of their patches.

    Latents have mean 0 and, over all channels, variance 1. One scale for all channels keeps distances: an error in the
    latent is as large in pixels, whatever its channel.

    Args:
        autoencoder: Changed in place.
        batches: Images (B, 3, H, W) in [-1, 1]; some thousands are enough.
    """
    to_latents, to_patches = autoencoder.encoder.linear, autoencoder.decoder.linear
    mean, components, scale = principal_components(batches, autoencoder.encoder.factor, to_latents.out_channels)
    to_latents.weight.copy_((components.T / scale)[:, :, None, None])
    assert to_latents.bias is not None and to_patches.bias is not None
    to_latents.bias.copy_(-(components.T @ mean) / scale)
    to_patches.weight.copy_((components * scale)[:, :, None, None])
    to_patches.bias.copy_(mean)
