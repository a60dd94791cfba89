"""Variants of an image that are encoded: the image, also mirrored, or ten crops of it.

Shapes: B images of H × W pixels in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from ..foundation.errors import CodaError
from .format import TEN_CROP, VARIANTS

_MARGIN = 1.1  # the ten crops are cut from a center crop larger by this factor (LlamaGen's crop range)


def variant_names(flip: bool, ten_crop: bool) -> tuple[str, ...]:
    """The names of the variants, in the order of the cache.

    Raises:
        CodaError: If both are asked for: half of the ten crops are mirrored already.
    """
    if flip and ten_crop:
        raise CodaError("flip and ten-crop are both asked for; half of the ten crops are mirrored already")
    return TEN_CROP if ten_crop else VARIANTS if flip else VARIANTS[:1]


def size_for(names: Sequence[str], size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the center crop from which all variants of (height, width) are cut."""
    return (int(size[0] * _MARGIN), int(size[1] * _MARGIN)) if tuple(names) == TEN_CROP else size


def crop_of(names: Sequence[str], size: tuple[int, int]) -> str:
    """How the variants of (height, width) are cut from an image, in words."""
    if tuple(names) != TEN_CROP:
        return "center"
    height, width = size_for(names, size)
    return f"ten of a center crop of {height}x{width}"


def each_variant(images: torch.Tensor, names: Sequence[str], size: tuple[int, int]) -> Iterator[torch.Tensor]:
    """The variants of images (B, 3, H, W) of `size_for`, each (B, 3, height, width), in the order of their names.

    The ten crops are torchvision's `TenCrop`: four corners and the middle, then those of the mirrored image.
    """
    if tuple(names) != TEN_CROP:
        yield images
        if len(names) > 1:
            yield images.flip(-1)
        return
    (height, width), (large, wide) = size, images.shape[-2:]
    down, right = large - height, wide - width
    corners = [(0, 0), (0, right), (down, 0), (down, right), (round(down / 2), round(right / 2))]
    for image in (images, images.flip(-1)):
        for top, left in corners:
            crop = image[..., top : top + height, left : left + width]
            yield crop.contiguous(memory_format=torch.channels_last)
