"""The transformer's parts: attention within a level, SwiGLU, modulation by a condition, positions.

B images · N cells, the packed cells of one or several levels · V levels among them
D hidden width · H heads · F width of the MLP · R rank of the modulation
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention import AttentionModuleMixin
from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn
from torch import nn

from coda.tokenizer.layout import Grid

# Bands of the position features, in periods per image: from half a period to the Nyquist limit of a 32-cell grid.
_LOWEST_BAND, _HIGHEST_BAND, _NUM_BANDS = 0.5, 16.0, 16
POSITION_FEATURES = 4 * _NUM_BANDS
_FEW_CELLS = 64  # levels of at most so many cells are attended together on an accelerator


class LevelAttentionProcessor:
    """Attention within each level: through diffusers' dispatcher, or torch's own where small levels share a mask."""

    _attention_backend: AttentionBackendName | None = None  # what model.set_attention_backend(…) sets
    _parallel_config = None

    def __call__(self, attn: Attention, hidden: torch.Tensor, cells: Sequence[int]) -> torch.Tensor:
        """Attend within runs of `cells` cells: (B, N, D) -> (B, N, D), sum(cells) = N."""
        query, key, value = attn.to_qkv(hidden).unflatten(-1, (3, attn.heads, -1)).unbind(-3)  # (B, N, H, D/H)
        dtype, on_cpu = value.dtype, value.device.type == "cpu"
        query, key = attn.norm_q(query).to(dtype), attn.norm_k(key).to(dtype)
        if on_cpu:  # where the backward pass of attention is four times slower in bfloat16 than in float32
            query, key, value = query.float(), key.float(), value.float()
        with torch.autocast("cpu", enabled=False):
            attended = attend_within(query, key, value, cells, 0 if on_cpu else _FEW_CELLS, self._attention_backend)
        return attn.to_out(attended.flatten(2).to(dtype))


def attend_within(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cells: Sequence[int],
    few: int = 0,
    backend: AttentionBackendName | None = None,
) -> torch.Tensor:
    """Attention (B, N, H, D/H) within runs of `cells` cells.

    Levels are attended one after the other: the cost is Σ n_l², and no mask is needed. Only neighboring levels of at
    most `few` cells are attended together, under a mask: an accelerator runs kernels that small no faster than it
    launches them.
    """
    runs: list[tuple[int, ...]] = []
    for small, neighbors in groupby(cells, key=lambda n: n <= few):
        group = tuple(neighbors)
        runs += [group] if small else [(n,) for n in group]
    attended = []
    for run, *parts in zip(runs, *(tensor.split([*map(sum, runs)], 1) for tensor in (query, key, value)), strict=True):
        if len(run) == 1:
            attended.append(dispatch_attention_fn(*parts, backend=backend))
        else:  # torch's own, because not every backend takes a mask
            mask = _within(run, value.dtype, value.device)
            q, k, v = (part.transpose(1, 2) for part in parts)
            attended.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2))
    return torch.cat(attended, dim=1)


@lru_cache(maxsize=64)
def _within(cells: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """(n, n) with n = sum(cells): 0 within a run of cells, −∞ between runs."""
    level = torch.cat([torch.full((n,), float(i), device=device) for i, n in enumerate(cells)])
    mask = torch.zeros(len(level), len(level), dtype=dtype, device=device)
    return mask.masked_fill_(level[:, None] != level, float("-inf"))


class Attention(nn.Module, AttentionModuleMixin):
    """Multi-head self-attention with normalized queries and keys (QK-norm), no biases."""

    _default_processor_cls: Any = LevelAttentionProcessor
    _available_processors = [LevelAttentionProcessor]  # noqa: RUF012  diffusers declares it so
    _supports_qkv_fusion = False  # always fused
    processor: Any

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(width, 3 * width, bias=False)
        # LayerNorm without bias, as ViT-22B has it (arXiv 2302.05442, Section 2): one fused kernel also on a CPU.
        self.norm_q = nn.LayerNorm(width // heads, bias=False)
        self.norm_k = nn.LayerNorm(width // heads, bias=False)
        self.to_out = nn.Linear(width, width, bias=False)
        self.processor = LevelAttentionProcessor()

    def forward(self, hidden: torch.Tensor, cells: Sequence[int]) -> torch.Tensor:
        """(B, N, D) -> (B, N, D), attention within runs of `cells` cells."""
        return self.processor(self, hidden, cells)


class SwiGLU(nn.Module):
    """Gated MLP (arXiv 2002.05202, Equation 6), no biases: (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, mlp_width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 2 * mlp_width, bias=False)
        self.down = nn.Linear(mlp_width, width, bias=False)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, N, D) -> (B, N, D)."""
        gate, value = self.up(hidden).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class Modulation(nn.Module):
    """`parts` modulation vectors of width D from a condition, all zero at the start (adaLN-zero).

    DiT (arXiv 2212.09748, Section 3.2) has 6·D² weights for it in every block, a third of the whole model. Here the
    condition, only a class and a level, goes through R dimensions.
    """

    def __init__(self, width: int, rank: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, parts * width, bias=False)

    def forward(self, condition: torch.Tensor, level_of_cell: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Condition (B, V, D) per level -> `parts` tensors (B, N, D) per cell, (B, 1, D) for a level alone.

        The product with `level_of_cell`, (N, V) with a one in each row, copies a level's vector to its cells. Its
        gradient is a product, too: faster than adding to indices, and the same every time.
        """
        vectors = self.up(self.down(condition))
        if condition.shape[1] > 1:
            vectors = level_of_cell.to(vectors.dtype) @ vectors
        return vectors.chunk(self.parts, dim=-1)


