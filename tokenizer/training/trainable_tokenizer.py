"""VAE and quantizer as one trainable module, and its initialization from data.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w); codes (B, T).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from ..foundation.distributed import gather_over_processes, mean_over_processes
from ..foundation.errors import CodaError
from ..foundation.launcher import rank_and_world_size
from ..foundation.progress import progress
from ..foundation.seeding import step_generator
from ..images import ImageSource, image_batches, to_unit
from ..quantizer.kmeans import initialize_nearest_neighbor, residual_kmeans
from ..quantizer.perturbation import perturb_codes
from ..quantizer.residual_quantizer import ResidualQuantizer
from ..settings import AdaptSettings, RunOptions
from ..vae.continuous_vae import ContinuousVAE, measure_normalization
from ..vae.sensitivity import METRIC_IMAGES, decoder_metric
from .losses import adaptive_weight
from .optimization import OptimizerWithEMA

_STATISTICS_IMAGES = 256


class ForwardOutput(NamedTuple):
    """reconstructions: (B, 3, H, W), not clamped. codes: (B, T). The losses: scalars."""

    reconstructions: torch.Tensor
    codes: torch.Tensor
    quantization_loss: torch.Tensor
    entropy_loss: torch.Tensor

    def figures(self) -> dict[str, float]:
        """Figures for the log: quantization, entropy, and how many different codes occurred. All processes call it."""
        losses = torch.stack([self.quantization_loss, self.entropy_loss]).detach().float()
        quantization, entropy = mean_over_processes(losses).tolist()
        codes = gather_over_processes(self.codes).unique().numel()
        return {"quantization": quantization, "entropy": entropy, "codes": codes}


class TrainableTokenizer(nn.Module):
    """Encode, quantize and decode as one module, so that processes average all gradients.

    Args:
        vae: With its LoRA, if it gets one.
        quantizer: The quantizer.
        perturbed_codes: Share of the codes that the decoder sees replaced, see `perturb_codes`.
    """

    def __init__(self, vae: ContinuousVAE, quantizer: ResidualQuantizer, perturbed_codes: float = 0.0) -> None:
        super().__init__()
        self.vae, self.quantizer, self.perturbed_codes = vae, quantizer, perturbed_codes
        weight = vae.last_layer
        self._last = [module for module in vae.modules() if getattr(module, "weight", None) is weight]
        self._last_call: tuple[torch.Tensor, torch.Tensor] | None = None
        self._last[0].register_forward_hook(self._remember)

    def forward(self, images: torch.Tensor, generator: torch.Generator | None = None) -> ForwardOutput:
        """Encode, quantize, decode.

        Args:
            images: Images.
            generator: Source of the perturbation, if codes are perturbed.

        Raises:
            CodaError: If latents are NaN or infinite.
        """
        latents = self.vae.encode(images, check=False)  # of bytes, so within the range
        if not latents.isfinite().all():  # those of the untrained VAE were finite
            raise CodaError("latents are NaN or infinite: the training has diverged; a lower lr may help")
        return self.from_latents(latents, generator)

    def from_latents(self, latents: torch.Tensor, generator: torch.Generator | None = None) -> ForwardOutput:
        """Quantize and decode latents."""
        out = self.quantizer(latents)
        quantized = out.quantized
        if self.perturbed_codes and generator is not None:
            codes = perturb_codes(self.quantizer, out.codes, self.perturbed_codes, generator, rank_and_world_size())
            quantized = quantized + (self.quantizer.decode(codes) - quantized).detach()
        reconstructions = self.vae.decode(quantized)
        return ForwardOutput(reconstructions, out.codes, out.quantization_loss, out.entropy_loss)

    @property
    def normalization(self) -> dict[str, Any]:
        """Shift and scale of the VAE, for checkpoints."""
        return {key: self.vae.config[key] for key in ("shift", "scale")}

    def optimizer(self, settings: AdaptSettings) -> OptimizerWithEMA:
        """An optimizer of what is trainable now."""
        # By default no weight decay: it would pull the quantizer away from its initialization.
        return OptimizerWithEMA(
            self, betas=(0.5, 0.9), ema_decay=settings.ema_decay, weight_decay=settings.weight_decay, decay_all=True,
            max_gradient_norm=settings.max_gradient_norm,
        )  # fmt: skip

    def train_only(self, part: str) -> None:
        """Choose what is trained: the "quantizer" alone, with the "decoder"'s LoRA, or with "all" of the LoRA."""
        for name, parameter in self.vae.autoencoder.named_parameters():
            if ".lora_" in name:
                parameter.requires_grad_(part == "all" or (part == "decoder" and name.startswith("decoder.")))

    @torch.no_grad()
    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstructions of images, as the finished tokenizer makes them."""
        return self.vae.decode(self.quantizer.decode(self.quantizer.encode(self.vae.encode(images))))

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
    vectors, metric, layout = torch.cat(latents), None, quantizer.layout
    if settings.kmeans_metric == "decoder":
        metric = decoder_metric(vae, vectors[:METRIC_IMAGES], settings.seed)
        vectors = torch.einsum("ij,njhw->nihw", metric, vectors)
    codebook = residual_kmeans(vectors, layout.sides, layout.codebook_size, seed=settings.seed)
    initialize_nearest_neighbor(quantizer, codebook, metric=metric)
    return vae
