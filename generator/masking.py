"""Which cells are masked: at random in training, fewer with every step in sampling; and the order of filling them.

B images · T cells of all levels · n cells of one level · L levels · K codes; the integer K is the mask
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import torch

from coda.tokenizer.layout import CodeLayout, Grid

from .schedules import mask_ratio


@dataclass(frozen=True)
class TrainingDraw:
    """All random choices of one training step, for B images: a whole batch, or the share of one process.

    Attributes:
        masked: (B, T) bool, the cells to predict; at least one per level and image.
        corrupted: (B, T) bool, the cells whose code is replaced before the prefix latent is computed.
        source_images: (B,) int64, the image of the whole batch whose codes replace the corrupted ones.
        unconditional: (B,) bool, the images whose class is dropped.
        mean_masked: (L,) float32, masked cells of each level of an image, on average over the whole batch.
        cells: (M,) int64, the masked cells by their index in the flattened `masked`. They are counted before the draw
            goes to an accelerator, which would have to be waited for.
    """

    masked: torch.Tensor
    corrupted: torch.Tensor
    source_images: torch.Tensor
    unconditional: torch.Tensor
    mean_masked: torch.Tensor
    cells: torch.Tensor = None  # type: ignore[assignment]  # follows from `masked`

    def __post_init__(self) -> None:
        if self.cells is None:
            object.__setattr__(self, "cells", self.masked.flatten().nonzero()[:, 0])

    def rows(self, first: int, last: int) -> TrainingDraw:
        """The share [first, last) of the batch."""
        part = slice(first, last)
        return TrainingDraw(
            self.masked[part],
            self.corrupted[part],
            self.source_images[part],
            self.unconditional[part],
            self.mean_masked,
        )

    def to(self, device: torch.device) -> TrainingDraw:
        """The same draw on a device."""
        return TrainingDraw(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def draw_training(
    layout: CodeLayout,
    batch_size: int,
    generator: torch.Generator,
    mask_schedule: str = "cosine",
    corruption: float = 0.0,
    class_dropout: float = 0.0,
    mask_all: float = 0.0,
) -> TrainingDraw:
    """Draw the random choices of a training step; the same generator state gives the same draw on any machine.

    Args:
        layout: Layout of the codes.
        batch_size: B.
        generator: A CPU generator.
        mask_schedule: Schedule of `mask_ratio`; each level of each image draws its own ratio.
        corruption: Largest share of an image's codes that are corrupted; each image draws its share uniformly below
            it, so that clean prefixes occur too.
        class_dropout: Probability that an image's class is dropped.
        mask_all: Probability that a level of an image is masked whole, as in the first step of sampling it.
    """
    noise = torch.rand(batch_size, layout.num_tokens, generator=generator)
    ratios = mask_ratio(torch.rand(batch_size, layout.num_levels, generator=generator), mask_schedule)
    share = corruption * torch.rand(batch_size, 1, generator=generator)
    corrupted = torch.rand(batch_size, layout.num_tokens, generator=generator) < share
    source_images = torch.randperm(batch_size, generator=generator)
    unconditional = torch.rand(batch_size, generator=generator) < class_dropout
    ratios[torch.rand(ratios.shape, generator=generator) < mask_all] = 1.0
    masked, mean_masked = [], []
    for level, grid in enumerate(layout.split(noise)):
        ranks = grid.flatten(1).argsort(dim=1).argsort(dim=1)
        cells = ranks.shape[1]
        count = (ratios[:, level : level + 1] * cells).ceil().clamp(1, cells)
        masked.append(ranks < count)
        mean_masked.append(masked[-1].sum() / batch_size)
    return TrainingDraw(torch.cat(masked, dim=1), corrupted, source_images, unconditional, torch.stack(mean_masked))


def masked_after_step(unfilled: torch.Tensor, steps: int, mask_schedule: str = "cosine") -> torch.Tensor:
    """How many cells of a level are still masked after each step.

    Args:
        unfilled: (B,) int64, cells masked before the first step.
        steps: Steps that the level takes.
        mask_schedule: Schedule of `mask_ratio`.

    Returns:
        (steps, B) int64: floor(unfilled · ratio), but every step fills at least one cell as long as any is masked; the
        last row is 0.
    """
    step = torch.arange(steps, device=unfilled.device)[:, None]
    ratio = mask_ratio((step + 1).double() / steps, mask_schedule)
    scheduled = (unfilled * ratio).floor().long()
    return ((scheduled + step).cummin(dim=0).values - step).clamp(min=0)


@lru_cache(maxsize=64)
def halton_order(grid: Grid) -> torch.Tensor:
    """Order in which the Halton sequence (bases 2 and 3) visits the cells of a grid: a permutation, (h·w,) int64.

    Neighbors in the order are far apart on the grid (Halton-MaskGIT, arXiv 2503.17076, Section 3.2).
    """
    h, w = grid
    order: dict[int, None] = {}
    index = 0
    while len(order) < h * w:
        order[int(_radical_inverse(index, 2) * h) * w + int(_radical_inverse(index, 3) * w)] = None
        index += 1
    return torch.tensor(list(order))


def _radical_inverse(index: int, base: int) -> float:
    """Digits of `index` mirrored at the radix point: the van der Corput sequence in [0, 1)."""
    value, weight = 0.0, 1.0 / base
    while index:
        index, digit = divmod(index, base)
        value, weight = value + digit * weight, weight / base
    return value
