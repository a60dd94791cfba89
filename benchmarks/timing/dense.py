"""The quantizer as it is usually written, all tokens × all codes at once: the baseline of `speed`.

The same mathematics as `coda.tokenizer.ResidualQuantizer`, on the same parameters, with PyTorch's own autograd: logits,
softmax and one-hot are N × K tensors, several per level, and are kept for the backward pass.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from coda.tokenizer.quantizer.resampling import downsample, upsample
from coda.tokenizer.quantizer.residual_quantizer import QuantizerOutput, ResidualQuantizer
from coda.tokenizer.quantizer.retrieval import EPSILON


def dense_forward(quantizer: ResidualQuantizer, latents: torch.Tensor) -> QuantizerOutput:
    """Compute `quantizer(latents)` densely, for normalized latents (B, C, h, w)."""
    config: Any = quantizer.config
    residual, quantized = latents, torch.zeros_like(latents)
    codes, losses, sample_entropies, batch_entropies = [], [], [], []
    for side in quantizer.layout.sides:
        level = downsample(residual, side)
        target = level.movedim(1, -1)  # (B, h_l, w_l, C)
        values = quantizer.values()
        logits = quantizer.queries(level) @ quantizer.keys().T  # (N, K)
        soft = logits.softmax(dim=1)
        code = soft.argmax(dim=1)
        one_hot = torch.zeros_like(soft).scatter_(1, code[:, None], 1)
        found = ((one_hot - soft.detach() + soft) @ values).view_as(target)
        hard = (one_hot @ values).view_as(target)
        losses.append(
            F.mse_loss(found, target)
            + F.mse_loss(hard.detach(), target)
            + config.beta * F.mse_loss(hard, target.detach())
        )
        tempered = logits / config.entropy_temperature
        probabilities, log_probabilities = tempered.softmax(dim=1), tempered.log_softmax(dim=1)
        sample_entropies.append(-(probabilities * log_probabilities).sum(dim=1).mean())
        mean = probabilities.mean(dim=0)
        batch_entropies.append(-(mean * (mean + EPSILON).log()).sum())
        upsampled = upsample(found.movedim(-1, 1), quantizer.layout.grid)
        residual, quantized = residual - upsampled, quantized + upsampled
        codes.append(code.view(len(latents), -1))
    return QuantizerOutput.of_levels(quantized, codes, losses, sample_entropies, batch_entropies, config)


def dense_bytes(quantizer: ResidualQuantizer, batch_size: int) -> int:
    """Peak memory of the dense forward and backward: about nine N × K tensors over all levels (measured)."""
    layout = quantizer.layout
    itemsize = quantizer.codebook.weight.element_size()
    return 9 * batch_size * layout.num_tokens * layout.codebook_size * itemsize
