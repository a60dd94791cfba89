"""Numbers as functions of progress: mask ratios, guidance, steps per level, learning rate. All pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.layout import CodeLayout

MASK_LAWS = ("cosine", "arccos", "linear")
GUIDANCE_SCHEDULES = ("constant", "linear", "cosine")


def mask_ratio(progress: torch.Tensor, law: str = "cosine") -> torch.Tensor:
    """Share of a level's cells that is still masked at `progress`; training and sampling share this law.

    Args:
        progress: Any shape, in [0, 1]. Sampling goes from 0 to 1; training draws it uniformly.
        law: "cosine" (MaskGIT, arXiv 2202.04200, Section 3.3), "arccos" (Halton-MaskGIT, arXiv 2503.17076, few cells
            at first and at last) or "linear".

    Returns:
        Same shape, from 1 at progress 0 down to 0 at progress 1.
    """
    if law == "cosine":
        return torch.cos(progress * (math.pi / 2)).clamp(0, 1)
    if law == "arccos":
        return torch.acos(progress) * (2 / math.pi)
    if law == "linear":
        return 1 - progress
    raise CodaError(f"mask law {law!r} is none of {', '.join(MASK_LAWS)}")


def guidance_scale_at(
    progress: float, scale: float, schedule: str = "constant", interval: tuple[float, float] = (0.0, 1.0)
) -> float:
    """Scale of classifier-free guidance at `progress` through all steps of all levels; 1 is no guidance.

    Args:
        progress: In [0, 1].
        scale: The scale in full, as diffusers counts it: unconditional + scale · (conditional − unconditional) logits.
        schedule: "constant"; "linear", growing from 1 to `scale` over the interval; "cosine", the same, later
            (MDT, arXiv 2303.14389, Equation 6, with power 1).
        interval: Where guidance acts at all; outside of it the scale is 1 and its half of the work is saved
            (arXiv 2404.07724).
    """
    first, last = interval
    if not first <= progress <= last:
        return 1.0
    within = (progress - first) / (last - first) if last > first else 1.0
    if schedule == "constant":
        return scale
    if schedule == "linear":
        return 1 + (scale - 1) * within
    if schedule == "cosine":
        return 1 + (scale - 1) * (1 - math.cos(math.pi * within)) / 2
    raise CodaError(f"guidance schedule {schedule!r} is none of {', '.join(GUIDANCE_SCHEDULES)}")


def steps_per_level(steps: int | Sequence[int], layout: CodeLayout) -> tuple[int, ...]:
    """One number of steps shared out over the levels, or one number per level taken as it is.

    A total is shared in proportion to the square root of a level's cells: every level gets one step at least and no
    more than it has cells. Sides 1 2 3 4 6 8 take 16 steps as 1 1 2 3 4 5.

    Raises:
        CodaError: Fewer steps than levels, or not one number per level.
    """
    if not isinstance(steps, int):
        given = tuple(int(n) for n in steps)
        if len(given) != layout.num_levels or min(given) < 1:
            raise CodaError(
                f"steps {' '.join(map(str, given))}: give one number, or one of at least 1 for each of the "
                f"{layout.num_levels} levels"
            )
        return given
    if steps < layout.num_levels:
        raise CodaError(f"{steps} steps are too few: each of the {layout.num_levels} levels takes one at least")
    cells = [h * w for h, w in layout.sides]
    shared = [1] * layout.num_levels
    for _ in range(min(steps, sum(cells)) - layout.num_levels):
        # The level that is furthest behind its share takes the next step; of equals, the later one.
        waiting = [i for i in range(layout.num_levels) if shared[i] < cells[i]]
        shared[max(waiting, key=lambda i: (math.sqrt(cells[i]) / (shared[i] + 0.5), i))] += 1
    return tuple(shared)


def learning_rate_at(step: int, peak: float, warmup: int, steps: int, decay: str = "cosine") -> float:
    """Learning rate of step `step` (from 0): a linear warm-up, then "cosine" down to a hundredth, or "constant"."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if decay == "constant":
        return peak
    if decay == "cosine":
        progress = (step - warmup) / max(1, steps - warmup)
        return peak * (0.01 + 0.99 * (1 + math.cos(math.pi * min(1.0, progress))) / 2)
    raise CodaError(f"learning-rate decay {decay!r} is neither cosine nor constant")
