"""Codes replaced by others near them, so that a decoder learns to bear a generator's mistakes (RobustTok, 2503.08354).

Shapes: codes (B, T) int64; K codes in the codebook.
"""

from __future__ import annotations

import torch

from .residual_quantizer import ResidualQuantizer

_NEAR = 8  # a code is replaced by one of its this many nearest
_LOGITS_AT_ONCE = 1 << 24


@torch.no_grad()
def perturb_codes(
    quantizer: ResidualQuantizer,
    codes: torch.Tensor,
    share: float,
    generator: torch.Generator,
    process: tuple[int, int] = (0, 1),
) -> torch.Tensor:
    """Replace a random share of the codes, each by one of the 8 codes nearest to it.

    Args:
        quantizer: Its own attention says which codes are near.
        codes: (B, T).
        share: Probability with which a code is replaced.
        generator: On the CPU. It draws for the images of all processes.
        process: (rank, count): `codes` are those of every count-th image from rank on.

    Returns:
        (B, T) int64.
    """
    rank, count = process
    near = min(_NEAR, quantizer.layout.codebook_size - 1)
    everywhere = (len(codes) * count, codes.shape[1])
    replaced = (torch.rand(everywhere, generator=generator)[rank::count] < share).to(codes.device)
    choice = torch.randint(near, everywhere, generator=generator)[rank::count].to(codes.device)
    found, index = codes[replaced].unique(return_inverse=True)
    perturbed = codes.clone()
    if len(found):
        perturbed[replaced] = _nearest_codes(quantizer, found, near)[index, choice[replaced]]
    return perturbed


def _nearest_codes(quantizer: ResidualQuantizer, codes: torch.Tensor, count: int) -> torch.Tensor:
    """The codes that the values of `codes` (N,) would get if their own did not exist, best first, (N, count)."""
    keys, values = quantizer.keys(), quantizer.values()
    nearest = []
    for some in codes.split(max(1, _LOGITS_AT_ONCE // len(keys))):
        logits = quantizer.queries(values[some][:, :, None, None]) @ keys.T
        logits.scatter_(1, some[:, None], -torch.inf)
        nearest.append(logits.topk(count, dim=1).indices)
    return torch.cat(nearest)
