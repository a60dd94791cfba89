"""Resampling between the grid of the latent and the grids of the levels (paper, Section 3.2).

Used by the quantizer, k-means and the generator, so that all of them agree.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F

from ..layout import CodeLayout, Grid


def downsample(latents: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Resize latents (B, C, h, w) to the grid of a level, (B, C, h_l, w_l), by averaging over each cell's area."""
    if tuple(latents.shape[-2:]) == tuple(grid):
        return latents
    return resize(latents, grid, mode="area")


def upsample(level: torch.Tensor, grid: Grid) -> torch.Tensor:
    """Resize a level's values (B, C, h_l, w_l) to the latent's grid, (B, C, h, w): bicubic, corners not aligned."""
    if tuple(level.shape[-2:]) == tuple(grid):
        return level
    return resize(level, grid, mode="bicubic")


def resize(images: torch.Tensor, size: Grid, mode: str) -> torch.Tensor:
    """`F.interpolate` of images (B, C, h, w) by "area" or "bicubic"; the same gradients every time on CUDA, too."""
    if images.device.type == "cuda" and images.requires_grad and torch.is_grad_enabled():
        resized: torch.Tensor = _Resize.apply(images, tuple(size), mode)
        return resized
    return F.interpolate(images, size=size, mode=mode)


class _Resize(torch.autograd.Function):
    """Resizing whose gradient is two matrix products: PyTorch's own adds with atomics on CUDA, in any order."""

    @staticmethod
    def forward(ctx: Any, images: torch.Tensor, size: Grid, mode: str) -> torch.Tensor:
        ctx.shapes, ctx.mode = list(zip(images.shape[-2:], size, strict=True)), mode
        return F.interpolate(images, size=size, mode=mode)

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        dtype = torch.promote_types(grad[0].dtype, torch.float32)
        rows, columns = (_resizing_matrix(*shape, ctx.mode, dtype, grad[0].device) for shape in ctx.shapes)
        return (rows.T @ grad[0].to(dtype) @ columns).to(grad[0].dtype), None, None


@lru_cache(maxsize=256)
def _resizing_matrix(length: int, new: int, mode: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(new, length): both modes are separable, so this along each axis is what `F.interpolate` computes."""
    lines = torch.eye(length, dtype=dtype, device=device)[:, None, :, None]  # as images of one column
    return F.interpolate(lines, size=(new, 1), mode=mode)[:, 0, :, 0].T.contiguous()


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
