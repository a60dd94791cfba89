"""Where an edit takes place: in pixels, and in the cells of every level.

T codes · (H, W) pixels · (h_l, w_l) cells of level l
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image

from coda.tokenizer import CodaError, CodeLayout

from .photograph import open_photograph

Region = Sequence[float] | str | Path | Image.Image | torch.Tensor


def region_mask(region: Region, size: tuple[int, int]) -> torch.Tensor:
    """What is to change, (H, W) bool.

    Args:
        region: A box (left, top, right, bottom) in pixels of the tokenizer's picture, or in shares of its size if no
            number exceeds 1; a mask image (scaled and cropped as the photograph is; light is what changes); or a
            tensor (H, W) bool.
        size: (H, W).

    Raises:
        CodaError: There is no such region within the picture.
    """
    if isinstance(region, torch.Tensor):
        if region.shape != size or region.dtype != torch.bool:
            raise CodaError(f"the region is {region.dtype} {tuple(region.shape)}, expected torch.bool {size}")
        mask = region.cpu()
    elif isinstance(region, str | Path | Image.Image):
        mask = open_photograph(region, size)[0].mean(dim=0) > 0
    else:
        left, top, right, bottom = box_pixels(region, *size)
        mask = torch.zeros(size, dtype=torch.bool)
        mask[top:bottom, left:right] = True
    if not bool(mask.any()):
        raise CodaError("the region is empty: the mask has no light pixel")
    return mask


def cells_to_keep(layout: CodeLayout, mask: torch.Tensor, keep_levels: int, coverage: float) -> torch.Tensor:
    """Which codes stay, (T,) bool: of the first `keep_levels` levels all, then those with less area than `coverage`."""
    shares = [F.interpolate(mask[None, None].float(), size=side, mode="area").flatten() for side in layout.sides]
    keep = [(share < coverage - 1e-6) | (level < keep_levels) for level, share in enumerate(shares)]
    return torch.cat(keep)


def soft_inside(mask: torch.Tensor, width: int) -> torch.Tensor:
    """How much of the new picture is seen, (1, 1, H, W): nothing outside of the mask, everything `width` pixels inside.

    The picture's own border is no seam.
    """
    if width < 1:
        return mask[None, None].float()
    inside = F.pad(mask[None, None].float(), (width,) * 4, mode="replicate")
    eroded = -F.max_pool2d(-inside, 2 * width + 1, stride=1)  # within `width` of the seam: 0
    return F.avg_pool2d(F.pad(eroded, (width,) * 4, mode="replicate"), 2 * width + 1, stride=1)


def box_pixels(box: Sequence[float], height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels, within the picture."""
    numbers = [float(number) for number in box]
    if len(numbers) == 4:
        if max(numbers) <= 1:
            numbers = [number * extent for number, extent in zip(numbers, (width, height) * 2, strict=True)]
        left, top, right, bottom = (round(number) for number in numbers)
        if 0 <= left < right <= width and 0 <= top < bottom <= height:
            return left, top, right, bottom
    raise CodaError(f"box {tuple(box)} is no (left, top, right, bottom) within the picture of {width}x{height} pixels")
