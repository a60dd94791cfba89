"""A start from the data: residual k-means for the codebook, then attention that retrieves the nearest code.

A random start must learn to retrieve before it can learn to represent. Here the codebook is fitted first, and the
quantizer's projections are set so that its argmax over attention logits is the nearest neighbor
(`initialize_nearest_neighbor` derives it). Training then only improves on residual k-means.

Shapes: N latents, C channels, K codes; V vectors, of all latents, levels and cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from ..foundation.errors import CodaError
from ..foundation.progress import progress
from ..foundation.seeding import step_generator
from ..layout import CodeLayout
from .resampling import downsample, upsample
from .residual_quantizer import ResidualQuantizer
from .retrieval import argmax_codes

_REMEMBERED = 0.5  # of the earlier iterations' sums: an iteration that sees part of the data does not forget the rest
_WIDTH = 64.0  # M in units of the spread
_DEAD = 0.5  # a code that stands for less than this share of a vector is dead


@torch.no_grad()
def residual_kmeans(
    latents: torch.Tensor,
    sides: Sequence[int | Sequence[int]],
    codebook_size: int,
    iterations: int = 15,
    vectors_per_code: int = 64,
    seed: int = 0,
) -> torch.Tensor:
    """Fit one codebook for all levels to latents.

    Every iteration quantizes latents level by level with the codebook as it stands (each level sees what the earlier
    ones left, quantization errors included), then moves each code to the mean of the vectors that chose it, whatever
    level they came from. Codes that no vector chose are put where the error is large.

    Args:
        latents: (N, C, h, w), normalised; h × w is the last side.
        sides: Grids of the levels, from coarse to fine.
        codebook_size: K.
        iterations: Passes of Lloyd's algorithm.
        vectors_per_code: One iteration sees about this many vectors per code, drawn anew each time; all if there are
            fewer.
        seed: Of every random choice.

    Returns:
        (K, C) float32, on the latents' device.

    Raises:
        CodaError: The latents give fewer vectors than the codebook has codes.
    """
    layout = CodeLayout(sides, codebook_size)
    assert tuple(latents.shape[-2:]) == layout.grid, f"latents {tuple(latents.shape)} do not fit {layout}"
    if len(latents) * layout.num_tokens < codebook_size:
        least = -(-codebook_size // layout.num_tokens)
        raise CodaError(
            f"{len(latents)} images give {len(latents) * layout.num_tokens} vectors for {codebook_size} codes; "
            f"k-means needs at least {least} images, or a smaller codebook"
        )
    latents = latents.float()
    sample_size = min(len(latents), -(-vectors_per_code * codebook_size // layout.num_tokens))
    codebook = _first_codebook(latents, layout, seed)
    sums = torch.zeros_like(codebook)
    counts = codebook.new_zeros(codebook_size)
    with progress("Fitting the codebook", total=iterations, unit="iterations") as bar:
        for iteration in range(iterations):
            generator = step_generator(seed, iteration, "kmeans")
            chosen = torch.randperm(len(latents), generator=generator)[:sample_size].to(latents.device)
            vectors, codes, errors = _quantize(latents[chosen], layout, codebook)
            sums.mul_(_REMEMBERED).index_add_(0, codes, vectors)
            counts.mul_(_REMEMBERED).add_(torch.bincount(codes, minlength=codebook_size))
            dead = (counts < _DEAD).nonzero().squeeze(1)
            codebook = torch.where(counts[:, None] < _DEAD, codebook, sums / counts.clamp(min=_DEAD)[:, None])
            if len(dead) and iteration + 1 < iterations:
                # On the CPU, so that a device's own generator has no say. In proportion to the squared error.
                seeds = _draw(errors.cpu(), len(dead), generator).to(vectors.device)
                codebook[dead] = vectors[seeds]
                sums[dead], counts[dead] = vectors[seeds], 1.0
            bar.advance(error=float(errors.mean()) / latents.shape[1], dead=len(dead))
    return codebook


def _quantize(
    latents: torch.Tensor, layout: CodeLayout, codebook: torch.Tensor, batch_size: int = 1024
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Residual quantization by nearest neighbour.

    Returns:
        The vectors that the levels saw (V, C), their codes (V,), their squared errors (V,).
    """
    # argmin |r − e|² = argmax r·e − |e|²/2: one more column makes it a search for the largest logit.
    keys = torch.cat([codebook, -codebook.square().sum(dim=1, keepdim=True) / 2], dim=1)
    seen, chosen, errors = [], [], []
    for residual in latents.split(batch_size):
        for side in layout.sides:
            level = downsample(residual, side)
            vectors = level.movedim(1, -1).flatten(0, 2)  # (n, C)
            codes, _ = argmax_codes(F.pad(vectors, (0, 1), value=1.0), keys)
            values = codebook[codes]
            seen.append(vectors)
            chosen.append(codes)
            errors.append((vectors - values).square().sum(dim=1))
            residual = residual - upsample(values.reshape(len(level), *side, -1).movedim(-1, 1), layout.grid)
    return torch.cat(seen), torch.cat(chosen), torch.cat(errors)


