"""Sampling codes level by level, masked within a level: pure functions over a predictor.

    B pictures · T cells of all levels · n cells of one level · m cells asked at a step · K codes; the integer K is
    the mask · C channels and (h, w) grid of the latent

Nothing here knows a model, a decoder, a file or a device: integers, the value table and what the predictor says.
Every picture has its own random generator and draws the same numbers from it whatever its neighbours are, so neither
batch size nor order changes a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.layout import CodeLayout, Side
from coda.tokenizer.quantizer.resampling import upsample

from .masking import cells_left, halton_order

ORDERS = ("confidence", "halton", "random")

# predict(codes (B, n) of one level, prefix (B, C, h, w), level, cells (B, m), guidance scale)
#   -> blocks of logits (r, K), that together are the B·m rows asked for, in order
Predict = Callable[[torch.Tensor, torch.Tensor, int, torch.Tensor, float], Iterable[torch.Tensor]]


@dataclass(frozen=True)
class SamplingStep:
    """Where sampling stands after one step.

    Attributes:
        level: Level being filled.
        step: Step within the level, from 0.
        index: Step within the whole sampling, from 0.
        total: Steps in all.
        codes: (B, T) int64, K where a cell is still masked.
        prefix: (B, C, h, w), the prefix latent before this level.
    """

    level: int
    step: int
    index: int
    total: int
    codes: torch.Tensor
    prefix: torch.Tensor


@torch.no_grad()
def sample_codes(
    predict: Predict,
    layout: CodeLayout,
    value_table: torch.Tensor,
    steps: Sequence[int],
    generators: Sequence[torch.Generator],
    *,
    order: str = "confidence",
    temperature: float = 1.0,
    confidence_noise: float = 4.5,
    mask_law: str = "cosine",
    guidance: Callable[[float], float] = lambda progress: 1.0,
    known: tuple[torch.Tensor, torch.Tensor] | None = None,
    on_step: Callable[[SamplingStep], torch.Tensor | None] | None = None,
) -> torch.Tensor:
    """Sample the codes of B pictures: the loop over levels.

    Args:
        predict: Gives logits for the asked cells of one level; see `Predict`.
        layout: Layout of the codes.
        value_table: (K, C); its device is where everything but the noise is made.
        steps: Steps per level, L numbers ≥ 1.
        generators: One per picture; B is their number.
        order: "confidence" (MaskGIT: the surest cells first), "halton" or "random" (both known in advance, so that
            logits are made only for the cells that a step fills).
        temperature: Divides the logits; 0 takes the likeliest code.
        confidence_noise: Gumbel noise on the confidence, annealed to 0 over a level's steps ("confidence" only).
        mask_law: Law of `mask_ratio`, the one trained with.
        guidance: Scale of guidance as a function of progress in [0, 1] through all steps.
        known: (codes (B, T), keep (B, T) bool): cells that are given and stay as they are.
        on_step: Called after every step; codes (B, T) that it returns replace those sampled so far.

    Returns:
        Codes (B, T) int64.
    """
    batch, device, mask = len(generators), value_table.device, layout.codebook_size
    codes = torch.full((batch, layout.num_tokens), mask, device=device)
    if known is not None:
        codes = torch.where(*_checked(known, layout, codes))
    prefix = value_table.new_zeros(batch, value_table.shape[1], *layout.grid, dtype=torch.float32)
    index, total = 0, sum(steps)
    for level, side in enumerate(layout.sides):
        cells = slice(layout.offsets[level], layout.offsets[level + 1])
        noise = _level_noise(generators, steps[level], side, device)

        def after(
            step: int, filled: torch.Tensor, level: int = level, cells: slice = cells, before: torch.Tensor = prefix
        ) -> torch.Tensor:
            """Report a step of this level; returns its codes (B, n), replaced or not."""
            nonlocal codes, index
            codes = torch.cat([codes[:, : cells.start], filled, codes[:, cells.stop :]], dim=1)
            replaced = on_step(SamplingStep(level, step, index, total, codes, before)) if on_step else None
            codes = codes if replaced is None else replaced
            index += 1
            return codes[:, cells]

        fill_level(
            predict,
            codes[:, cells],
            prefix,
            level,
            side,
            noise,
            mask=mask,
            order=order,
            temperature=temperature,
            confidence_noise=confidence_noise,
            mask_law=mask_law,
            guidance=[guidance((index + step + 0.5) / total) for step in range(steps[level])],
            after_step=after,
        )
        values = F.embedding(codes[:, cells].unflatten(1, side), value_table)
        prefix = prefix + upsample(values.movedim(-1, 1).float(), layout.grid)
    return codes


def fill_level(
    predict: Predict,
    codes: torch.Tensor,
    prefix: torch.Tensor,
    level: int,
    side: Side,
    noise: LevelNoise,
    *,
    mask: int,
    order: str,
    temperature: float,
    confidence_noise: float,
    mask_law: str,
    guidance: Sequence[float],
    after_step: Callable[[int, torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """Fill the masked cells of one level: the loop over steps.

    Args:
        predict: See `Predict`.
        codes: (B, n), `mask` where a cell is to be filled.
        prefix: (B, C, h, w).
        level: Which level it is.
        side: Its side; h_l · w_l = n.
        noise: What the pictures' generators gave for this level.
        mask: The integer that stands for a masked cell, K.
        order: One of `ORDERS`.
        temperature: Divides the logits.
        confidence_noise: Size of the annealed noise.
        mask_law: Law of `mask_ratio`.
        guidance: Scale per step; its length is the number of steps.
        after_step: Takes (step, codes (B, n)) and returns the codes to go on with.

    Returns:
        (B, n) without any masked cell.
    """
    steps = len(guidance)
    left = cells_left((codes == mask).sum(dim=1), steps, mask_law)  # (steps, B)
    ranks = _planned_ranks(order, side, noise)
    for step in range(steps):
        masked = codes == mask
        take = masked.sum(dim=1) - left[step]  # (B,) cells that this step fills
        if int(take.max()) > 0:
            if ranks is None:
                asked = masked.sum(dim=1)
                cells = (~masked).long().argsort(dim=1, stable=True)[:, : int(asked.max())]
            else:
                asked = take
                cells = torch.where(masked, ranks, ranks.shape[1]).argsort(dim=1, stable=True)[:, : int(asked.max())]
            drawn, log_p = _draw_cells(
                predict(codes, prefix, level, cells, guidance[step]),
                noise.choice[:, step].gather(1, cells),
                temperature,
            )
            places = torch.arange(cells.shape[1], device=codes.device)
            if ranks is None:  # MaskGIT, Section 3.2: the surest first, with noise that dies away
                annealed = confidence_noise * (1 - (step + 1) / steps)
                score = log_p + annealed * noise.gumbel[:, step].gather(1, cells)
                score = score.masked_fill(places >= asked[:, None], -torch.inf)
                places = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            kept = torch.where(places < take[:, None], drawn, codes.gather(1, cells))
            codes = codes.scatter(1, cells, kept)
        codes = after_step(step, codes)
    return codes


@dataclass(frozen=True)
class LevelNoise:
    """What B pictures draw for one level: uniform numbers in [0, 1).

    Attributes:
        choice: (B, steps, n), which code is drawn.
        gumbel: (B, steps, n), Gumbel noise on the confidence; its first step also sorts the random order.
        roll: (B,), how far the Halton order is rolled.
    """

    choice: torch.Tensor
    gumbel: torch.Tensor
    roll: torch.Tensor


def _level_noise(generators: Sequence[torch.Generator], steps: int, side: Side, device: torch.device) -> LevelNoise:
    """Draw a level's noise, picture by picture.

    A picture takes the same numbers from its generator for a level whatever is known of it, whatever the order and
    whoever its neighbours are: 2 · steps · n + 1, nothing that grows with K.
    """
    cells = side[0] * side[1]
    uniform = [torch.rand(2 * steps * cells + 1, generator=g, device=g.device).to(device) for g in generators]
    noise = torch.stack(uniform)
    choice, gumbel = noise[:, 1:].unflatten(1, (2, steps, cells)).unbind(1)
    return LevelNoise(choice, -torch.log(-torch.log(gumbel.clamp(min=1e-12))), noise[:, 0])


def _planned_ranks(order: str, side: Side, noise: LevelNoise) -> torch.Tensor | None:
    """Rank (B, n) of every cell in an order known in advance; None for the order of confidence."""
    if order == "confidence":
        return None
    if order == "random":
        return noise.gumbel[:, 0].argsort(dim=1).argsort(dim=1)
    if order == "halton":
        ranks = halton_order(side).to(noise.roll.device).argsort()
        roll = (noise.roll * len(ranks)).long()
        return (ranks + roll[:, None]) % len(ranks)
    raise CodaError(f"order {order!r} is none of {', '.join(ORDERS)}")


def _draw_cells(
    blocks: Iterable[torch.Tensor], uniform: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a code for every asked cell, block by block; codes and their log-probabilities, both (B, m)."""
    flat, drawn, first = uniform.flatten(), [], 0
    for logits in blocks:
        drawn.append(draw_codes(logits, flat[first : first + len(logits)], temperature))
        first += len(logits)
    assert first == len(flat), "the predictor gave another number of rows than it was asked for"
    codes, log_p = (torch.cat(parts).view_as(uniform) for parts in zip(*drawn, strict=True))
    return codes, log_p