def modulated_norm(hidden: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """LayerNorm with shift and scale from the condition."""
    return torch.addcmul(shift, F.layer_norm(hidden, hidden.shape[-1:]), 1 + scale)


class Block(nn.Module):
    """Attention within the level, then the MLP; both modulated by class and level."""

    def __init__(self, width: int, heads: int, mlp_width: int, modulation_rank: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = dropout  # of what attention and MLP add
        self.attention = Attention(width, heads)
        self.mlp = SwiGLU(width, mlp_width)
        self.modulation = Modulation(width, modulation_rank, parts=6)

    def forward(
        self, hidden: torch.Tensor, condition: torch.Tensor, cells: Sequence[int], level_of_cell: torch.Tensor
    ) -> torch.Tensor:
        """(B, N, D) -> (B, N, D).

        Args:
            hidden: (B, N, D).
            condition: (B, V, D), class and level of each packed level.
            cells: Cells per packed level; their sum is N.
            level_of_cell: (N, V), one where the cell is of that packed level, else zero.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition, level_of_cell)
        attended = self.attention(modulated_norm(hidden, shift_a, scale_a), cells)
        hidden = hidden + gate_a * F.dropout(attended, self.dropout, self.training)
        transformed = self.mlp(modulated_norm(hidden, shift_m, scale_m))
        return hidden + gate_m * F.dropout(transformed, self.dropout, self.training)


def position_features(grid: Grid) -> torch.Tensor:
    """Sines and cosines of the cells' centers in [0, 1]², row by row: (h·w, POSITION_FEATURES).

    Cells at the same place of the image get the same features, whatever the grid of their level.
    """
    axes = [(torch.arange(n, dtype=torch.float64) + 0.5) / n for n in grid]
    centers = torch.cartesian_prod(*axes)  # (h·w, 2): y, x
    ratio = _HIGHEST_BAND / _LOWEST_BAND
    bands = _LOWEST_BAND * ratio ** (torch.arange(_NUM_BANDS, dtype=torch.float64) / (_NUM_BANDS - 1))
    angles = (2 * torch.pi * centers[:, :, None] * bands).flatten(1)  # (h·w, 2·bands)
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()