def _first_codebook(latents: torch.Tensor, layout: CodeLayout, seed: int) -> torch.Tensor:
    """K vectors drawn from what the levels would see if each earlier level had been told exactly, (K, C)."""
    generator = step_generator(seed, 0, "first codebook")
    enough = -(-4 * layout.codebook_size // layout.num_tokens)
    chosen = torch.randperm(len(latents), generator=generator)[: max(enough, 1)].to(latents.device)
    residual, vectors = latents[chosen], []
    for side in layout.sides:
        level = downsample(residual, side)
        vectors.append(level.movedim(1, -1).flatten(0, 2))
        residual = residual - upsample(level, layout.grid)
    pool = torch.cat(vectors)
    drawn = torch.randperm(len(pool), generator=generator)[: layout.codebook_size]
    return pool[drawn.to(pool.device)].clone()


def _draw(weights: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` indices drawn in proportion to weights (V,); V may be beyond what `torch.multinomial` takes."""
    cumulative = weights.double().cumsum(0)
    places = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, places).clamp_(max=len(weights) - 1)


@torch.no_grad()
def initialize_nearest_neighbor(
    quantizer: ResidualQuantizer, codebook: torch.Tensor, spread: float | None = None, softness: float | None = None
) -> None:
    """Set the quantizer so that it retrieves the nearest code of `codebook`.

    With M = 64 times the spread and an isometry B of R^(C+1) into the attention's R^d,

        to_q(r) = B (r, M),    to_k(e) = B (e, M),    to_v(e) = e

    RMS normalisation brings both to length √d, so that for r and e small beside M

        q̂·k̂ / √d = √d cos ≈ √d (1 − |r − e|² / 2M²),

    largest for the nearest code. The norms' weights g then set how soft the retrieval is: g² = M² / (σ² √d) makes the
    logits −|r − e|² / 2σ² and a constant. Where codes lie densely beside σ, the gradient of the soft retrieval is that
    of the identity; where they lie far apart, it vanishes. Layer normalisation takes the mean off before: nothing
    changes where B maps to vectors of mean 0.

    A larger M brings the cosine closer to the distance and leaves fewer of float32's bits to tell codes apart: 64 is
    the measured best.

    Args:
        quantizer: With a norm, and attention wider than C by 1 (layer_norm: by 2) at least.
        codebook: (K, C).
        spread: Root mean square of the latents' channels; the codebook's own if None.
        softness: σ in the latents' units; if None, half the distance per channel between neighbouring codes.

    Raises:
        CodaError: The quantizer cannot be set so.
    """
    norm_q, norm_k = quantizer.norm_q, quantizer.norm_k
    d, c = quantizer.to_q.weight.shape
    mean_free = isinstance(norm_q, nn.LayerNorm)
    if isinstance(norm_q, nn.Identity):
        raise CodaError("the start from k-means needs norm rms_norm or layer_norm; without a norm keys have no |e|²")
    if d < c + 1 + mean_free:
        raise CodaError(f"the start from k-means needs an attention width of {c + 1 + mean_free} at least, not {d}")
    assert quantizer.codebook.weight.shape[1] >= c, "a codebook narrower than the latent cannot hold it"

    m = _WIDTH * (spread or float(codebook.square().mean().sqrt()))
    sigma = softness or _neighbour_distance(codebook) / 2
    basis = torch.eye(d, dtype=torch.float64)
    if mean_free:  # columns 1… of a reflection that takes the first axis to (1, …, 1)/√d are orthogonal to that one
        ones = torch.full((d,), d**-0.5, dtype=torch.float64)
        mirror = ones - basis[0]
        basis = (basis - 2 * torch.outer(mirror, mirror) / mirror.square().sum())[:, 1:]
    for linear in (quantizer.to_q, quantizer.to_k):
        linear.weight.zero_()
        linear.weight[:, :c] = basis[:, :c]
        linear.bias.copy_(m * basis[:, c])
    quantizer.to_v.weight.zero_()
    quantizer.to_v.weight[:, :c] = torch.eye(c)
    quantizer.to_v.bias.zero_()
    quantizer.codebook.weight.zero_()
    quantizer.codebook.weight[:, :c] = codebook
    for norm in (norm_q, norm_k):
        assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
        nn.init.constant_(norm.weight, m / sigma / d**0.25)
        if isinstance(norm, nn.LayerNorm):
            nn.init.zeros_(norm.bias)


def _neighbour_distance(codebook: torch.Tensor, sample: int = 2048) -> float:
    """Root mean square, per channel, of the distance between a code and the one nearest to it."""
    some = codebook[:: max(1, len(codebook) // sample)]
    nearest = torch.cdist(some, codebook).topk(2, largest=False).values[:, 1]
    return float(nearest.square().mean().div(codebook.shape[1]).sqrt().clamp(min=1e-6))
