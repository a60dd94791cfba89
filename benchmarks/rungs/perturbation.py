"""Reconstruction from perturbed codes: how well a decoder bears the mistakes of a generator.

RobustTok (arXiv 2503.08354) found that the Fréchet distance with perturbed codes predicts a generator's quality better
than the one with true codes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from coda.tokenizer.foundation.seeding import step_generator

_NEAR_SHARE, _MOST_NEAR = 0.02, 100  # how many codes of a codebook are near to one of them
_ROWS_AT_ONCE = 1024


def near_codes(value_table: torch.Tensor) -> torch.Tensor:
    """The codes nearest to each code, (K, n), nearest first: 2 % of the codebook, at least 1 and at most 100."""
    size = len(value_table)
    count = min(_MOST_NEAR, max(1, round(_NEAR_SHARE * size)))
    found = []
    for start in range(0, size, _ROWS_AT_ONCE):
        rows = value_table[start : start + _ROWS_AT_ONCE]
        distances = torch.cdist(rows, value_table)
        distances[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = -1.0  # itself, even if repeated
        found.append(distances.topk(count + 1, largest=False).indices[:, 1:])
    return torch.cat(found)


def perturb_codes(
    codes: torch.Tensor, near: torch.Tensor, share: float, images: Sequence[int], seed: int
) -> torch.Tensor:
    """Replace a share of the codes by one of the near ones, drawn evenly.

    Args:
        codes: (B, T).
        near: (K, n), see `near_codes`.
        share: Expected share of codes that are replaced.
        images: Number of each image, which seeds its draws: the batch size changes nothing.
        seed: Seed for all randomness.
    """
    draws = torch.stack([torch.rand(codes.shape[1], generator=step_generator(seed, i, "perturb")) for i in images])
    draws = draws.to(codes.device)
    rank = (draws * (near.shape[1] / max(share, 1e-9))).long().clamp(max=near.shape[1] - 1)
    return torch.where(draws < share, near.to(codes.device)[codes, rank], codes)
