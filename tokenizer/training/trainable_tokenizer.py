"""VAE and quantizer as one trainable module, and its initialization from data.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w); codes (B, T).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from ..foundation.errors import CodaError
from ..foundation.progress import progress
from ..foundation.seeding import step_generator
from ..images import ImageSource, image_batches, to_unit
from ..quantizer.kmeans import initialize_nearest_neighbor, residual_kmeans
from ..quantizer.residual_quantizer import ResidualQuantizer
from ..settings import AdaptSettings, RunOptions
from ..vae.continuous_vae import ContinuousVAE, measure_normalization
from .losses import adaptive_weight

_STATISTICS_IMAGES = 256


class ForwardOutput(NamedTuple):
    """reconstructions: (B, 3, H, W), not clamped. codes: (B, T). The losses: scalars."""

    reconstructions: torch.Tensor
    codes: torch.Tensor
    quantization_loss: torch.Tensor
    entropy_loss: torch.Tensor


class TrainableTokenizer(nn.Module):
    """Encode, quantize and decode as one module, so that processes average all gradients."""

    def __init__(self, vae: ContinuousVAE, quantizer: ResidualQuantizer) -> None:
        super().__init__()
        self.vae, self.quantizer = vae, quantizer
        weight = vae.last_layer
        self._last = [module for module in vae.modules() if getattr(module, "weight", None) is weight]
        self._last_call: tuple[torch.Tensor, torch.Tensor] | None = None
        self._last[0].register_forward_hook(self._remember)

    def forward(self, images: torch.Tensor) -> ForwardOutput:
        """Encode, quantize, decode.

        Raises:
            CodaError: If latents are NaN or infinite.
        """
        latents = self.vae.encode(images)
        if not latents.isfinite().all():  # those of the untrained VAE were finite
            raise CodaError("latents are NaN or infinite: the training has diverged; a lower lr may help")
        out = self.quantizer(latents)
        reconstructions = self.vae.decode(out.quantized)
        return ForwardOutput(reconstructions, out.codes, out.quantization_loss, out.entropy_loss)

    def adaptive_weight(self, reconstruction: torch.Tensor, adversarial: torch.Tensor) -> torch.Tensor:
        """VQGAN's weight of the adversarial loss, at the decoder's last layer, for the latest forward pass."""
        assert self._last_call is not None, "there was no forward pass"
        given, gave = self._last_call
        gradients = [torch.autograd.grad(loss, gave, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
        return adaptive_weight(self._last[0], given, gradients[0], gradients[1])

    @torch.compiler.disable  # these tensors must not be a compiled graph's own
    def _remember(self, _: nn.Module, given: tuple[torch.Tensor, ...], gave: torch.Tensor) -> None:
        self._last_call = (given[0], gave) if gave.requires_grad else None


@torch.no_grad()
def initialize_from_data(
    vae: ContinuousVAE, quantizer: ResidualQuantizer, source: ImageSource, settings: AdaptSettings, run: RunOptions
) -> ContinuousVAE:
    """Measure the latents if they are unnormalized, fit the codebook, set `quantizer` to nearest-neighbor retrieval.

    Args:
        vae: On the device that does the work.
        quantizer: Changed in place.
        source: Images; `settings.seed` draws `settings.kmeans_images` of them.
        settings: With size and kmeans_images known.
        run: Workers and strictness.

    Returns:
        `vae`, normalized.

    Raises:
        CodaError: If latents are NaN or infinite, or there are fewer vectors than codes.
    """
    assert settings.kmeans_images is not None and settings.size is not None
    size, count = settings.size, max(settings.kmeans_images, _STATISTICS_IMAGES if vae.is_unnormalized else 0)
    generator = step_generator(settings.seed, 0, "k-means images")
    order = torch.randperm(len(source), generator=generator)[:count].tolist()

    def images(title: str, indices: Sequence[int]) -> Iterator[torch.Tensor]:
        batches = image_batches(source, size, settings.batch_size, indices, workers=run.workers, strict=run.strict)
        with progress(title, total=len(indices), unit="images") as bar:
            for batch in batches:
                yield to_unit(batch.pixels.to(vae.device))
                bar.advance(len(batch))

    if vae.is_unnormalized:
        vae = measure_normalization(vae, images("Measuring the latents", order[:_STATISTICS_IMAGES]))
    latents = []
    for batch in images("Encoding images for the codebook", order[: settings.kmeans_images]):
        latents.append(vae.encode(batch))
        if not latents[-1].isfinite().all():
            raise CodaError("some of the VAE's latents are NaN or infinite; its weights or normalization are damaged")
    layout = quantizer.layout
    codebook = residual_kmeans(torch.cat(latents), layout.sides, layout.codebook_size, seed=settings.seed)
    initialize_nearest_neighbor(quantizer, codebook)
    return vae
