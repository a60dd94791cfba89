"""All figures of one set of pictures against another."""

from __future__ import annotations

from dataclasses import dataclass

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
from .image_sets.image_set import PictureSet
from .reports.report import Figure

_TOO_FEW = "the reference brings statistics but too few pictures"
_TOO_FEW_NEIGHBOURS = "needs more than 3 pictures a side"


@dataclass(frozen=True)
class Comparison:
    """Figures, and what must be known of them.

    Attributes:
        figures: Fréchet distance, KID, precision, recall, score, and ADM's sFID where the extractor can.
        self_check: Fréchet distance of the reference to itself: 0 but for rounding.
        smallest: N of the smaller set whose covariance was estimated here.
        dimensions: D of the features.
    """

    figures: list[Figure]
    self_check: float
    smallest: int
    dimensions: int


def compare(
    generated: FeatureSet, real: FeatureSet, reference: PictureSet, extractor: FeatureExtractor, seed: int
) -> Comparison:
    """Compare features of samples with those of a reference.

    Args:
        generated: Features of the samples.
        real: Features of the reference's pictures; may be empty where `reference` brings statistics.
        reference: The reference itself, for the statistics that it may bring.
        extractor: What made the features, and names the figures.
        seed: Of KID's subsets and the score's splits.

    Raises:
        CodaError: A side has fewer than two pictures.
    """
    names = extractor.figure_names
    if len(generated) < 2 or (len(real) < 2 and reference.pooled_statistics is None):
        raise CodaError(f"{len(generated)} samples against {len(real)} pictures: two a side are the least")
    own_statistics = reference.pooled_statistics is not None
    against = "against the reference's own statistics" if own_statistics else f"against {len(real)} pictures"
    with progress("Comparing", total=5, unit="figures") as bar:
        stats = reference.pooled_statistics or Statistics.of(real.pooled)
        distance = frechet_distance(Statistics.of(generated.pooled), stats)
        figures = [Figure(names.distance, distance, note=against)]
        bar.advance()
        for measured in (_kernel_figure, _neighbour_figures):
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
    """What must be said where a covariance is estimated from fewer pictures than it has rows."""
    if count >= dimensions:
        return []
    return [
        f"{distance} is biased upwards: N = {count} pictures are fewer than the {dimensions} feature dimensions. "
        "Compare it only with figures of the same N and set."
    ]


def _kernel_figure(generated: FeatureSet, real: FeatureSet, names: FigureNames, seed: int) -> list[Figure]:
    if len(real) < 2:
        return [Figure(names.kid, None, note=_TOO_FEW)]
    kid = kernel_distance(generated.pooled, real.pooled, seed)
    return [Figure(names.kid, kid.mean, spread=kid.spread, note=kid.how)]


def _neighbour_figures(generated: FeatureSet, real: FeatureSet, names: FigureNames, seed: int) -> list[Figure]:
    """Precision and recall, which need some pictures on both sides."""
    shares = precision_recall(generated.pooled, real.pooled, seed) if len(real) >= 2 else None
    if shares is None:
        why = _TOO_FEW if len(real) < 2 else _TOO_FEW_NEIGHBOURS
        return [Figure(name, None, note=why) for name in (names.precision, names.recall)]
    return [
        Figure(names.precision, shares.precision, note=shares.how),
        Figure(names.recall, shares.recall, note=shares.how),
    ]


def _spatial_figure(generated: FeatureSet, real: FeatureSet, reference: PictureSet, name: str) -> list[Figure]:
    """ADM's sFID, where the extractor has spatial features."""
    features, stats = generated.spatial, reference.spatial_statistics
    if features is None:
        return []
    if stats is None and len(real) < 2:
        return [Figure(name, None, note=_TOO_FEW)]
    if stats is None:
        assert real.spatial is not None
        stats = Statistics.of(real.spatial)
    return [Figure(name, frechet_distance(Statistics.of(features), stats), note="spatial features, as ADM's evaluator")]