def draw_codes(logits: torch.Tensor, uniform: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one code per row by inverting the distribution function: one random number per row, not K.

    Args:
        logits: (r, K).
        uniform: (r,) in [0, 1).
        temperature: Divides the logits; 0 takes the likeliest code.

    Returns:
        Codes (r,) int64 and their log-probabilities (r,).
    """
    likeliest, best = logits.max(dim=1, keepdim=True)
    # exp is many times slower on a CPU where it underflows; e^-80 is nothing beside the likeliest code's 1.
    logits = logits.sub(likeliest).div_(temperature or 1.0).clamp_(min=-80)
    mass = logits.exp().cumsum(dim=1)  # (r, K) distribution function, not normalised
    total = mass[:, -1:]
    # 1 - uniform is in (0, 1]: a code is found that has mass, even by the extreme numbers.
    codes = best if temperature == 0 else torch.searchsorted(mass, (1 - uniform[:, None]) * total)
    return codes[:, 0], (logits.gather(1, codes) - total.log())[:, 0]


def _checked(
    known: tuple[torch.Tensor, torch.Tensor], layout: CodeLayout, codes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(keep, known codes, masked codes), for `torch.where`."""
    given, keep = (part.to(codes.device) for part in known)
    if given.shape != codes.shape or keep.shape != codes.shape:
        raise CodaError(
            f"known codes {tuple(given.shape)} and what to keep of them {tuple(keep.shape)} must both be "
            f"{tuple(codes.shape)}: one row per picture"
        )
    if bool((keep & ((given < 0) | (given >= layout.codebook_size))).any()):
        raise CodaError(f"known codes lie outside of [0, {layout.codebook_size})")
    return keep.bool(), given.long(), codes
