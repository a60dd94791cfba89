"""Initialization from data: residual k-means for the codebook, then attention that retrieves the nearest code.

From random weights, training must learn retrieval before it can learn a codebook. Here the codebook is fitted first,
and the quantizer's projections are set so that the argmax of the attention logits is the nearest neighbor
(`initialize_nearest_neighbor` has the derivation). Training starts from residual k-means and improves on it.

Shapes: N latents, C channels, K codes; V vectors of all latents, levels and cells.
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

_MOMENTUM = 0.5  # weight of earlier iterations' sums, since an iteration may see only part of the data
_WIDTH = 64.0  # M in units of the spread
_DEAD = 0.5  # a code with fewer vectors than this is dead


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

    Every iteration quantizes latents level by level with the current codebook (each level quantizes the residual of the
    previous ones), then moves each code to the mean of the vectors that were assigned to it, at any level. Codes
    without vectors move to vectors with a large error.

    Args:
        latents: (N, C, h, w), normalized; h × w is the last side.
        sides: Grids of the levels, from coarse to fine.
        codebook_size: K.
        iterations: Number of iterations of Lloyd's algorithm.
        vectors_per_code: Approximate number of vectors per code in an iteration, drawn again each time; all vectors
            if there are fewer.
        seed: Seed for all randomness.

    Returns:
        (K, C) float32, on the latents' device.

    Raises:
        CodaError: If the latents give fewer vectors than the codebook has codes, or are not finite.
    """
    layout = CodeLayout(sides, codebook_size)
    assert tuple(latents.shape[-2:]) == layout.grid, f"latents {tuple(latents.shape)} do not fit {layout}"
    if len(latents) * layout.num_tokens < codebook_size:
        least = -(-codebook_size // layout.num_tokens)
        raise CodaError(
            f"{len(latents)} images give {len(latents) * layout.num_tokens} vectors for {codebook_size} codes; "
            f"k-means needs at least {least} images, or a smaller codebook"
        )
    if not bool(latents.isfinite().all()):
        raise CodaError("latents hold NaN or infinite values: the images or the VAE's weights are damaged")
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
            sums.mul_(_MOMENTUM).index_add_(0, codes, vectors)
            counts.mul_(_MOMENTUM).add_(torch.bincount(codes, minlength=codebook_size))
            dead = (counts < _DEAD).nonzero().squeeze(1)
            codebook = torch.where(counts[:, None] < _DEAD, codebook, sums / counts.clamp(min=_DEAD)[:, None])
            if len(dead) and iteration + 1 < iterations:
                # In proportion to the squared error; on the CPU, so that all devices draw the same.
                seeds = _draw(errors.cpu(), len(dead), generator).to(vectors.device)
                codebook[dead] = vectors[seeds]
                sums[dead], counts[dead] = vectors[seeds], 1.0
            bar.advance(error=float(errors.mean()) / latents.shape[1], dead=len(dead))
    return codebook


def _quantize(
    latents: torch.Tensor, layout: CodeLayout, codebook: torch.Tensor, batch_size: int = 1024
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Residual quantization by nearest neighbor.

    Returns:
        Vectors that were quantized (V, C), their codes (V,), their squared errors (V,).
    """
    # argmin |r − e|² = argmax r·e − |e|²/2: with one more column it is a search for the largest logit.
    keys = torch.cat([codebook, -codebook.square().sum(dim=1, keepdim=True) / 2], dim=1)
    seen, chosen, errors = [], [], []
    for residual in latents.split(batch_size):
        for grid in layout.sides:
            level = downsample(residual, grid)
            vectors = level.movedim(1, -1).flatten(0, 2)  # (n, C)
            codes, _ = argmax_codes(F.pad(vectors, (0, 1), value=1.0), keys)
            values = codebook[codes]
            seen.append(vectors)
            chosen.append(codes)
            errors.append((vectors - values).square().sum(dim=1))
            residual = residual - upsample(values.reshape(len(level), *grid, -1).movedim(-1, 1), layout.grid)
    return torch.cat(seen), torch.cat(chosen), torch.cat(errors)


def _first_codebook(latents: torch.Tensor, layout: CodeLayout, seed: int) -> torch.Tensor:
    """K vectors (K, C), drawn from the residuals of all levels if earlier levels were not quantized."""
    generator = step_generator(seed, 0, "first codebook")
    enough = -(-4 * layout.codebook_size // layout.num_tokens)
    chosen = torch.randperm(len(latents), generator=generator)[: max(enough, 1)].to(latents.device)
    residual, vectors = latents[chosen], []
    for grid in layout.sides:
        level = downsample(residual, grid)
        vectors.append(level.movedim(1, -1).flatten(0, 2))
        residual = residual - upsample(level, layout.grid)
    pool = torch.cat(vectors)
    drawn = torch.randperm(len(pool), generator=generator)[: layout.codebook_size]
    return pool[drawn.to(pool.device)].clone()


def _draw(weights: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw `count` indices in proportion to weights (V,); V may exceed what `torch.multinomial` takes."""
    cumulative = weights.double().cumsum(0)
    places = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
    return torch.searchsorted(cumulative, places).clamp_(max=len(weights) - 1)


@torch.no_grad()
def initialize_nearest_neighbor(
    quantizer: ResidualQuantizer,
    codebook: torch.Tensor,
    spread: float | None = None,
    softness: float | None = None,
    metric: torch.Tensor | None = None,
) -> None:
    """Set a quantizer's weights so that it retrieves the nearest code of `codebook`.

    With M = 64 times the spread and an isometry B of R^(C+1) into the attention's R^d,

        to_q(r) = B (r, M),    to_k(e) = B (e, M),    to_v(e) = e

    RMS normalization brings both to length √d, so that for r and e small compared with M

        q̂·k̂ / √d = √d cos ≈ √d (1 − |r − e|² / 2M²),

    which is largest for the nearest code. The norms' weights g then set the softness of the retrieval: with
    g² = M² / (σ² √d) the logits are −|r − e|² / 2σ² plus a constant. Where codes are dense compared with σ, the
    gradient of the soft retrieval is that of the identity; where they are far apart, it vanishes. Layer normalization
    also subtracts the mean, which is 0 if B maps to vectors of mean 0. With a metric A the nearest code is the one with
    the smallest |A (r − v)|: to_q(r) = B (A r, M), and the codebook holds e = A v for the values v, to_v(e) = A⁻¹ e.

    A larger M brings the cosine closer to the distance but leaves fewer of float32's bits to distinguish codes; 64 was
    the best measured.

    Args:
        quantizer: Must have a norm and an attention width of at least C + 1 (layer_norm: C + 2).
        codebook: (K, C); with a metric, of latents multiplied by it.
        spread: Root mean square of the latents (times the metric); that of the codebook if None.
        softness: σ in the codebook's units; if None, half the distance per channel between neighboring codes.
        metric: A, (C, C) and invertible; distances between latents themselves if None.

    Raises:
        CodaError: If the quantizer has no norm, or its attention is too narrow.
    """
    norm_q, norm_k = quantizer.norm_q, quantizer.norm_k
    d, c = quantizer.to_q.weight.shape
    mean_free = isinstance(norm_q, nn.LayerNorm)
    if isinstance(norm_q, nn.Identity):
        raise CodaError("initialization from k-means needs norm rms_norm or layer_norm")
    if d < c + 1 + mean_free:
        raise CodaError(
            f"initialization from k-means needs an attention width of {c + 1 + mean_free} at least, not {d}"
        )
    assert quantizer.codebook.weight.shape[1] >= c, "a codebook narrower than the latent cannot hold it"

    m = _WIDTH * (spread or float(codebook.square().mean().sqrt()))
    sigma = softness or _neighbor_distance(codebook) / 2
    basis = torch.eye(d, dtype=torch.float64)
    if mean_free:  # reflect the first axis to (1, …, 1)/√d: the other columns are orthogonal to it
        ones = torch.full((d,), d**-0.5, dtype=torch.float64)
        mirror = ones - basis[0]
        basis = (basis - 2 * torch.outer(mirror, mirror) / mirror.square().sum())[:, 1:]
    for linear in (quantizer.to_q, quantizer.to_k):
        linear.weight.zero_()
        linear.weight[:, :c] = basis[:, :c]
        linear.bias.copy_(m * basis[:, c])
    a = torch.eye(c, dtype=torch.float64) if metric is None else metric.double().cpu()
    quantizer.to_q.weight.copy_(basis[:, :c] @ a)
    quantizer.to_v.weight.zero_()
    quantizer.to_v.weight[:, :c] = a.inverse()
    quantizer.to_v.bias.zero_()
    quantizer.codebook.weight.zero_()
    quantizer.codebook.weight[:, :c] = codebook
    for norm in (norm_q, norm_k):
        assert isinstance(norm, nn.LayerNorm | nn.RMSNorm)
        nn.init.constant_(norm.weight, m / sigma / d**0.25)
        if isinstance(norm, nn.LayerNorm):
            nn.init.zeros_(norm.bias)


def _neighbor_distance(codebook: torch.Tensor, sample: int = 2048) -> float:
    """Root mean square, per channel, of the distance between a code and its nearest neighbor."""
    some = codebook[:: max(1, len(codebook) // sample)]
    nearest = torch.cdist(some, codebook).topk(2, largest=False).values[:, 1]
    return float(nearest.square().mean().div(codebook.shape[1]).sqrt().clamp(min=1e-6))
