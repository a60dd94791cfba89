"""Resampling between the grid of the latent and the grids of the levels (paper, Section 3.2).

Used by the quantizer, k-means and the generator, so that all of them agree.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..layout import CodeLayout, Grid


def downsample(latents: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Resize latents (B, C, h, w) to the grid of a level, (B, C, h_l, w_l), by averaging over each cell's area."""
    if tuple(latents.shape[-2:]) == tuple(grid):
        return latents
    return F.interpolate(latents, size=grid, mode="area")


def upsample(level: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Resize a level's values (B, C, h_l, w_l) to the latent's grid, (B, C, h, w): bicubic, corners not aligned."""
    if tuple(level.shape[-2:]) == tuple(grid):
        return level
    return F.interpolate(level, size=grid, mode="bicubic", align_corners=False)


def prefix_latents(codes: torch.Tensor, layout: CodeLayout, value_table: torch.Tensor) -> list[torch.Tensor]:
    """Sum of the levels before each level, and of all levels (VAR's f̂).

    Args:
        codes: (B, T) int64.
        layout: Layout of the codes.
        value_table: (K, C), the point in latent space that each code stands for.

    Returns:
        L + 1 prefix latents (B, C, h, w): zeros before level 0, …, the decoded latent after the last level.
    """
    h, w = layout.grid
    prefixes = [value_table.new_zeros(len(codes), value_table.shape[1], h, w)]
    for level in layout.split(codes):
        values = F.embedding(level, value_table).movedim(-1, 1)  # (B, C, h_l, w_l)
        prefixes.append(prefixes[-1] + upsample(values, (h, w)))
    return prefixes
