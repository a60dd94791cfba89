"""The figures of one model of the ablation, measured on the same images for all.

Shapes: images (B, 3, H, W); codes (B, T).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.images import to_uint8, to_unit
from coda.tokenizer.images.psnr_ssim import psnr, ssim
from coda.tokenizer.usage import CodeUsage, effective_rank
from coda.tokenizer.vae.continuous_vae import ContinuousVAE

from ..comparison import extract_features
from ..features.distances import FeatureSet, Statistics, frechet_distance, kernel_distance
from ..features.extractors import FeatureExtractor
from ..image_sets.image_set import ImageSet
from .perturbation import near_codes, perturb_codes
from .rivals import Quantizer

PERTURBED_SHARE = 0.1


@dataclass(frozen=True)
class Figures:
    """Figures of one model; None where a figure does not apply or was not measured.

    Attributes:
        psnr: dB, mean over the images.
        ssim: Mean over the images.
        distance: Fréchet distance of the reconstructions to the originals.
        kid: Kernel distance.
        perturbed: Fréchet distance if 10 % of the codes are replaced by near ones.
        usage: Percentage of the codebook that occurred, all levels together.
        perplexity: exp of the entropy of the codes' frequencies.
        effective_rank: Dimensions that the codebook uses.
        bits: Bits per image, tokens · log2 K.
        images_seen: Images of the initialization and of all steps.
        seconds: Time of initialization and training.
        confidences: Mean of the largest probabilities of an assignment, in falling order.
        level_usage: `usage` of each level.
        level_tokens: Tokens of each level that were measured, per code: below about 10 even a healthy codebook leaves
            codes unused.
    """

    psnr: float
    ssim: float
    distance: float
    kid: float
    perturbed: float | None = None
    usage: float | None = None
    perplexity: float | None = None
    effective_rank: float | None = None
    bits: float | None = None
    images_seen: int | None = None
    seconds: float | None = None
    confidences: list[float] = field(default_factory=list)
    level_usage: list[float] = field(default_factory=list)
    level_tokens: list[float] = field(default_factory=list)


class TestImages:
    """The images to measure on, and the features of the originals.

    Args:
        images: The images.
        extractor: Feature extractor; models are on its device.
        batch_size: Images per batch.
        seed: Seed of perturbed codes and KID's subsets.
    """

    __test__ = False  # not a test of pytest

    def __init__(self, images: ImageSet, extractor: FeatureExtractor, batch_size: int, seed: int) -> None:
        self._images, self._extractor, self._device = images, extractor, extractor.device
        self._batch_size, self._seed = batch_size, seed
        found = extract_features(images, extractor, batch_size, "Features of the originals")
        self.description, self._features = found.description, found.features.pooled
        self._statistics = Statistics.of(self._features)
        self._encoded: tuple[ContinuousVAE, list[torch.Tensor]] | None = None

    @property
    def dimensions(self) -> tuple[int, int]:
        """N and D of the features."""
        return self._features.shape[0], self._features.shape[1]

    @property
    def self_check(self) -> float:
        """Fréchet distance of the originals to themselves: 0 up to rounding."""
        return frechet_distance(self._statistics, self._statistics)

    @torch.no_grad()
    def latents(self, vae: ContinuousVAE) -> list[torch.Tensor]:
        """Latents of all images, batch by batch; kept for the next call if the VAE is frozen."""
        if self._encoded is not None and self._encoded[0] is vae:
            return self._encoded[1]
        found = [vae.encode(to_unit(pixels.to(self._device))) for pixels, _ in self._images.batches(self._batch_size)]
        if not any(weight.requires_grad for weight in vae.parameters()):
            self._encoded = (vae, found)
        return found

    def measure(self, vae: ContinuousVAE) -> Figures:
        """Figures of the VAE itself."""
        return self._measured(vae, lambda latents, _: [latents])

    def measure_codes(self, vae: ContinuousVAE, quantizer: Quantizer, perturbed: bool = True) -> Figures:
        """Figures of a VAE with a quantizer.

        Args:
            vae: Images ⇄ latents.
            quantizer: Latents ⇄ codes.
            perturbed: Whether to measure with perturbed codes, too, which takes twice the time.
        """
        layout, values = quantizer.layout, quantizer.value_table()
        usage, near = CodeUsage(layout), near_codes(values) if perturbed else None

        def quantize(latents: torch.Tensor, numbers: range) -> list[torch.Tensor]:
            codes = quantizer.encode(latents)
            usage.update(codes)
            variants = [codes]
            if near is not None:
                variants.append(perturb_codes(codes, near, PERTURBED_SHARE, numbers, self._seed))
            return [quantizer.decode(variant) for variant in variants]

        found, overall, levels = self._measured(vae, quantize), usage.overall(), usage.per_level()
        more = {
            "usage": overall.usage,
            "perplexity": overall.perplexity,
            "effective_rank": effective_rank(values) if values.shape[1] > 1 else None,
            "bits": layout.num_tokens * math.log2(layout.codebook_size),
            "level_usage": [level.usage for level in levels],
            "level_tokens": [level.tokens / layout.codebook_size for level in levels],
        }
        return Figures(**vars(found) | more)

    @torch.no_grad()
    def _measured(self, vae: ContinuousVAE, quantize: Callable[[torch.Tensor, range], list[torch.Tensor]]) -> Figures:
        """Figures of each latent's first variant, and the Fréchet distance of a second, if there is one."""
        psnrs, ssims, features, start = [], [], (FeatureSet(), FeatureSet()), 0
        batches = zip(self._images.batches(self._batch_size), self.latents(vae), strict=True)
        with progress("Measuring", total=len(self._images), unit="images") as bar:
            for (pixels, _), latents in batches:
                numbers = range(start, start + len(pixels))
                start = numbers.stop
                found = [to_uint8(vae.decode(variant)).cpu() for variant in quantize(latents, numbers)]
                psnrs.append(psnr(pixels, found[0]))
                ssims.append(ssim(pixels, found[0]))
                for collected, images in zip(features, found, strict=False):
                    collected.append(self._extractor(images))
                bar.advance(len(pixels))
        distances = [frechet_distance(Statistics.of(f.pooled), self._statistics) for f in features if len(f)]
        return Figures(
            psnr=float(torch.cat(psnrs).mean()),
            ssim=float(torch.cat(ssims).mean()),
            distance=distances[0],
            kid=kernel_distance(features[0].pooled, self._features, self._seed).mean,
            perturbed=distances[1] if len(distances) > 1 else None,
        )
