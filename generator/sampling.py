"""Sampling codes level by level, masked within a level: pure functions over a predictor.

    B images · T cells of all levels · n cells of one level · m cells with logits at a step · L levels
    K codes; the integer K is the mask · C channels and (h, w) grid of the latent

Nothing here knows a model, a decoder, a file or a device: integers, the value table and the predictor's logits only.
Every image has its own random generator and draws the same numbers whatever else is in the batch, so neither batch
size nor order changes an image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.layout import CodeLayout, Grid
from coda.tokenizer.quantizer.resampling import upsample

from .masking import halton_order, masked_after_step

ORDERS = ("confidence", "halton", "random")

# predict(codes (B, n) of one level, prefix (B, C, h, w), level, cells (B, m), guidance scale)
#   -> blocks of logits (r, K); all blocks together are the B·m rows of `cells`, in order
Predict = Callable[[torch.Tensor, torch.Tensor, int, torch.Tensor, float], Iterable[torch.Tensor]]

# draw(logits (r, K), uniform (r,)) -> codes (r,) and their log-probabilities (r,)
Draw = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class SamplingStep:
    """The state of sampling after one step, or at the end of a level.

    Attributes:
        level: Level being filled.
        step: Step within the level, from 0.
        index: Step within the whole sampling, from 0.
        total: Steps of all levels together.
        codes: (B, T) int64, K where a cell is still masked.
        prefix: (B, C, h, w), the prefix latent before this level; at the end of a level, with the level added.
    """

    level: int
    step: int
    index: int
    total: int
    codes: torch.Tensor
    prefix: torch.Tensor


# Called with the state; codes (B, T) that it returns replace those sampled so far.
Hook = Callable[[SamplingStep], torch.Tensor | None]


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
    mask_schedule: str = "cosine",
    top_k: int = 0,
    top_p: float = 1.0,
    redraw: float = 0.0,
    guidance: Callable[[float], float] = lambda progress: 1.0,
    known: tuple[torch.Tensor, torch.Tensor] | None = None,
    on_step: Hook | None = None,
    on_level_end: Hook | None = None,
) -> torch.Tensor:
    """Sample the codes of B images: the loop over levels.

    Args:
        predict: Gives logits for chosen cells of one level; see `Predict`.
        layout: Layout of the codes.
        value_table: (K, C); sampling runs on its device.
        steps: Steps per level, L numbers ≥ 1.
        generators: One per image; their number is B.
        order: "confidence" (MaskGIT: most confident cells first), "halton" or "random" (both known in advance, so
            logits are computed only for the cells that a step fills).
        temperature: Divides the logits; 0 takes the most likely code.
        confidence_noise: Gumbel noise on the confidence, annealed to 0 over a level's steps ("confidence" only).
        mask_schedule: Schedule of `mask_ratio`; the model was trained with one of them.
        top_k: Draw from the k most likely codes only; 0 for all.
        top_p: Draw from the most likely codes that together have this probability.
        redraw: Share of a finished level's cells that are masked and drawn once more, without guidance: those whose
            codes were least likely when they were drawn (as HMAR, arXiv 2506.04421, and SRDD, 2509.22636).
        guidance: Guidance scale as a function of progress in [0, 1] through all steps.
        known: (codes (B, T), keep (B, T) bool): cells that are given and stay as they are.
        on_step: Called after every step.
        on_level_end: Called after a level's last step, before the next level starts.

    Returns:
        Codes (B, T) int64.
    """
    device = value_table.device
    codes = torch.full((len(generators), layout.num_tokens), layout.codebook_size, device=device)
    if known is not None:
        codes = torch.where(*_check_known(known, layout, codes))
    prefix = value_table.new_zeros(len(generators), value_table.shape[1], *layout.grid, dtype=torch.float32)
    for level, grid in enumerate(layout.sides):
        codes = fill_level(
            predict,
            layout,
            codes,
            prefix,
            level,
            steps,
            draw_noise(generators, steps[level] + (redraw > 0), grid, device),
            order=order,
            confidence_noise=confidence_noise,
            mask_schedule=mask_schedule,
            draw=partial(draw_codes, temperature=temperature, top_k=top_k, top_p=top_p),
            redraw=redraw,
            guidance=guidance,
            on_step=on_step,
        )
        values = F.embedding(layout.split(codes)[level], value_table).movedim(-1, 1).float()  # (B, C, h_l, w_l)
        prefix = prefix + upsample(values, layout.grid)
        if on_level_end is not None:
            total, index = sum(steps), sum(steps[: level + 1]) - 1
            replaced = on_level_end(SamplingStep(level, steps[level] - 1, index, total, codes, prefix))
            codes = codes if replaced is None else replaced
    return codes


def fill_level(
    predict: Predict,
    layout: CodeLayout,
    codes: torch.Tensor,
    prefix: torch.Tensor,
    level: int,
    steps: Sequence[int],
    noise: LevelNoise,
    *,
    order: str,
    confidence_noise: float,
    mask_schedule: str,
    draw: Draw,
    redraw: float,
    guidance: Callable[[float], float],
    on_step: Hook | None = None,
) -> torch.Tensor:
    """Fill the masked cells of one level: the loop over steps.

    `codes` (B, T) are K where a cell is masked, `prefix` (B, C, h, w) is the prefix latent before the level, `draw` is
    `draw_codes` with its settings; all else is as in `sample_codes`. Returns codes (B, T) in which no cell of the level
    is masked.
    """
    mask, index, total = layout.codebook_size, sum(steps[:level]), sum(steps)
    cells = slice(layout.offsets[level], layout.offsets[level + 1])
    ranks = _planned_ranks(order, layout.sides[level], noise)
    masked_after = masked_after_step((codes[:, cells] == mask).sum(dim=1), steps[level], mask_schedule)  # (steps, B)
    likelihood = torch.full_like(noise.gumbel[:, 0], torch.inf)  # (B, n) log p of the codes that are drawn here
    for step in range(steps[level]):
        filled = codes[:, cells]
        masked = filled == mask
        count = masked.sum(dim=1) - masked_after[step]  # (B,) cells that this step fills
        # Logits are needed for all masked cells to rank them by confidence, else for those to be filled.
        needed = masked.sum(dim=1) if ranks is None else count
        fills, most = torch.stack([count.max(), needed.max()]).tolist()  # the one wait for the device in a step
        if fills > 0:
            position = (~masked).long() if ranks is None else torch.where(masked, ranks, ranks.shape[1])
            chosen = position.argsort(dim=1, stable=True)[:, :most]  # (B, m)
            logits = predict(filled, prefix, level, chosen, guidance((index + 0.5) / total))
            drawn, log_p = _draw_cells(logits, noise.choice[:, step].gather(1, chosen), draw)
            place = torch.arange(chosen.shape[1], device=codes.device)
            if ranks is None:  # MaskGIT, Section 3.2: the most confident first, with annealed Gumbel noise
                annealed = confidence_noise * (1 - (step + 1) / steps[level])
                score = log_p + annealed * noise.gumbel[:, step].gather(1, chosen)
                score = score.masked_fill(place >= needed[:, None], -torch.inf)
                place = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
            new = place < count[:, None]
            kept = torch.where(new, drawn, filled.gather(1, chosen))
            likelihood = likelihood.scatter(1, chosen, log_p.where(new, likelihood.gather(1, chosen)))
            codes = _with_level(codes, cells, filled.scatter(1, chosen, kept))
        replaced = on_step(SamplingStep(level, step, index, total, codes, prefix)) if on_step is not None else None
        codes = codes if replaced is None else replaced
        index += 1
    count = (redraw * likelihood.isfinite().sum(dim=1)).long()  # (B,) cells that are drawn once more
    if redraw and (most := int(count.max())) > 0:
        filled, chosen = codes[:, cells], likelihood.argsort(dim=1, stable=True)[:, :most]  # (B, m)
        new, old = torch.arange(chosen.shape[1], device=codes.device) < count[:, None], filled.gather(1, chosen)
        logits = predict(filled.scatter(1, chosen, old.masked_fill(new, mask)), prefix, level, chosen, 1.0)
        drawn, _ = _draw_cells(logits, noise.choice[:, -1].gather(1, chosen), draw)
        codes = _with_level(codes, cells, filled.scatter(1, chosen, drawn.where(new, old)))
    return codes


def _with_level(codes: torch.Tensor, cells: slice, level: torch.Tensor) -> torch.Tensor:
    """Codes (B, T) with one level (B, n) replaced."""
    return torch.cat([codes[:, : cells.start], level, codes[:, cells.stop :]], dim=1)


@dataclass(frozen=True)
class LevelNoise:
    """Random numbers of B images for one level.

    Attributes:
        choice: (B, steps, n), uniform in [0, 1), decides which code is drawn.
        gumbel: (B, steps, n), Gumbel noise on the confidence; the first step's also sorts the random order.
        roll: (B,), uniform in [0, 1), by how much the Halton order is rolled.
    """

    choice: torch.Tensor
    gumbel: torch.Tensor
    roll: torch.Tensor


def draw_noise(generators: Sequence[torch.Generator], steps: int, grid: Grid, device: torch.device) -> LevelNoise:
    """Draw a level's noise, image by image: 2 · steps · n + 1 numbers each, whatever the order and the known cells."""
    cells = grid[0] * grid[1]
    uniform = [torch.rand(2 * steps * cells + 1, generator=g, device=g.device).to(device) for g in generators]
    noise = torch.stack(uniform)
    choice, gumbel = noise[:, 1:].unflatten(1, (2, steps, cells)).unbind(1)
    return LevelNoise(choice, -torch.log(-torch.log(gumbel.clamp(min=1e-12))), noise[:, 0])


