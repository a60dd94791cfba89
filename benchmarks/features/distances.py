"""Distances between the features of two sets of images, by torch-fidelity. The second set is always the reference."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch

from coda.tokenizer.foundation.seeding import epoch_order

from .extractors import Features

_KID_SUBSETS, _KID_SUBSET_SIZE = 100, 1000  # torch-fidelity's own choice
_NEIGHBORS = 3  # Kynkäänniemi et al. 2019, k = 3
_SCORE_SPLITS = 10
_ROWS_AT_ONCE = 4096  # features that are float64 at the same time
_DISTANCES_AT_ONCE = 1 << 24  # float32, 64 MiB; torch-fidelity holds four copies
_NEIGHBORHOOD_IMAGES = 50_000  # images per set for precision and recall, as in Kynkäänniemi et al.


@dataclass
class FeatureSet:
    """Features of N images, collected batch by batch.

    Attributes:
        with_logits: Whether to keep the classifier's output, which only the Inception score needs.
    """

    with_logits: bool = False
    batches: list[Features] = field(default_factory=list)

    def append(self, features: Features) -> None:
        """Add the features of one batch."""
        self.batches.append(features if self.with_logits else replace(features, logits=None))

    def __len__(self) -> int:
        return sum(len(batch.pooled) for batch in self.batches)

    @property
    def pooled(self) -> torch.Tensor:
        """(N, D) float32."""
        return torch.cat([batch.pooled for batch in self.batches])

    @property
    def logits(self) -> torch.Tensor | None:
        """(N, classes) float32, or None if the extractor has no classifier."""
        return self._joined("logits")

    @property
    def spatial(self) -> torch.Tensor | None:
        """(N, S) float32, or None if the extractor has none."""
        return self._joined("spatial")

    def _joined(self, name: str) -> torch.Tensor | None:
        parts = [part for batch in self.batches if (part := getattr(batch, name)) is not None]
        return torch.cat(parts) if parts else None


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of features, float64."""

    mu: np.ndarray
    sigma: np.ndarray

    @classmethod
    def of(cls, features: torch.Tensor) -> Statistics:
        """Statistics of features (N, D), N ≥ 2, as torch-fidelity's but without a float64 copy of all features."""
        mu = features.mean(dim=0, dtype=torch.float64)
        sigma = torch.zeros(len(mu), len(mu), dtype=torch.float64)
        for rows in features.split(_ROWS_AT_ONCE):
            centered = rows.double() - mu
            sigma += centered.T @ centered
        return cls(mu.numpy(), (sigma / (len(features) - 1)).numpy())


@dataclass(frozen=True)
class Estimate:
    """A figure estimated over several subsets or splits.

    Attributes:
        mean: The figure.
        spread: Standard deviation over the subsets; None if there was only one.
        how: Number and size of the subsets.
    """

    mean: float
    spread: float | None
    how: str


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision and recall, in [0, 1], and the numbers of images they were computed from."""

    precision: float
    recall: float
    how: str


def frechet_distance(generated: Statistics, reference: Statistics) -> float:
    """Fréchet distance between the normal distributions with these statistics (Heusel et al. 2017, Eq. 6)."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

    pair = [{"mu": s.mu.astype(np.float64), "sigma": s.sigma.astype(np.float64)} for s in (generated, reference)]
    return fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID]


def kernel_distance(generated: torch.Tensor, reference: torch.Tensor, seed: int) -> Estimate:
    """Kernel distance (KID, Bińkowski et al. 2018): unbiased MMD², cubic kernel, mean over random subsets.

    A subset has 1,000 images, or as many as the smaller set. Sets of equal size up to 1,000 are compared once, as a
    whole.
    """
    from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

    size = min(_KID_SUBSET_SIZE, len(generated), len(reference))
    subsets = 1 if size == max(len(generated), len(reference)) else _KID_SUBSETS
    options = {"kid_subsets": subsets, "kid_subset_size": size, "rng_seed": seed % 2**32, "verbose": False}
    found = kid_features_to_metric(generated, reference, **options)
    spread = found[KEY_METRIC_KID_STD] if subsets > 1 else None
    return Estimate(found[KEY_METRIC_KID_MEAN], spread, f"{subsets} subset{'s' * (subsets > 1)} of {size}")


def precision_recall(generated: torch.Tensor, reference: torch.Tensor, seed: int) -> PrecisionRecall | None:
    """Improved precision and recall (Kynkäänniemi et al. 2019); None if a set is too small for k = 3.

    Precision is the share of generated images closer to a reference image than its third nearest neighbor; recall is
    the reverse. The cost is quadratic, so at most 50,000 images of each set are used, drawn by `seed`.
    """
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    generated, reference = (_at_most(_NEIGHBORHOOD_IMAGES, features, seed) for features in (generated, reference))
    if min(len(generated), len(reference)) <= _NEIGHBORS:
        return None
    rows = max(1, _DISTANCES_AT_ONCE // max(len(generated), len(reference)))
    options = {"prc_neighborhood": _NEIGHBORS, "prc_batch_size": rows, "save_cpu_ram": True, "verbose": False}
    found = prc_features_to_metric(generated, reference, **options)
    how = f"k = {_NEIGHBORS}, {len(generated)} samples, {len(reference)} images"
    return PrecisionRecall(found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL], how)


def nearest_neighbors(features: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Euclidean distance of features (N, D) to the nearest of the reference (M, D), and its place: (N,) each."""
    found = [torch.cdist(rows, reference).min(dim=1) for rows in features.split(_ROWS_AT_ONCE)]
    return torch.cat([rows.values for rows in found]), torch.cat([rows.indices for rows in found])


def classifier_score(logits: torch.Tensor, seed: int) -> Estimate:
    """Inception score (Salimans et al. 2016) of logits (N, classes), mean over ten splits (fewer for small N)."""
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    splits = max(1, min(_SCORE_SPLITS, len(logits) // 2))
    found = isc_features_to_metric(logits, splits=splits, shuffle=True, rng_seed=seed % 2**32)
    spread = found[KEY_METRIC_ISC_STD] if splits > 1 else None
    return Estimate(found[KEY_METRIC_ISC_MEAN], spread, f"{splits} split{'s' * (splits > 1)} of {len(logits)}")


def _at_most(count: int, features: torch.Tensor, seed: int) -> torch.Tensor:
    """At most `count` of the features (N, D), drawn by `seed`."""
    return features if len(features) <= count else features[epoch_order(seed, 0, len(features))[:count]]
