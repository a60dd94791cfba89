from __future__ import annotations

import math

import pytest
import torch

from coda.benchmarks.rungs.rivals import (
    GaussianQuantizer,
    ScalarQuantizer,
    Standardized,
    normal_bins,
    rivals,
    sigmoid_bins,
)

RIVALS = {f"{kind}, {size}": make for kind, sizes in rivals(8, (2, 3), 32).items() for size, make in sizes.items()}


@pytest.mark.parametrize("name", RIVALS)
def test_codes_survive_decoding(name: str) -> None:
    latents = torch.randn(5, 8, 2, 3, generator=torch.Generator().manual_seed(0))
    quantizer = Standardized(RIVALS[name](0), torch.linspace(-1, 1, 8), torch.linspace(0.5, 2, 8))
    codes = quantizer.encode(latents)
    assert codes.shape == (5, quantizer.layout.num_tokens)
    assert 0 <= int(codes.min()) <= int(codes.max()) < quantizer.layout.codebook_size
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)
    assert quantizer.decode(codes).shape == latents.shape


def test_bits_follow_bins_and_groups() -> None:
    scalar = ScalarQuantizer(8, (2, 3), *normal_bins(4)).layout
    grouped = GaussianQuantizer(8, 4, (2, 3), 32, seed=0).layout
    assert scalar.num_tokens * math.log2(scalar.codebook_size) == 8 * 6 * 2
    assert grouped.num_tokens * math.log2(grouped.codebook_size) == 2 * 6 * 5


@pytest.mark.parametrize("bins", [normal_bins, sigmoid_bins])
def test_more_bins_come_closer(bins: object) -> None:
    latents = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    errors = []
    for count in (2, 4, 16, 64):
        quantizer = ScalarQuantizer(1, (8, 8), *bins(count))  # type: ignore[operator]
        errors.append(float((quantizer.decode(quantizer.encode(latents)) - latents).square().mean()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


def test_two_normal_bins_are_the_half_normal_means() -> None:
    edges, values = normal_bins(2)
    assert edges.tolist() == [0.0]
    assert values.tolist() == pytest.approx([-math.sqrt(2 / math.pi), math.sqrt(2 / math.pi)])
