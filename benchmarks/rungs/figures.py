"""The figures of one model of the ablation, measured on the same images for all.

Shapes: images (B, 3, H, W); codes (B, T).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from coda.tokenizer.images import to_uint8, to_unit
from coda.tokenizer.images.psnr_ssim import psnr, ssim

from ..comparison import extract_features
from ..features.distances import FeatureSet, Statistics, frechet_distance, kernel_distance
from ..features.extractors import FeatureExtractor
from ..image_sets.image_set import ImageSet
from ..usage import CodeUsage
from .perturbation import effective_rank, near_codes, perturb_codes
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
        seconds: Of initialization and training.
        confidences: Mean of the largest probabilities of an assignment, in falling order.
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
    images_seen: int = 0
    seconds: float | None = None
    confidences: list[float] = field(default_factory=list)


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

    @property
    def dimensions(self) -> tuple[int, int]:
        """N and D of the features."""
        return self._features.shape[0], self._features.shape[1]

    @property
    def self_check(self) -> float:
        """Fréchet distance of the originals to themselves: 0 up to rounding."""
        return frechet_distance(self._statistics, self._statistics)

    def first(self) -> torch.Tensor:
        """The first batch, (B, 3, H, W) in [-1, 1], on the device."""
        pixels, _ = next(iter(self._images.batches(self._batch_size)))
        return to_unit(pixels.to(self._device))

    @torch.no_grad()
    def measure(self, reconstruct: Callable[[torch.Tensor], torch.Tensor]) -> Figures:
        """Figures of a model without codes, images -> images in [-1, 1]."""
        return self._measured(lambda images, _: [reconstruct(images)])

    @torch.no_grad()
    def measure_codes(
        self,
        encode: Callable[[torch.Tensor], torch.Tensor],
        decode: Callable[[torch.Tensor], torch.Tensor],
        quantizer: Quantizer,
        perturbed: bool = True,
    ) -> Figures:
        """Figures of a model with codes.

        Args:
            encode: Images in [-1, 1] -> latents.
            decode: Latents -> images.
            quantizer: Latents ⇄ codes.
            perturbed: Whether to measure with perturbed codes, too, which takes twice the time.
        """
        layout, values = quantizer.layout, quantizer.value_table()
        usage, near = CodeUsage(layout), near_codes(values) if perturbed else None

        def reconstruct(images: torch.Tensor, numbers: range) -> list[torch.Tensor]:
            codes = quantizer.encode(encode(images))
            usage.update(codes)
            variants = [codes]
            if near is not None:
                variants.append(perturb_codes(codes, near, PERTURBED_SHARE, numbers, self._seed))
            return [decode(quantizer.decode(variant)) for variant in variants]

        found, overall = self._measured(reconstruct), usage.overall()
        more = {
            "usage": overall.usage,
            "perplexity": overall.perplexity,
            "effective_rank": effective_rank(values) if values.shape[1] > 1 else None,
            "bits": layout.num_tokens * math.log2(layout.codebook_size),
        }
        return Figures(**vars(found) | more)

    def _measured(self, reconstruct: Callable[[torch.Tensor, range], list[torch.Tensor]]) -> Figures:
        """Figures of the first reconstruction of each image, and the Fréchet distance of a second, if there is one."""
        psnrs, ssims, features, start = [], [], (FeatureSet(), FeatureSet()), 0
        for pixels, _ in self._images.batches(self._batch_size):
            numbers = range(start, start + len(pixels))
            start = numbers.stop
            found = [to_uint8(images).cpu() for images in reconstruct(to_unit(pixels.to(self._device)), numbers)]
            psnrs.append(psnr(pixels, found[0]))
            ssims.append(ssim(pixels, found[0]))
            for collected, images in zip(features, found, strict=False):
                collected.append(self._extractor(images))
        distances = [frechet_distance(Statistics.of(f.pooled), self._statistics) for f in features if len(f)]
        return Figures(
            psnr=float(torch.cat(psnrs).mean()),
            ssim=float(torch.cat(ssims).mean()),
            distance=distances[0],
            kid=kernel_distance(features[0].pooled, self._features, self._seed).mean,
            perturbed=distances[1] if len(distances) > 1 else None,
        )
