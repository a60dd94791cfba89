"""From images through codes and back as one module, and where its training starts.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w); codes (B, T).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..foundation.progress import progress
from ..foundation.seeding import step_generator
from ..images import ImageSource, image_batches, to_unit
from ..quantizer.kmeans import initialize_nearest_neighbor, residual_kmeans
from ..quantizer.residual_quantizer import ResidualQuantizer
from ..vae.continuous_vae import ContinuousVAE, measure_normalization
from .losses import adaptive_weight

_STATISTICS_IMAGES = 256


class Passed(NamedTuple):
    """reconstructions: (B, 3, H, W), not clamped. codes: (B, T). The losses: scalars."""

    reconstructions: torch.Tensor
    codes: torch.Tensor
    quantization_loss: torch.Tensor
    entropy_loss: torch.Tensor


class ThroughTheCodes(nn.Module):
    """Encode, quantize and decode as one module, so that all gradients are averaged over processes."""

    def __init__(self, vae: ContinuousVAE, quantizer: ResidualQuantizer) -> None:
        super().__init__()
        self.vae, self.quantizer = vae, quantizer
        weight = vae.last_layer
        self._last = [module for module in vae.modules() if getattr(module, "weight", None) is weight]
        self._seen: tuple[torch.Tensor, torch.Tensor] | None = None
        self._last[0].register_forward_hook(self._remember)

    def forward(self, images: torch.Tensor) -> Passed:
        """Encode, quantize, decode."""
        latents = self.vae.encode(images)
        with torch.autocast(images.device.type, enabled=False):  # near ties need float32's bits
            out = self.quantizer(latents.float())
        reconstructions = self.vae.decode(out.quantized)
        return Passed(reconstructions, out.codes, out.quantization_loss, out.entropy_loss)

    def adaptive_weight(self, reconstruction: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
        """VQGAN's weight of the adversarial loss, at the decoder's last layer, of the newest forward pass."""
        assert self._seen is not None, "there was no forward pass"
        given, gave = self._seen
        gradients = [torch.autograd.grad(loss, gave, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
        return adaptive_weight(self._last[0], given, gradients[0], gradients[1])

    def _remember(self, _: nn.Module, given: tuple[torch.Tensor, ...], gave: torch.Tensor) -> None:
        self._seen = (given[0], gave) if gave.requires_grad else None


@torch.no_grad()
def initialize_from_data(
    vae: ContinuousVAE,
    quantizer: ResidualQuantizer,
    source: ImageSource,
    size: tuple[int, int],
    kmeans_images: int,
    batch_size: int,
    seed: int,
    workers: int = 0,
    strict: bool = False,
) -> ContinuousVAE:
    """Measure the latents where nobody has, fit the codebook, set the quantizer to retrieve the nearest code.

    Args:
        vae: On the device that is to do the work.
        quantizer: Changed in place.
        source: Images, of which the seed draws some.
        size: Height and width in pixels.
        kmeans_images: Images for the codebook.
        batch_size: Images at a time.
        seed: Of every random choice.
        workers: Processes that load images.
        strict: Stop at the first image that cannot be read.

    Returns:
        `vae`, with its normalisation known.
    """
    count = max(kmeans_images, _STATISTICS_IMAGES if vae.is_unnormalized else 0)
    order = torch.randperm(len(source), generator=step_generator(seed, 0, "k-means images"))[:count].tolist()

    def images(title: str, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        batches = image_batches(source, size, batch_size, indices, workers=workers, strict=strict)
        with progress(title, total=len(indices), unit="images") as bar:
            for batch in batches:
                yield to_unit(batch.pixels.to(vae.device))
                bar.advance(len(batch))

    if vae.is_unnormalized:
        vae = measure_normalization(vae, images("Measuring the latents", order[:_STATISTICS_IMAGES]))
    latents = [vae.encode(batch) for batch in images("Encoding images for the codebook", order[:kmeans_images])]
    layout = quantizer.layout
    initialize_nearest_neighbor(
        quantizer, residual_kmeans(torch.cat(latents), layout.sides, layout.codebook_size, seed=seed)
    )
    return vae
