"""The region of an edit: in pixels, and in the cells of every level.

T codes · (H, W) pixels · (h_l, w_l) cells of level l
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from coda.tokenizer import CodaError, CodeLayout
from coda.tokenizer.images.source import MAX_PIXELS

from .image_file import image_shape, load_mask

Region = Sequence[float] | str | Path | Image.Image | torch.Tensor


def region_mask(
    region: Region, size: tuple[int, int], shape: tuple[int, int] | None = None, max_pixels: int = MAX_PIXELS
) -> torch.Tensor:
    """The pixels to change, (H, W) bool.

    Args:
        region: A box (left, top, right, bottom) in pixels of the tokenizer's image, or as fractions of its size if no
            number exceeds 1; a mask image, whose light and opaque part changes; or a tensor (H, W) bool.
        size: (H, W).
        shape: (height, width) of the image that is edited, before it is scaled and cropped to `size`. A mask image has
            the same aspect ratio, so that it is scaled and cropped alike, or is already of the final size.
        max_pixels: A mask image with more pixels is refused.

    Raises:
        CodaError: If the region is empty, does not lie in the image or does not fit it.
    """
    if isinstance(region, torch.Tensor):
        if region.shape != size or region.dtype != torch.bool:
            raise CodaError(f"the region is {region.dtype} {tuple(region.shape)}, expected torch.bool {size}")
        mask = region.cpu()
    elif isinstance(region, str | Path | Image.Image):
        mask = load_mask(region, size, max_pixels)
        _check_aspect(image_shape(region), size, shape or size)
    else:
        left, top, right, bottom = box_pixels(region, *size)
        mask = torch.zeros(size, dtype=torch.bool)
        mask[top:bottom, left:right] = True
    if not bool(mask.any()):
        raise CodaError("the region is empty: the mask has no light, opaque pixel")
    return mask


def cells_to_keep(layout: CodeLayout, mask: torch.Tensor, keep_levels: int, coverage: float) -> torch.Tensor:
    """Codes that stay, (T,) bool: the first `keep_levels` levels, and cells with less than `coverage` in the mask."""
    shares = [F.interpolate(mask[None, None].float(), size=grid, mode="area").flatten() for grid in layout.sides]
    keep = [(share < coverage - 1e-6) | (level < keep_levels) for level, share in enumerate(shares)]
    return torch.cat(keep)


def feathered_mask(mask: torch.Tensor, width: int) -> torch.Tensor:
    """Opacity of the new image, (1, 1, H, W): 0 outside of the mask, growing to 1 at `width` pixels inside of it.

    The border of the image is not an edge of the mask.
    """
    if width < 1:
        return mask[None, None].float()
    inside = F.pad(mask[None, None].float(), (width,) * 4, mode="replicate")
    eroded = -F.max_pool2d(-inside, 2 * width + 1, stride=1)  # 0 within `width` of the edge
    return F.avg_pool2d(F.pad(eroded, (width,) * 4, mode="replicate"), 2 * width + 1, stride=1)


def box_pixels(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels, within the image."""
    numbers = [float(number) for number in box]
    if len(numbers) == 4 and all(map(math.isfinite, numbers)):
        if max(numbers) <= 1:
            numbers = [number * extent for number, extent in zip(numbers, (width, height) * 2, strict=True)]
        left, top, right, bottom = (round(number) for number in numbers)
        if 0 <= left < right <= width and 0 <= top < bottom <= height:
            return left, top, right, bottom
    raise CodaError(f"box {tuple(box)} is not (left, top, right, bottom) within the image of {width}x{height} pixels")


def _check_aspect(mask: tuple[int, int], size: tuple[int, int], shape: tuple[int, int]) -> None:
    """Raise a CodaError unless `mask` is of `size`, or of the aspect ratio of `shape` to within a pixel."""
    if mask != size and abs(mask[0] * shape[1] - mask[1] * shape[0]) > max(*mask, *shape):
        sizes = [f"{width}x{height}" for height, width in (mask, shape)]
        raise CodaError("the mask has {} pixels, the image {}: their shapes differ".format(*sizes))
