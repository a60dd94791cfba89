"""How alike two images are, pixel by pixel: PSNR and SSIM.

Both see what a user would see: uint8 pixels, scaled to [0, 1]. (The published evaluation truncates to uint8 instead
of rounding, which costs it about half a gray level.) Both are means over images, not over pooled pixels.

Shape legend: B images of H×W pixels.
"""

from __future__ import annotations

import torch

from coda.tokenizer.foundation.errors import CodaError

PSNR_CEILING = 100.0  # dB; two equal images would have an infinite PSNR, which no mean survives
_WINDOW, _SIGMA = 11, 1.5  # Wang et al. 2004, Section III-B
_K1, _K2 = 0.01, 0.03


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each pair, in dB, at most `PSNR_CEILING`.

    Args:
        a: (B, 3, H, W) uint8.
        b: The same shape and type.

    Returns:
        (B,) float64.

    Raises:
        CodaError: The shapes differ, or the images are not uint8.
    """
    _check_pair(a, b)
    error = (a.double() - b.double()) / 255
    mean_square = error.square().flatten(1).mean(1)
    return -10 * mean_square.clamp_min(10 ** (-PSNR_CEILING / 10)).log10()


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Structural similarity of each pair, at most 1: 11×11 Gaussian window, σ 1.5, mean over the three channels.

    Wang et al. 2004, Eq. 13, with K1 0.01, K2 0.03 and weighted (not sample) variances; windows that reach over the
    border are left out, as in scikit-image with `gaussian_weights=True, use_sample_covariance=False`.

    Args:
        a: (B, 3, H, W) uint8, at least 11 pixels each way.
        b: The same shape and type.

    Returns:
        (B,) float64.

    Raises:
        CodaError: The shapes differ, or an image is smaller than the window or not uint8.
    """
    _check_pair(a, b)
    if min(a.shape[-2:]) < _WINDOW:
        raise CodaError(f"SSIM looks through a window of {_WINDOW}x{_WINDOW} pixels; {_size(a)} is smaller")
    x, y = a.double() / 255, b.double() / 255
    # E[x], E[y], E[x²], E[y²], E[xy] under the window, in one pass.
    mean_x, mean_y, square_x, square_y, product = _window_means(torch.stack([x, y, x * x, y * y, x * y]))
    c1, c2 = _K1**2, _K2**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    variance = (square_x - mean_x**2) + (square_y - mean_y**2)
    structure = (2 * (product - mean_x * mean_y) + c2) / (variance + c2)
    return (luminance * structure).flatten(1).mean(1)


def _window_means(maps: torch.Tensor) -> torch.Tensor:
    """Gaussian-weighted means of maps (…, H, W) at every place where the window fits."""
    height, width = maps.shape[-2:]
    return _band(height, maps) @ maps @ _band(width, maps).T


def _band(length: int, like: torch.Tensor) -> torch.Tensor:
    """Moving Gaussian mean along one axis as a matrix (length − 10, length): several times quicker than conv2d here."""
    offsets = torch.arange(length, dtype=like.dtype, device=like.device)
    offsets = offsets - offsets[: length - _WINDOW + 1, None] - _WINDOW // 2  # from the window's middle
    weights = torch.exp(-offsets.square() / (2 * _SIGMA**2)).masked_fill(offsets.abs() > _WINDOW // 2, 0)
    return weights / weights.sum(dim=1, keepdim=True)


def _check_pair(a: torch.Tensor, b: torch.Tensor) -> None:
    if a.shape != b.shape:
        raise CodaError(f"the images of a pair differ in size: {_size(a)} against {_size(b)}")
    if a.dtype != torch.uint8 or b.dtype != torch.uint8:
        raise CodaError(f"images are compared as uint8, not {a.dtype} and {b.dtype}")


def _size(images: torch.Tensor) -> str:
    return "x".join(map(str, images.shape[-2:]))