def _planned_ranks(order: str, grid: Grid, noise: LevelNoise) -> torch.Tensor | None:
    """Rank (B, n) of every cell in an order known in advance; None for the order by confidence."""
    if order == "confidence":
        return None
    if order == "random":
        return noise.gumbel[:, 0].argsort(dim=1).argsort(dim=1)
    if order == "halton":
        ranks = halton_order(grid).to(noise.roll.device).argsort()
        roll = (noise.roll * len(ranks)).long()
        return (ranks + roll[:, None]) % len(ranks)
    raise CodaError(f"order {order!r} is not one of {', '.join(ORDERS)}")


def _draw_cells(blocks: Iterable[torch.Tensor], uniform: torch.Tensor, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a code for every chosen cell, block by block: codes and their log-probabilities, both (B, m)."""
    flat, drawn, first = uniform.flatten(), [], 0
    for logits in blocks:
        drawn.append(draw(logits, flat[first : first + len(logits)]))
        first += len(logits)
    assert first == len(flat), "the predictor returned logits for another number of cells"
    codes, log_p = (torch.cat(parts).view_as(uniform) for parts in zip(*drawn, strict=True))
    return codes, log_p


def draw_codes(
    logits: torch.Tensor, uniform: torch.Tensor, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one code per row by inverting the cumulative distribution: one random number per row instead of K.

    Takes logits (r, K), `uniform` (r,) in [0, 1), a temperature, 0 for the most likely code, and which codes may be
    drawn (see `sample_codes`). Returns codes (r,) int64 and their log-probabilities (r,).
    """
    largest, best = logits.max(dim=1, keepdim=True)
    # exp is many times slower on a CPU where it underflows; e^-80 is negligible beside the largest logit's 1.
    logits = logits.sub(largest).div_(temperature or 1.0).clamp_(min=-80)
    mass = _most_likely(logits.exp(), top_k, top_p).cumsum(dim=1)  # (r, K), cumulative and not normalized
    total = mass[:, -1:]
    # 1 - uniform is in (0, 1], so the code found has probability > 0 at both ends.
    codes = best if temperature == 0 else torch.searchsorted(mass, (1 - uniform[:, None]) * total)
    return codes[:, 0], (logits.gather(1, codes) - total.log())[:, 0]


def _most_likely(mass: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """Mass (r, K), 0 where a code is not among the most likely ones."""
    if 0 < top_k < mass.shape[1]:
        mass = mass.where(mass >= mass.topk(top_k, dim=1).values[:, -1:], 0.0)
    if top_p < 1:
        ordered = mass.sort(dim=1, descending=True).values
        before = ordered.cumsum(dim=1) - ordered  # mass of the codes that are more likely
        least = ordered.masked_fill(before >= top_p * mass.sum(dim=1, keepdim=True), torch.inf).amin(
            dim=1, keepdim=True
        )
        mass = mass.where(mass >= least, 0.0)
    return mass


def _check_known(
    known: tuple[torch.Tensor, torch.Tensor], layout: CodeLayout, codes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(keep, known codes, masked codes), for `torch.where`."""
    given, keep = (part.to(codes.device) for part in known)
    if given.shape != codes.shape or keep.shape != codes.shape:
        shapes = f"{tuple(given.shape)} and {tuple(keep.shape)}"
        raise CodaError(f"known codes and mask are {shapes}; both must be {tuple(codes.shape)}, one row per image")
    if bool((keep & ((given < 0) | (given >= layout.codebook_size))).any()):
        raise CodaError(f"known codes must be in [0, {layout.codebook_size})")
    return keep.bool(), given.long(), codes
