"""A continuous VAE with one interface: images in [-1, 1] to normalized latents and back.

Shapes: B images of H × W pixels, C latent channels, h × w the latent's grid, H = factor · h.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, cast

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from ..foundation.bounds import check_number
from ..foundation.errors import CodaError
from ..foundation.strict_loading import StrictModel
from .autoencoders import SPECS, Autoencoder, AutoencoderSpec, from_config, to_config
from .tiling import check_tiles, in_tiles

_BEYOND_RANGE = 0.01  # how far images may exceed [-1, 1]: rounding in bfloat16 is 0.008


class ContinuousVAE(StrictModel):
    """One of diffusers' autoencoders, with normalized latents and images in [-1, 1].

    Args:
        architecture: The autoencoder, or its config as `to_config` gives it (this is what the saved config holds).
        shift: One number or C; None if unknown.
        scale: One number or C; None if unknown. Normalized latents are `(z - shift) * scale`.
        image_range: Range of the autoencoder's own images: "-1,1" or "0,1".

    Raises:
        CodaError: If the config is not one of an autoencoder that can be adapted.
    """

    @register_to_config
    def __init__(
        self,
        architecture: Autoencoder | Mapping[str, Any],
        shift: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        image_range: str = "-1,1",
    ) -> None:
        super().__init__()
        given = isinstance(architecture, nn.Module)
        config = to_config(architecture) if given else architecture
        self.autoencoder: Autoencoder = architecture if given else from_config(config)
        self.register_to_config(architecture=dict(config))
        self._tiles: tuple[int, int] | None = None  # tile and overlap in pixels, if images are tiled
        self._check_config()

    @property
    def spec(self) -> AutoencoderSpec:
        """Properties of the autoencoder's class."""
        return SPECS[type(self.autoencoder).__name__]

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one axis."""
        return self.spec.factor(self.autoencoder.config)

    @property
    def latent_channels(self) -> int:
        """C."""
        return self.autoencoder.config[self.spec.latent_channels]

    @property
    def is_unnormalized(self) -> bool:
        """Whether shift and scale are unknown and latents therefore not normalized; see `measure_normalization`."""
        return self.config.scale is None

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the decoder's last layer (for the adaptive weight of an adversarial loss)."""
        weights = [m.weight for m in self.autoencoder.decoder.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        return weights[-1]

    def encode(
        self,
        images: torch.Tensor,
        sample: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        check: bool = True,
    ) -> torch.Tensor:
        """Encode images (B, 3, H, W) to normalized latents (B, C, h, w).

        Args:
            images: Floating point in [-1, 1]; H and W are multiples of `factor`.
            sample: Draw from the posterior instead of taking its mode, if the VAE has one.
            generator: Source of the draw; a list holds one per image.
            check: Check the range of the images, which waits for the accelerator.

        Raises:
            CodaError: If shape, type or range of the images is wrong.
        """
        mean, logvar = self.encode_moments(images, check)
        if sample and logvar is not None:
            noise = randn_tensor(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            mean = mean + torch.exp(0.5 * logvar) * noise
        return self.normalize(mean)

    def encode_moments(self, images: torch.Tensor, check: bool = True) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mean and log-variance (clamped to [-30, 20]) of the posterior, both (B, C, h, w) and not normalized.

        The log-variance is None if the autoencoder has no posterior.
        """
        self._check_images(images, check)
        if self.config.image_range == "0,1":
            images = (images + 1) / 2
        images = images.to(self.dtype)
        if self._tiles is None:
            moments = self._moments(images)
        else:
            moments = in_tiles(self._moments, images, *self._tiles, Fraction(1, self.factor))
        mean, logvar = moments.split([self.latent_channels, moments.shape[1] - self.latent_channels], dim=1)
        return mean, logvar if logvar.shape[1] else None

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode normalized latents (B, C, h, w) to images (B, 3, H, W), about [-1, 1] and not clamped."""
        if latents.shape[0] == 0:  # not `len`, which would fix the batch of an exported graph
            raise CodaError("there are no latents to decode: the batch is empty")
        z = self.denormalize(latents.to(self.dtype))
        if self._tiles is None:
            images = self._images(z)
        else:
            tile, overlap = (pixels // self.factor for pixels in self._tiles)
            images = in_tiles(self._images, z, tile, overlap, Fraction(self.factor))
        return images * 2 - 1 if self.config.image_range == "0,1" else images

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode and decode images, (B, 3, H, W) to the same."""
        return self.decode(self.encode(images))

    def enable_tiling(self, tile: int = 512, overlap: int = 64) -> None:
        """Encode and decode large images in overlapping tiles, see `CodaTokenizer.enable_tiling`."""
        check_tiles(tile, overlap, self.factor)
        self._tiles = (tile, overlap)

    def disable_tiling(self) -> None:
        """Encode and decode images whole."""
        self._tiles = None

    def normalize(self, z: torch.Tensor) -> torch.Tensor:
        """Normalize the autoencoder's latents: `(z - shift) * scale`."""
        if self.is_unnormalized:
            return z
        return (z - self._per_channel("shift", z)) * self._per_channel("scale", z)

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalize`."""
        if self.is_unnormalized:
            return latents
        return latents / self._per_channel("scale", latents) + self._per_channel("shift", latents)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load what `save_pretrained` wrote, frozen and in evaluation mode."""
        return super().from_pretrained(pretrained_model_name_or_path, **kwargs).requires_grad_(False)

    def check_savable(self) -> None:
        """Refuse to save a LoRA that is not merged."""
        if any(".lora_A." in name for name, _ in self.named_parameters()):
            raise CodaError("a VAE is saved with its LoRA merged: call merge_lora first")

    def _per_channel(self, key: str, like: torch.Tensor) -> torch.Tensor:
        """Shift or scale from the config, (1, C or 1, 1, 1)."""
        return torch.tensor(self.config[key], device=like.device, dtype=like.dtype).reshape(1, -1, 1, 1)

    def _moments(self, images: torch.Tensor) -> torch.Tensor:
        """Mean and, if there is one, log-variance (B, C or 2 C, h, w) of images in the autoencoder's own range."""
        encoded = self.autoencoder.encode(images, return_dict=False)[0]
        if isinstance(encoded, DiagonalGaussianDistribution):
            return torch.cat([encoded.mean, encoded.logvar], dim=1)
        return cast(torch.Tensor, encoded)

    def _images(self, z: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.autoencoder.decode(z, return_dict=False)[0])

    def _check_images(self, images: torch.Tensor, check: bool) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise CodaError(f"images have shape {tuple(images.shape)}, expected (B, 3, H, W)")
        height, width = images.shape[-2:]
        fixed = self.spec.fixed_size(self.autoencoder.config) if self.spec.fixed_size else None
        if fixed is not None and (height, width) != (fixed, fixed):
            raise CodaError(f"images are {height}x{width}; this VAE takes {fixed}x{fixed} alone")
        if height % self.factor or width % self.factor or not height or not width:
            raise CodaError(f"images are {height}x{width}; this VAE takes multiples of {self.factor}")
        if images.shape[0] == 0:
            raise CodaError("there are no images to encode: the batch is empty")
        if not images.is_floating_point():
            raise CodaError(f"images are {str(images.dtype).removeprefix('torch.')}, expected float in [-1, 1]")
        if not check or torch.compiler.is_compiling():  # a graph cannot depend on its data
            return
        low, high = torch.stack(images.detach().aminmax()).tolist()
        if not -1 - _BEYOND_RANGE <= low <= high <= 1 + _BEYOND_RANGE:  # false for NaN, too
            raise CodaError(f"images range from {low:g} to {high:g}, expected [-1, 1]")

    def _check_config(self) -> None:
        channels = self.autoencoder.config.get("in_channels") or self.autoencoder.config.get("num_channels")
        if channels != 3:
            raise CodaError(f"the {type(self.autoencoder).__name__} takes {channels} color channels, not 3")
        if self.config.image_range not in ("-1,1", "0,1"):
            raise CodaError(f"image_range is {self.config.image_range!r}; expected '-1,1' or '0,1'")
        if (self.config.shift is None) != (self.config.scale is None):
            raise CodaError("shift and scale must be given together or not at all")
        for key in ("shift", "scale"):
            values = self.config[key]
            if values is None:
                continue
            if not isinstance(values, list | tuple) or len(values) not in (1, self.latent_channels):
                given = f"{len(values)} numbers" if isinstance(values, list | tuple) else repr(values)
                raise CodaError(f"{key} is {given}; expected a list of 1 or {self.latent_channels}")
            for value in values:
                check_number(key, value, positive=key == "scale")


@torch.no_grad()
def measure_normalization(vae: ContinuousVAE, batches: Iterable[torch.Tensor]) -> ContinuousVAE:
    """Measure shift and scale of a VAE's latents on images.

    The shift is each channel's mean. The scale is the same for all channels: the inverse of their common standard
    deviation about those means. This keeps the proportions of distances between latents; dividing each channel by its
    own deviation would make a channel that carries almost nothing cost as many codes as any other.

    Args:
        vae: Its own shift and scale, if it has any, are ignored.
        batches: Images (B, 3, H, W) in [-1, 1].

    Returns:
        A VAE with the measured shift and scale, which shares its weights with `vae`.

    Raises:
        CodaError: If there are no images, or their latents are not finite.
    """
    count, total, squares = 0, torch.zeros(vae.latent_channels).double(), torch.zeros(vae.latent_channels).double()
    for images in batches:
        z = vae.encode_moments(images.to(vae.device))[0].double().cpu().movedim(1, 0).flatten(1)  # (C, B·h·w)
        count, total, squares = count + z.shape[1], total + z.sum(1), squares + z.square().sum(1)
    if count == 0:
        raise CodaError("there are no images to measure the latents on")
    mean = total / count
    variance = (squares / count - mean.square()).mean().clamp(min=1e-12)
    if not bool(variance.isfinite()):
        raise CodaError("the VAE's latents hold NaN or infinite values: its weights are damaged")
    measured = copy.copy(vae)  # its own config, the same modules
    measured.register_to_config(shift=mean.tolist(), scale=[float(variance.rsqrt())])
    return measured
