"""Numbers as functions of progress: mask ratios, guidance, steps per level. All pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral

import torch

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.layout import CodeLayout

MASK_SCHEDULES = ("cosine", "arccos", "linear")
GUIDANCE_SCHEDULES = ("constant", "linear", "cosine")
STEP_SHARES = ("sqrt", "equal")
MOST_STEPS = 10_000  # of one level: each step of a level holds random numbers for all its cells


def mask_ratio(progress: torch.Tensor, schedule: str = "cosine") -> torch.Tensor:
    """Share of a level's cells that is still masked at `progress`; used by training and sampling.

    Args:
        progress: Any shape, in [0, 1]. Sampling goes from 0 to 1; training draws it uniformly.
        schedule: "cosine" (MaskGIT, arXiv 2202.04200, Section 3.3), "arccos" (Halton-MaskGIT, arXiv 2503.17076, few
            cells at the start and at the end) or "linear".

    Returns:
        Same shape, from 1 at progress 0 down to 0 at progress 1.
    """
    if schedule == "cosine":
        return torch.cos(progress * (math.pi / 2)).clamp(0, 1)
    if schedule == "arccos":
        return torch.acos(progress) * (2 / math.pi)
    if schedule == "linear":
        return 1 - progress
    raise CodaError(f"mask schedule {schedule!r} is not one of {', '.join(MASK_SCHEDULES)}")


def guidance_scale_at(
    progress: float, scale: float, schedule: str = "constant", interval: tuple[float, float] = (0.0, 1.0)
) -> float:
    """Scale of classifier-free guidance at `progress` through all steps of all levels; 1 is no guidance.

    Args:
        progress: In [0, 1].
        scale: The full scale, as in diffusers: unconditional + scale · (conditional − unconditional) logits.
        schedule: "constant"; "linear", growing from 1 to `scale` over the interval; "cosine", the same, later
            (MDT, arXiv 2303.14389, Equation 6, with power 1).
        interval: Part of the progress with guidance; outside of it the scale is 1, which saves half of the work
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
    raise CodaError(f"guidance schedule {schedule!r} is not one of {', '.join(GUIDANCE_SCHEDULES)}")


def steps_per_level(steps: int | Sequence[int], layout: CodeLayout, share: str = "sqrt") -> tuple[int, ...]:
    """Steps of each level.

    Args:
        steps: Steps of each level, or one number for all together; then every level gets at least one step, at most as
            many as it has cells.
        layout: Layout of the codes.
        share: How one number is split. "sqrt": in proportion to the square root of a level's cells; sides 1 2 3 4 6 8
            take 16 steps as 1 1 2 3 4 5. "equal": in equal parts, and what is over to the coarser levels, where HMAR
            (arXiv 2506.04421, Section 4.4) finds that steps pay; 1 3 3 3 3 3.

    Raises:
        CodaError: If there are fewer steps than levels, not one number per level, or no such share.
    """
    levels = layout.num_levels
    if share not in STEP_SHARES:
        raise CodaError(f"step share {share!r} is not one of {', '.join(STEP_SHARES)}")
    if not isinstance(steps, Integral):
        given = list(steps) if isinstance(steps, Iterable) else [steps]
        if len(given) != levels or not all(isinstance(n, Integral) and 1 <= n <= MOST_STEPS for n in given):
            expected = f"one number, or one from 1 to {MOST_STEPS:,} for each of the {levels} levels"
            raise CodaError(f"steps {' '.join(map(str, given))}: expected {expected}")
        return tuple(map(int, given))
    if steps < levels:
        raise CodaError(f"{steps} steps are too few: each of the {levels} levels takes at least one")
    cells = [h * w for h, w in layout.sides]
    shared = [1] * levels
    for _ in range(min(int(steps), sum(cells)) - levels):
        # The level furthest behind its share takes the next step; of equals the later one, or the coarser one.
        waiting = [i for i in range(levels) if shared[i] < cells[i]]
        if share == "sqrt":
            shared[max(waiting, key=lambda i: (math.sqrt(cells[i]) / (shared[i] + 0.5), i))] += 1
        else:
            shared[min(waiting, key=lambda i: (shared[i], i))] += 1
    return tuple(shared)
