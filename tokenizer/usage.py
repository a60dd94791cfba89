"""Codebook usage, level by level."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .layout import CodeLayout


@dataclass(frozen=True)
class LevelUsage:
    """Codebook usage at one level.

    Attributes:
        level: The level, counted from 0; None for all levels together.
        codes_seen: Number of different codes that occurred.
        usage: `codes_seen` as a percentage of the codebook.
        attainable: Upper bound of `usage`, in percent: N tokens have at most N different codes.
        perplexity: exp of the entropy of the codes' frequencies; K if all codes are equally frequent.
        tokens: Number of codes counted.
    """

    level: int | None
    codes_seen: int
    usage: float
    attainable: float
    perplexity: float
    tokens: int

    @property
    def bits(self) -> float:
        """Entropy of the codes' frequencies, bits per code; 0 if nothing was counted."""
        return math.log2(self.perplexity) if self.tokens else 0.0


class CodeUsage:
    """Counts codes over a data set.

    Args:
        layout: Layout of the codes that `update` will see.
        device: Where to count. On the codes' device, counting does not wait for them.

    Attributes:
        counts: (L, K) int64, how often each code occurred at each level.
    """

    def __init__(self, layout: CodeLayout, device: str | torch.device = "cpu") -> None:
        self.layout = layout
        self.counts = torch.zeros(layout.num_levels, layout.codebook_size, dtype=torch.int64, device=device)
        levels = torch.repeat_interleave(torch.tensor([h * w for h, w in layout.sides]))
        self._rows = (levels * layout.codebook_size).to(device)  # (T,), where the counts of a token's level begin

    def update(self, codes: torch.Tensor) -> None:
        """Count codes (B, T)."""
        places = (codes.to(self._rows) + self._rows).flatten()
        self.counts.view(-1).index_add_(0, places, torch.ones_like(places))

    def per_level(self) -> list[LevelUsage]:
        """One figure per level."""
        return [_usage(level, counts) for level, counts in enumerate(self.counts.cpu())]

    def overall(self) -> LevelUsage:
        """All levels together: they share one codebook."""
        return _usage(None, self.counts.sum(0).cpu())


def effective_rank(codebook: torch.Tensor) -> float:
    """Exponential of the entropy of the normalized singular values of a codebook (K, C), from 1 to C.

    After Roy and Vetterli, *The Effective Rank*, 2007.
    """
    singular = torch.linalg.svdvals(codebook.double().cpu())
    return float(torch.special.entr(singular / singular.sum()).sum().exp())


def _usage(level: int | None, counts: torch.Tensor) -> LevelUsage:
    tokens, size = int(counts.sum()), len(counts)
    seen = int((counts > 0).sum())
    frequencies = counts[counts > 0].double() / max(tokens, 1)
    perplexity = float(torch.exp(-(frequencies * frequencies.log()).sum())) if tokens else 0.0
    return LevelUsage(level, seen, 100 * seen / size, 100 * min(1.0, tokens / size), perplexity, tokens)
