"""Features of a set of images, and all figures of one set compared with another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import progress

from .features.distances import (
    FeatureSet,
    Statistics,
    classifier_score,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from .features.extractors import FeatureExtractor, FigureNames
from .image_sets.image_set import ImageSet, describe_measured
from .reports.report import Figure

_TOO_FEW = "the reference has statistics but too few images"
_TOO_FEW_NEIGHBORS = "needs more than 3 images in each set"


@dataclass(frozen=True)
class ExtractedFeatures:
    """Features of a set of images.

    Attributes:
        features: Features of all images that could be read.
        labels: Labels of these images, -1 if unknown.
        description: The set's own, with N, class balance, size and skipped images.
        size: (H, W) of the images in pixels; None if there were none.
    """

    features: FeatureSet
    labels: list[int]
    description: dict[str, Any]
    size: tuple[int, int] | None


@dataclass(frozen=True)
class Comparison:
    """Figures, and what is needed to judge them.

    Attributes:
        figures: Fréchet distance, KID, precision, recall, score, and ADM's sFID if the extractor has spatial features.
        self_check: Fréchet distance of the reference to itself: 0 up to rounding.
        smallest: N of the smaller set whose covariance was estimated here.
        dimensions: D of the features.
    """

    figures: list[Figure]
    self_check: float
    smallest: int
    dimensions: int


def extract_features(
    images: ImageSet,
    extractor: FeatureExtractor,
    batch_size: int,
    title: str,
    with_logits: bool = False,
    on_batch: Callable[[torch.Tensor], dict[str, float]] | None = None,
) -> ExtractedFeatures:
    """Run all images of a set through the extractor.

    Args:
        images: The set.
        extractor: Feature extractor.
        batch_size: Images per batch.
        title: Title of the progress bar.
        with_logits: Whether to keep the classifier's output, for the Inception score.
        on_batch: Called with the pixels of each batch; returns scalars to show in the progress bar.

    Raises:
        CodaError: If the images differ in size.
    """
    features, labels = FeatureSet(with_logits), []
    size: tuple[int, int] | None = None
    with progress(title, total=len(images), unit="images") as bar:
        for pixels, batch_labels in images.batches(batch_size):
            here = (pixels.shape[-2], pixels.shape[-1])
            if size not in (None, here):
                sizes = " and ".join("x".join(map(str, s)) for s in (size, here) if s)
                raise CodaError(f"{images.description['set']}: images of different sizes ({sizes}); give a size")
            features.append(extractor(pixels))
            labels += batch_labels.tolist()
            size = here
            bar.advance(len(pixels), **(on_batch(pixels) if on_batch else {}))
    return ExtractedFeatures(features, labels, describe_measured(images, labels, size), size)


def compare(
    generated: FeatureSet, real: FeatureSet, reference: ImageSet, extractor: FeatureExtractor, seed: int
) -> Comparison:
    """Compare features of samples with those of a reference.

    Args:
        generated: Features of the samples.
        real: Features of the reference's images; may be empty if `reference` brings statistics.
        reference: The reference itself, for the statistics that it may bring.
        extractor: Extractor of these features, which names the figures.
        seed: Seed for KID's subsets and the score's splits.

    Raises:
        CodaError: If a set has fewer than two images.
    """
    names = extractor.figure_names
    own_statistics = reference.pooled_statistics is not None
    if len(generated) < 2 or (len(real) < 2 and not own_statistics):
        raise CodaError(f"{len(generated)} samples against {len(real)} images: each set needs at least two")
    against = "against the reference's own statistics" if own_statistics else f"against {len(real)} images"
    with progress("Comparing", total=5, unit="figures") as bar:
        stats = reference.pooled_statistics or Statistics.of(real.pooled)
        distance = frechet_distance(Statistics.of(generated.pooled), stats)
        figures = [Figure(names.distance, distance, note=against)]
        bar.advance()
        for measured in (_kernel_figure, _neighbor_figures):
            figures += measured(generated, real, names, seed)
            bar.advance()
        if generated.logits is not None:
            score = classifier_score(generated.logits, seed)
            figures.append(Figure(names.score, score.mean, spread=score.spread, note=score.how))
        bar.advance()
        figures += _spatial_figure(generated, real, reference, names.spatial)
        bar.advance()
    return Comparison(
        figures=figures,
        self_check=frechet_distance(stats, stats),
        smallest=len(generated) if own_statistics else min(len(generated), len(real)),
        dimensions=generated.pooled.shape[1],
    )


def sample_size_warnings(count: int, dimensions: int, distance: str) -> list[str]:
    """A warning if a covariance is estimated from fewer images than it has rows."""
    if count >= dimensions:
        return []
    return [
        f"{distance} is biased upwards: N = {count} is less than the {dimensions} feature dimensions. "
        "Compare it only with figures of the same N and set."
    ]


def _kernel_figure(generated: FeatureSet, real: FeatureSet, names: FigureNames, seed: int) -> list[Figure]:
    if len(real) < 2:
        return [Figure(names.kid, None, note=_TOO_FEW)]
    kid = kernel_distance(generated.pooled, real.pooled, seed)
    return [Figure(names.kid, kid.mean, spread=kid.spread, note=kid.how)]


def _neighbor_figures(generated: FeatureSet, real: FeatureSet, names: FigureNames, seed: int) -> list[Figure]:
    """Precision and recall, which need some images in both sets."""
    shares = precision_recall(generated.pooled, real.pooled, seed) if len(real) >= 2 else None
    if shares is None:
        why = _TOO_FEW if len(real) < 2 else _TOO_FEW_NEIGHBORS
        return [Figure(name, None, note=why) for name in (names.precision, names.recall)]
    return [
        Figure(names.precision, shares.precision, note=shares.how),
        Figure(names.recall, shares.recall, note=shares.how),
    ]


def _spatial_figure(generated: FeatureSet, real: FeatureSet, reference: ImageSet, name: str) -> list[Figure]:
    """ADM's sFID, if the extractor has spatial features."""
    features, stats = generated.spatial, reference.spatial_statistics
    if features is None:
        return []
    if stats is None and len(real) < 2:
        return [Figure(name, None, note=_TOO_FEW)]
    if stats is None:
        assert real.spatial is not None
        stats = Statistics.of(real.spatial)
    return [Figure(name, frechet_distance(Statistics.of(features), stats), note="spatial features, as ADM's evaluator")]
