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
def images() -> torch.Tensor:
    """Two real images, (2, 3, 96, 80) uint8."""
    images = [data.astronaut()[40:136, 180:260], data.chelsea()[50:146, 150:230]]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def _noisy(images: torch.Tensor, spread: float) -> torch.Tensor:
    return (images + spread * torch.randn(images.shape)).round().clamp(0, 255).to(torch.uint8)


def test_psnr_agrees_with_scikit_image(images: torch.Tensor) -> None:
    other = _noisy(images, 12)
    for mine, a, b in zip(psnr(images, other), images.numpy(), other.numpy(), strict=True):
        assert float(mine) == pytest.approx(metrics.peak_signal_noise_ratio(a, b), abs=1e-9)


def test_psnr_of_a_known_error() -> None:
    a = torch.full((1, 3, 4, 4), 100, dtype=torch.uint8)
    assert float(psnr(a, a + 1)) == pytest.approx(20 * math.log10(255))
    assert float(psnr(a, a)) == PSNR_CEILING


def test_ssim_agrees_with_scikit_image(images: torch.Tensor) -> None:
    other = _noisy(images, 12)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    for mine, a, b in zip(ssim(images, other), images.numpy(), other.numpy(), strict=True):
        theirs = metrics.structural_similarity(a, b, channel_axis=0, **options)
        assert float(mine) == pytest.approx(theirs, abs=1e-9)


def test_ssim_ranks_by_damage(images: torch.Tensor) -> None:
    found = [ssim(images, _noisy(images, spread)).mean() for spread in (0, 4, 16, 64)]
    assert found[0] == 1
    assert sorted(found, reverse=True) == found


def test_a_pair_of_different_sizes_is_an_error(images: torch.Tensor) -> None:
    with pytest.raises(CodaError, match="96x80 against 96x79"):
        psnr(images, images[..., :-1])


def test_floats_are_an_error(images: torch.Tensor) -> None:
    with pytest.raises(CodaError, match="uint8"):
        ssim(images.float(), images.float())


def test_ssim_needs_room_for_its_window(images: torch.Tensor) -> None:
    small = images[..., :10, :10]
    with pytest.raises(CodaError, match="11x11"):
        ssim(small, small)
