"""Conversion between uint8 [0, 255] and float [-1, 1]."""

from __future__ import annotations

import torch
from PIL import Image


def to_unit(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels uint8 in [0, 255] as float32 in [-1, 1], of the same shape."""
    return (pixels / 127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Images float in [-1, 1] (clamped) as uint8 in [0, 255], rounded to the nearest, of the same shape."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def to_pil(image: torch.Tensor) -> Image.Image:
    """One image (3, H, W), float in [-1, 1] or uint8, as a PIL image."""
    pixels = image if image.dtype == torch.uint8 else to_uint8(image)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().cpu().numpy())
