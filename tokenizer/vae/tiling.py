"""Processing large images in overlapping tiles, so that memory does not grow with the image.

Where neighboring tiles overlap, one fades out linearly while the other fades in. The network sees only its tile, so the
result differs slightly from that of the whole image; group norms and attention differ most. An image that fits in one
tile is unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

import torch

from ..foundation.errors import CodaError


def check_tiles(tile: int, overlap: int, factor: int) -> None:
    """Check the size of tiles for a VAE, in pixels.

    Raises:
        CodaError: If tile or overlap is not a multiple of the factor, or the overlap is not smaller than the tile.
    """
    if tile < factor or tile % factor or overlap % factor:
        raise CodaError(f"tile {tile} and overlap {overlap}: both must be multiples of the VAE's factor, {factor}")
    if not 0 <= overlap < tile:
        raise CodaError(f"overlap {overlap}: it must be smaller than the tile, {tile}")


def in_tiles(
    work: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor, tile: int, overlap: int, scale: Fraction
) -> torch.Tensor:
    """Apply `work` to tiles of the inputs and join the results.

    Args:
        work: (B, C, h, w) to (B, C', scale · h, scale · w).
        inputs: (B, C, H, W).
        tile: Side of a tile, in pixels of the inputs.
        overlap: Least number of pixels that neighbors share.
        scale: Output pixels per input pixel along one axis.

    Returns:
        (B, C', scale · H, scale · W).
    """
    height, width = inputs.shape[-2:]
    tops, lefts = _starts(height, tile, overlap), _starts(width, tile, overlap)
    if len(tops) == len(lefts) == 1:
        return work(inputs)
    total = weights = None
    for top in tops:
        for left in lefts:
            done = work(inputs[..., top : top + tile, left : left + tile])
            if total is None or weights is None:
                size = (int(height * scale), int(width * scale))
                total = done.new_zeros(*done.shape[:2], *size)
                weights = done.new_zeros(size)
            h, w = done.shape[-2:]
            place = (slice(int(top * scale), int(top * scale) + h), slice(int(left * scale), int(left * scale) + w))
            ramp = int(overlap * scale)
            weight = _ramp(h, ramp, done)[:, None] * _ramp(w, ramp, done)
            total[..., *place] += done * weight
            weights[place] += weight
    assert total is not None and weights is not None
    return total.div_(weights)


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along one axis; the last tile ends with the image and may overlap more than others."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, tile - overlap), length - tile]


def _ramp(length: int, overlap: int, like: torch.Tensor) -> torch.Tensor:
    """Weights along one axis: rising to 1 over the overlap, falling at the end, never 0 (a border has no neighbor)."""
    places = torch.arange(length, device=like.device, dtype=like.dtype) + 0.5
    distance = torch.minimum(places, length - places)
    return (distance / max(overlap, 1)).clamp(max=1)
