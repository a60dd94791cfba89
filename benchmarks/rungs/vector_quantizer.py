"""Vector quantization by nearest neighbor, the ablation's control: direct VQ with one level, residual VQ with several.

Shapes: latents (B, C, h, w); T codes per image in all levels; N tokens of one level; K codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from coda.tokenizer.layout import CodeLayout
from coda.tokenizer.quantizer.resampling import downsample, prefix_latents, upsample
from coda.tokenizer.quantizer.retrieval import argmax_codes

_EPSILON = 1e-5


@dataclass(frozen=True)
class Quantized:
    """Output of a training step.

    Attributes:
        quantized: (B, C, h, w), with straight-through gradients.
        codes: (B, T) int64.
        quantization_loss: Scalar, mean over the levels.
        entropy_loss: 0; VQ has none.
    """

    quantized: torch.Tensor
    codes: torch.Tensor
    quantization_loss: torch.Tensor
    entropy_loss: torch.Tensor


class VectorQuantizer(nn.Module):
    """Residual VQ with one codebook for all levels (van den Oord et al., *Neural Discrete Representation Learning*).

    Args:
        codebook: (K, C), the codebook at the start.
        layout: Sides of the levels and K.
        decay: Decay of the moving averages that the codebook is made of (Appendix A.1); None learns it by gradient.
        beta: Weight of the commitment loss.
    """

    counts: torch.Tensor
    sums: torch.Tensor

    def __init__(
        self, codebook: torch.Tensor, layout: CodeLayout, decay: float | None = 0.99, beta: float = 0.25
    ) -> None:
        super().__init__()
        self.layout, self.decay, self.beta = layout, decay, beta
        self.codebook = nn.Parameter(codebook.clone(), requires_grad=decay is None)
        if decay is not None:
            self.register_buffer("counts", torch.ones(len(codebook)))
            self.register_buffer("sums", codebook.clone())

    def forward(self, latents: torch.Tensor) -> Quantized:
        """Quantize latents, with losses; while training, the moving averages see these latents."""
        residual, found, inputs, losses = latents, [], [], []
        for grid in self.layout.sides:
            level = downsample(residual, grid)
            tokens = level.movedim(1, -1).flatten(0, 2)  # (N, C)
            codes = self._nearest(tokens)
            values = F.embedding(codes, self.codebook)
            losses.append(F.mse_loss(values, tokens.detach()) + self.beta * F.mse_loss(tokens, values.detach()))
            straight_through = tokens + (values - tokens).detach()
            residual = residual - self._upsampled(straight_through, level)
            found.append(codes.reshape(len(latents), -1))
            inputs.append(tokens.detach())
        codes = torch.cat(found, dim=1)
        quantized = latents + (self.decode(codes) - latents).detach()
        if self.training and self.decay is not None:
            self._update(torch.cat(inputs), torch.cat([level.flatten() for level in found]), self.decay)
        return Quantized(quantized, codes, torch.stack(losses).mean(), latents.new_zeros(()))

    @torch.no_grad()
    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes (B, T) of latents."""
        residual, found = latents, []
        for grid in self.layout.sides:
            level = downsample(residual, grid)
            codes = self._nearest(level.movedim(1, -1).flatten(0, 2))
            residual = residual - self._upsampled(F.embedding(codes, self.codebook), level)
            found.append(codes.reshape(len(latents), -1))
        return torch.cat(found, dim=1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Latents of codes (B, T)."""
        return prefix_latents(codes, self.layout, self.codebook)[-1]

    def value_table(self) -> torch.Tensor:
        """The point in latent space that each code stands for, (K, C)."""
        return self.codebook.detach()

    def affinities(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits (N, K) whose softmax is the confidence of an assignment: minus the squared distances."""
        return -torch.cdist(tokens, self.codebook.detach()).square()

    @torch.no_grad()
    def _nearest(self, tokens: torch.Tensor) -> torch.Tensor:
        # argmin |r - e|² = argmax r·e - |e|²/2
        codebook = self.codebook.detach()
        keys = torch.cat([codebook, -codebook.square().sum(dim=1, keepdim=True) / 2], dim=1)
        return argmax_codes(F.pad(tokens, (0, 1), value=1.0), keys)[0]

    def _upsampled(self, values: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        b, c, h, w = level.shape
        return upsample(values.reshape(b, h, w, c).movedim(-1, 1), self.layout.grid)

    @torch.no_grad()
    def _update(self, tokens: torch.Tensor, codes: torch.Tensor, decay: float) -> None:
        """Move the averages toward this batch, and the codebook to their quotient."""
        count = torch.bincount(codes, minlength=len(self.codebook)).to(self.counts.dtype)
        total = torch.zeros_like(self.sums).index_add_(0, codes, tokens)
        self.counts.mul_(decay).add_(count, alpha=1 - decay)
        self.sums.mul_(decay).add_(total, alpha=1 - decay)
        seen = self.counts > _EPSILON  # a code that nothing chooses any more stays where it is
        self.codebook[seen] = self.sums[seen] / self.counts[seen, None]
