"""Quantizers that need no training: a fixed rule per number, or a codebook of Gaussian draws.

All of them take latents whose channels were standardized, `Standardized`, as if each were N(0, 1).

Shapes: latents (B, C, h, w). Codes (B, T), channel by channel (or group by group), row by row: one level of
(channels · h) × w cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F

from coda.tokenizer.foundation.seeding import step_generator
from coda.tokenizer.layout import CodeLayout, Grid
from coda.tokenizer.quantizer.retrieval import argmax_codes

_SLOPE = 1.6  # of iFSQ's sigmoid, which is closest to the normal distribution function there
_LARGEST_U = 1 - 1e-6


class Quantizer(Protocol):
    """Latents ⇄ codes, as the figures need them."""

    layout: CodeLayout

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes (B, T) int64 of latents (B, C, h, w)."""
        ...

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Latents of codes."""
        ...

    def value_table(self) -> torch.Tensor:
        """Values of the codes: (K, C), or (K, D) where a code stands for D numbers."""
        ...


class ScalarQuantizer:
    """One code per number of the latent.

    Args:
        channels: C.
        grid: (h, w) of the latent.
        edges: (K - 1,), rising: code k lies between edges k - 1 and k.
        values: (K,), what each code stands for.
    """

    def __init__(self, channels: int, grid: Grid, edges: torch.Tensor, values: torch.Tensor) -> None:
        self.layout = CodeLayout([(channels * grid[0], grid[1])], len(values))
        self._shape, self._edges, self._values = (channels, *grid), edges, values

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes (B, C·h·w) of standardized latents."""
        return torch.bucketize(latents.contiguous(), self._edges.to(latents.device)).flatten(1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Standardized latents of codes."""
        return self._values.to(codes.device)[codes].reshape(len(codes), *self._shape)

    def value_table(self) -> torch.Tensor:
        """(K, 1)."""
        return self._values[:, None]


class GaussianQuantizer:
    """The nearest of K random Gaussian draws for each group of channels (GQ, arXiv 2512.06609).

    Args:
        channels: C.
        group: Channels per code, a divisor of C.
        grid: (h, w) of the latent.
        codebook_size: K.
        seed: Seed of the draws.
    """

    def __init__(self, channels: int, group: int, grid: Grid, codebook_size: int, seed: int) -> None:
        assert channels % group == 0, f"{channels} channels are not groups of {group}"
        self.layout = CodeLayout([(channels // group * grid[0], grid[1])], codebook_size)
        self._group, self._grid = group, grid
        self._codebook = torch.randn(codebook_size, group, generator=step_generator(seed, 0, "Gaussian codebook"))

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes (B, C/group·h·w) of standardized latents."""
        grouped = latents.unflatten(1, (-1, self._group))  # (B, C/group, group, h, w)
        tokens = grouped.movedim(2, -1).flatten(0, 3)  # (B·C/group·h·w, group)
        codebook = self._codebook.to(latents.device)
        keys = torch.cat([codebook, -codebook.square().sum(dim=1, keepdim=True) / 2], dim=1)
        return argmax_codes(F.pad(tokens, (0, 1), value=1.0), keys)[0].reshape(len(latents), -1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Standardized latents of codes."""
        values = self._codebook.to(codes.device)[codes.reshape(len(codes), -1, *self._grid)]
        return values.movedim(-1, 2).flatten(1, 2)  # from (B, C/group, h, w, group)

    def value_table(self) -> torch.Tensor:
        """(K, group)."""
        return self._codebook


class Standardized:
    """A quantizer of latents whose channels have mean 0 and deviation 1.

    Args:
        quantizer: The quantizer.
        mean: (C,), measured on training images.
        deviation: (C,).
    """

    def __init__(self, quantizer: Quantizer, mean: torch.Tensor, deviation: torch.Tensor) -> None:
        self.layout, self._quantizer = quantizer.layout, quantizer
        self._mean, self._deviation = mean[:, None, None], deviation[:, None, None]

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes of latents."""
        return self._quantizer.encode((latents - self._mean) / self._deviation)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Latents of codes."""
        return self._quantizer.decode(codes) * self._deviation + self._mean

    def value_table(self) -> torch.Tensor:
        """The quantizer's, of standardized latents."""
        return self._quantizer.value_table()


def normal_bins(bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Edges (bins - 1,) and values (bins,) of TokenBridge: equally likely bins of N(0, 1), their expected values.

    E[x | a < x < b] = (φ(a) - φ(b)) / (Φ(b) - Φ(a)).
    """
    inner = torch.special.ndtri(torch.arange(1, bins, dtype=torch.float64) / bins)
    infinity = torch.tensor([math.inf], dtype=torch.float64)
    density = torch.cat([-infinity, inner, infinity]).square().div(-2).exp() / math.sqrt(2 * math.pi)
    return inner.float(), ((density[:-1] - density[1:]) * bins).float()


def sigmoid_bins(bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Edges and values of iFSQ: bins of equal width of y = 2 σ(1.6 x) - 1, and the x of their centers."""

    def inverse(u: torch.Tensor) -> torch.Tensor:
        return torch.logit(u.clamp(1 - _LARGEST_U, _LARGEST_U)) / _SLOPE

    return inverse(torch.arange(1, bins) / bins), inverse((torch.arange(bins) + 0.5) / bins)


def rivals(
    channels: int, grid: Grid, codebook_size: int, bins: Sequence[int] = (2, 4, 16)
) -> dict[str, dict[str, Callable[[int], Quantizer]]]:
    """All rivals as functions of a seed: kind → size → rival. Kinds are TokenBridge, iFSQ and GQ."""
    groups = dict.fromkeys(math.gcd(channels, max(1, channels // parts)) for parts in (1, 4, 16))
    return {
        "scalar (TokenBridge)": {f"{n} bins": partial(_scalar, channels, grid, normal_bins(n)) for n in bins},
        "iFSQ": {f"{n} bins": partial(_scalar, channels, grid, sigmoid_bins(n)) for n in bins},
        "Gaussian codebook (GQ)": {
            f"{n} channel{'s' * (n > 1)} per code": partial(GaussianQuantizer, channels, n, grid, codebook_size)
            for n in groups
        },
    }


def _scalar(channels: int, grid: Grid, bins: tuple[torch.Tensor, torch.Tensor], seed: int) -> ScalarQuantizer:
    return ScalarQuantizer(channels, grid, *bins)  # nothing is drawn
