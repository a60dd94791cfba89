"""Which cells are masked: at random in training, fewer and fewer in sampling, and in which order.

B pictures · T cells of all levels · n cells of one level · L levels · K codes; the integer K is the mask
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from coda.tokenizer.layout import CodeLayout, Side

from .schedules import mask_ratio


@dataclass(frozen=True)
class TrainingDraw:
    """All that one training step draws at random, for B pictures.

    Attributes:
        masked: (B, T) bool, the cells to predict; at least one per level and picture.
        corrupted: (B, T) bool, the cells that lie to the prefix latent.
        donors: (B,) int64, the picture whose codes stand at the corrupted cells.
        unconditional: (B,) bool, the pictures whose class is withheld.
    """

    masked: torch.Tensor
    corrupted: torch.Tensor
    donors: torch.Tensor
    unconditional: torch.Tensor

    def rows(self, first: int, last: int) -> TrainingDraw:
        """The part of the pictures [first, last), its donors counted among them."""
        part = slice(first, last)
        donors = self.donors[part] % (last - first)
        return TrainingDraw(self.masked[part], self.corrupted[part], donors, self.unconditional[part])

    def to(self, device: torch.device) -> TrainingDraw:
        """The same draw on a device."""
        return TrainingDraw(
            *(part.to(device) for part in (self.masked, self.corrupted, self.donors, self.unconditional))
        )


def draw_training(
    layout: CodeLayout,
    batch_size: int,
    generator: torch.Generator,
    mask_schedule: str = "cosine",
    corruption: float = 0.0,
    class_dropout: float = 0.0,
) -> TrainingDraw:
    """Draw what a training step needs; the same generator state gives the same draw on any machine.

    Args:
        layout: Layout of the codes.
        batch_size: B.
        generator: A CPU generator.
        mask_schedule: Schedule of `mask_ratio`; each level of each picture draws its own ratio.
        corruption: Largest share of a picture's cells that lie to the prefix latent; each picture draws its share
            uniformly below it, so that clean prefixes are seen too.
        class_dropout: Probability that a picture's class is withheld.
    """
    noise = torch.rand(batch_size, layout.num_tokens, generator=generator)
    ratios = mask_ratio(torch.rand(batch_size, layout.num_levels, generator=generator), mask_schedule)
    masked = []
    for level, grid in enumerate(layout.split(noise)):
        ranks = grid.flatten(1).argsort(dim=1).argsort(dim=1)
        cells = ranks.shape[1]
        count = (ratios[:, level : level + 1] * cells).ceil().clamp(1, cells)
        masked.append(ranks < count)
    share = corruption * torch.rand(batch_size, 1, generator=generator)
    corrupted = torch.rand(batch_size, layout.num_tokens, generator=generator) < share
    donors = torch.randperm(batch_size, generator=generator)
    unconditional = torch.rand(batch_size, generator=generator) < class_dropout
    return TrainingDraw(torch.cat(masked, dim=1), corrupted, donors, unconditional)


def masked_after_step(unfilled: torch.Tensor, steps: int, mask_schedule: str = "cosine") -> torch.Tensor:
    """How many cells of a level are still masked after each step.

    Args:
        unfilled: (B,) int64, cells masked before the first step.
        steps: Steps that the level takes.
        mask_schedule: Schedule of `mask_ratio`.

    Returns:
        (steps, B) int64: floor(unfilled · ratio), but at least one fewer with every step as long as any are left; the
        last row is 0.
    """
    step = torch.arange(steps, device=unfilled.device)[:, None]
    ratio = mask_ratio((step + 1).double() / steps, mask_schedule)
    by_law = (unfilled * ratio).floor().long()
    return ((by_law + step).cummin(dim=0).values - step).clamp(min=0)


@lru_cache(maxsize=64)
def halton_order(side: Side) -> torch.Tensor:
    """Order in which the Halton sequence (bases 2 and 3) visits the cells of a side: a permutation, (h·w,) int64.

    Neighbours in the order are far apart on the grid (Halton-MaskGIT, arXiv 2503.17076, Section 3.2).
    """
    h, w = side
    order: dict[int, None] = {}
    index = 0
    while len(order) < h * w:
        order[int(_radical_inverse(index, 2) * h) * w + int(_radical_inverse(index, 3) * w)] = None
        index += 1
    return torch.tensor(list(order))


def _radical_inverse(index: int, base: int) -> float:
    """Digits of `index` mirrored at the point: the van der Corput sequence in [0, 1)."""
    value, weight = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value, weight = value + digit * weight, weight / base
    return value
