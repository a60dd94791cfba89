from __future__ import annotations

import numpy as np
import pytest
import torch

from coda.benchmarks.distances import (
    FeatureSet,
    Statistics,
    classifier_score,
    frechet_distance,
    kernel_distance,
    precision_recall,
)
from coda.benchmarks.extractors import Features

pytest.importorskip("torch_fidelity")


def test_a_set_is_at_no_distance_from_itself() -> None:
    features = torch.randn(200, 24)
    stats = Statistics.of(features)
    assert frechet_distance(stats, stats) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_known_normals() -> None:
    """Diagonal covariances: |m₁ − m₂|² + Σ (σ₁ − σ₂)²."""
    a = Statistics(np.zeros(3), np.diag([1.0, 4.0, 9.0]))
    b = Statistics(np.array([1.0, 2.0, 0.0]), np.diag([4.0, 4.0, 1.0]))
    assert frechet_distance(a, b) == pytest.approx(5 + 1 + 0 + 4)


def test_statistics_of_mixed_precision_can_be_compared() -> None:
    """ADM's files hold float64 or float32, ours are float64; torch-fidelity asserts equal types."""
    features = torch.randn(64, 5)
    ours = Statistics.of(features)
    theirs = Statistics(ours.mu.astype(np.float32), ours.sigma.astype(np.float32))
    assert frechet_distance(ours, theirs) == pytest.approx(0, abs=1e-4)


def test_kernel_distance_tells_sets_apart() -> None:
    features = torch.randn(300, 8)
    same = kernel_distance(features[:150], features[150:], seed=0)
    other = kernel_distance(features[:150], features[150:] + 1, seed=0)
    assert other.mean > 10 * abs(same.mean)


def test_kernel_distance_says_how_it_was_estimated() -> None:
    whole = kernel_distance(torch.randn(40, 4), torch.randn(40, 4), seed=0)
    assert (whole.spread, whole.how) == (None, "1 subset of 40")
    subsets = kernel_distance(torch.randn(40, 4), torch.randn(60, 4), seed=0)
    assert subsets.how == "100 subsets of 40"
    assert subsets.spread is not None and subsets.spread > 0


def test_kernel_distance_repeats_for_a_seed() -> None:
    a, b = torch.randn(40, 4), torch.randn(60, 4)
    assert kernel_distance(a, b, seed=3) == kernel_distance(a, b, seed=3)
    assert kernel_distance(a, b, seed=3) != kernel_distance(a, b, seed=4)


def test_precision_is_about_samples_and_recall_about_the_reference() -> None:
    """Samples from one of the reference's two clusters: precise, and half of the reference is out of reach."""
    left, right = torch.randn(100, 2), torch.randn(100, 2) + 100
    found = precision_recall(torch.randn(100, 2), torch.cat([left, right]))
    assert found is not None
    precision, recall = found
    assert precision > 0.9
    assert 0.3 < recall <= 0.5


def test_too_few_pictures_for_precision() -> None:
    assert precision_recall(torch.randn(3, 2), torch.randn(50, 2)) is None


def test_classifier_score_of_sure_and_varied_logits_is_the_number_of_classes() -> None:
    logits = 1000 * torch.eye(4).repeat(500, 1)
    score = classifier_score(logits, seed=0)
    assert score.mean == pytest.approx(4, rel=0.05)
    assert classifier_score(torch.zeros(100, 4), seed=0).mean == pytest.approx(1)


def test_a_set_keeps_what_it_was_given() -> None:
    parts = [torch.randn(n, 6) for n in (3, 1, 4)]
    gathered = FeatureSet()
    for part in parts:
        gathered.append(Features(part, logits=part[:, :2]))
    assert len(gathered) == 8
    assert torch.equal(gathered.pooled, torch.cat(parts))
    assert gathered.logits is not None and gathered.logits.shape == (8, 2)
    assert gathered.spatial is None
