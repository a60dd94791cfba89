"""Between the grid of the latent and the grids of the levels.

The residual quantization of one latent is a sum over levels, each seen on its own, smaller grid (paper, Section 3.2).
Both directions stand here, so that the quantizer, the k-means start and the generator's prefix latents agree.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from ..layout import CodeLayout, Side


def downsample(latents: torch.Tensor, side: Side) -> torch.Tensor:
    """Latents (B, C, h, w) on the grid of a level, (B, C, h_l, w_l): the mean over each cell's area."""
    if tuple(latents.shape[-2:]) == tuple(side):
        return latents
    return F.interpolate(latents, size=side, mode="area")


def upsample(level: torch.Tensor, side: Side) -> torch.Tensor:
    """What a level says (B, C, h_l, w_l), on the latent's grid (B, C, h, w): bicubic, corners not aligned."""
    if tuple(level.shape[-2:]) == tuple(side):
        return level
    return F.interpolate(level, size=side, mode="bicubic", align_corners=False)


def prefix_latents(codes: torch.Tensor, layout: CodeLayout, value_table: torch.Tensor) -> list[torch.Tensor]:
    """What the levels say together, before each of them and at the end.

    Args:
        codes: (B, T) int64.
        layout: Layout of the codes.
        value_table: (K, C), what each code stands for.

    Returns:
        L + 1 prefix latents (B, C, h, w): zeros before level 0, …, the decoded latent after the last level.
    """
    h, w = layout.grid
    prefixes = [value_table.new_zeros(len(codes), value_table.shape[1], h, w)]
    for level in layout.split(codes):
        values = F.embedding(level, value_table).movedim(-1, 1)  # (B, C, h_l, w_l)
        prefixes.append(prefixes[-1] + upsample(values, (h, w)))
    return prefixes
