"""Confidence of the assignments (Figure 5): how much of a token's distribution over codes its best codes hold."""

from __future__ import annotations

import torch

from coda.tokenizer.quantizer.resampling import downsample, prefix_latents
from coda.tokenizer.quantizer.residual_quantizer import ResidualQuantizer

from .vector_quantizer import VectorQuantizer

TOP = 16
_TOKENS_AT_ONCE = 1024


@torch.no_grad()
def top_confidences(quantizer: ResidualQuantizer | VectorQuantizer, latents: torch.Tensor) -> list[float]:
    """The largest probabilities of a token's assignment, in falling order, averaged over all tokens of all levels.

    The probabilities are the softmax of attention logits, or for VQ of minus the squared distances.

    Args:
        quantizer: The quantizer.
        latents: (B, C, h, w).

    Returns:
        At most 16 numbers, which sum to at most 1.
    """
    layout = quantizer.layout
    prefixes = prefix_latents(quantizer.encode(latents), layout, quantizer.value_table())
    total = torch.zeros(min(TOP, layout.codebook_size), dtype=torch.float64)
    for prefix, grid in zip(prefixes, layout.sides, strict=False):  # there is one more prefix: all levels
        level = downsample(latents - prefix, grid)
        for part in level.split(max(1, _TOKENS_AT_ONCE // (grid[0] * grid[1]))):
            probabilities = _affinities(quantizer, part).softmax(dim=1)
            total += probabilities.topk(len(total), dim=1).values.sum(0).double().cpu()
    return (total / (len(latents) * layout.num_tokens)).tolist()


def _affinities(quantizer: ResidualQuantizer | VectorQuantizer, level: torch.Tensor) -> torch.Tensor:
    """Logits (N, K) of the tokens of a level (b, C, h, w)."""
    if isinstance(quantizer, VectorQuantizer):
        return quantizer.affinities(level.movedim(1, -1).flatten(0, 2))
    return quantizer.queries(level) @ quantizer.keys().T
