from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images.psnr_ssim import PSNR_CEILING, psnr, ssim

metrics = pytest.importorskip("skimage.metrics")
data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def photographs() -> torch.Tensor:
    """Two real photographs, (2, 3, 96, 80) uint8."""
    pictures = [data.astronaut()[40:136, 180:260], data.chelsea()[50:146, 150:230]]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def _noisy(pictures: torch.Tensor, spread: float) -> torch.Tensor:
    return (pictures + spread * torch.randn(pictures.shape)).round().clamp(0, 255).to(torch.uint8)


def test_psnr_agrees_with_scikit_image(photographs: torch.Tensor) -> None:
    other = _noisy(photographs, 12)
    for mine, a, b in zip(psnr(photographs, other), photographs.numpy(), other.numpy(), strict=True):
        assert float(mine) == pytest.approx(metrics.peak_signal_noise_ratio(a, b), abs=1e-9)


def test_psnr_of_a_known_error() -> None:
    a = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    assert float(psnr(a, a + 1)) == pytest.approx(20 * math.log10(255))
    assert float(psnr(a, a)) == PSNR_CEILING


def test_ssim_agrees_with_scikit_image(photographs: torch.Tensor) -> None:
    other = _noisy(photographs, 12)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    for mine, a, b in zip(ssim(photographs, other), photographs.numpy(), other.numpy(), strict=True):
        theirs = metrics.structural_similarity(a, b, channel_axis=0, **options)
        assert float(mine) == pytest.approx(theirs, abs=1e-9)


def test_ssim_ranks_by_damage(photographs: torch.Tensor) -> None:
    found = [ssim(photographs, _noisy(photographs, spread)).mean() for spread in (0, 4, 16, 64)]
    assert found[0] == 1
    assert sorted(found, reverse=True) == found


def test_a_pair_of_different_sizes_is_an_error(photographs: torch.Tensor) -> None:
    with pytest.raises(CodaError, match="96x80 against 96x79"):
        psnr(photographs, photographs[..., :-1])


def test_floats_are_an_error(photographs: torch.Tensor) -> None:
    with pytest.raises(CodaError, match="uint8"):
        ssim(photographs.float(), photographs.float())


def test_ssim_needs_room_for_its_window(photographs: torch.Tensor) -> None:
    small = photographs[..., :10, :10]
    with pytest.raises(CodaError, match="11x11"):
        ssim(small, small)
