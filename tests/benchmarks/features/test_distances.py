from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from coda.benchmarks.features import distances
from coda.benchmarks.features.distances import (
    FeatureSet,
    Statistics,
    classifier_score,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from coda.benchmarks.features.extractors import Features

pytest.importorskip("torch_fidelity")


def test_a_set_has_no_distance_to_itself() -> None:
    features = torch.randn(200, 24)
    stats = Statistics.of(features)
    assert frechet_distance(stats, stats) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_known_normals() -> None:
    """Diagonal covariances: |m₁ − m₂|² + Σ (σ₁ − σ₂)²."""
    a = Statistics(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = Statistics(np.array([1.0, 2.0, 0.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 0 + 4)


def test_statistics_of_mixed_precision_can_be_compared() -> None:
    """ADM's files are float64 or float32, ours float64; torch-fidelity requires equal types."""
    features = torch.randn(64, 5)
    ours = Statistics.of(features)
    theirs = Statistics(ours.mu.astype(np.float32), ours.sigma.astype(np.float32))
    assert frechet_distance(ours, theirs) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize(("count", "dimensions"), [(2, 3), (50, 1), (9_000, 40)])
def test_statistics_are_those_of_torch_fidelity(count: int, dimensions: int) -> None:
    from torch_fidelity.metric_fid import fid_features_to_statistics

    features = torch.randn(count, dimensions).relu() * 3 + 1
    ours, theirs = Statistics.of(features), fid_features_to_statistics(features.double())
    np.testing.assert_allclose(ours.mu, theirs["mu"], rtol=1e-12)
    np.testing.assert_allclose(ours.sigma, np.atleast_2d(theirs["sigma"]), rtol=1e-9, atol=1e-12)


def test_kernel_distance_tells_sets_apart() -> None:
    features = torch.randn(300, 8)
    same = kernel_distance(features[:150], features[150:], seed=0)
    other = kernel_distance(features[:150], features[150:] + 1, seed=0)
    assert other.mean > 10 * abs(same.mean)


def test_kernel_distance_says_how_it_was_estimated() -> None:
    whole = kernel_distance(torch.randn(40, 4), torch.randn(40, 4), seed=0)
    assert (whole.spread, whole.how) == (None, "1 subset of 40")
    a, b = torch.randn(40, 4), torch.randn(60, 4)
    subsets = kernel_distance(a, b, seed=3)
    assert subsets.how == "100 subsets of 40"
    assert subsets.spread is not None and subsets.spread > 0
    assert kernel_distance(a, b, seed=3) == subsets != kernel_distance(a, b, seed=4)


def test_precision_is_about_samples_and_recall_about_the_reference() -> None:
    """Samples from one of the reference's two clusters are precise but cover half of the reference."""
    left, right = torch.randn(100, 2), torch.randn(100, 2) + 100
    found = precision_recall(torch.randn(100, 2), torch.cat([left, right]), seed=0)
    assert found is not None
    assert found.precision > 0.9
    assert 0.3 < found.recall <= 0.5
    assert found.how == "k = 3, 100 samples, 200 images"


def test_the_size_of_parts_does_not_change_precision_and_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, reference = torch.randn(70, 4), torch.randn(90, 4) + 0.5
    whole = precision_recall(generated, reference, seed=0)
    monkeypatch.setattr(distances, "_DISTANCES_AT_ONCE", 500)
    assert precision_recall(generated, reference, seed=0) == whole


def test_very_many_images_are_subsampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "_NEIGHBORHOOD_IMAGES", 60)
    generated, reference = torch.randn(40, 4), torch.randn(500, 4)
    found = precision_recall(generated, reference, seed=1)
    assert found is not None and found.how == "k = 3, 40 samples, 60 images"
    assert found == precision_recall(generated, reference, seed=1)
    assert found != precision_recall(generated, reference, seed=2)


def test_precision_holds_a_part_of_the_distance_matrix(mebibytes: Callable[..., float]) -> None:
    """12,000 images: 550 MiB for all distances, of which torch-fidelity would hold several copies."""
    prepare = """
from coda.benchmarks.features.distances import precision_recall
precision_recall(torch.randn(10, 8), torch.randn(10, 8), 0)
generated, reference = torch.randn(100, 8), torch.randn(12_000, 8)
"""
    assert mebibytes(prepare, "precision_recall(generated, reference, 0)") < 550


def test_too_few_images_for_precision() -> None:
    assert precision_recall(torch.randn(3, 2), torch.randn(50, 2), seed=0) is None


def test_classifier_score_of_sure_and_varied_logits_is_the_number_of_classes() -> None:
    logits = 1000 * torch.eye(4).repeat(500, 1)
    score = classifier_score(logits, seed=0)
    assert score.mean == pytest.approx(4, rel=0.05)
    assert classifier_score(torch.zeros(100, 4), seed=0).mean == pytest.approx(1)


@pytest.mark.parametrize("with_logits", [True, False])
def test_features_are_collected(with_logits: bool) -> None:
    parts = [torch.randn(n, 6) for n in (3, 1, 4)]
    gathered = FeatureSet(with_logits)
    for part in parts:
        gathered.append(Features(part, logits=part[:, :2]))
    whole = torch.cat(parts)
    assert len(gathered) == 8 and torch.equal(gathered.pooled, whole) and gathered.spatial is None
    assert (gathered.logits is not None) == with_logits
    assert gathered.logits is None or torch.equal(gathered.logits, whole[:, :2])
