"""Residual quantization over levels, by attention-based retrieval from one codebook (paper, Sections 3.2 and 3.3).

Shapes: B pictures, C latent channels, h × w the latent's grid, L levels of h_l × w_l cells, T codes in all,
K codes in the codebook, D its width, d the attention width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from ..foundation.errors import CodaError
from ..layout import CodeLayout
from .resampling import downsample, prefix_latents, upsample
from .retrieval import Retrieved, argmax_codes, retrieve

Found = TypeVar("Found")

_KEYS_AT_ONCE = 8192


@dataclass(frozen=True)
class QuantizerOutput:
    """What a training step needs.

    Attributes:
        quantized: (B, C, h, w), sum of the levels; gradients as the paper's straight-through estimator has them.
        codes: (B, T) int64, level by level, row by row.
        quantization_loss: Scalar, mean over the levels.
        entropy_loss: Scalar, mean over the levels; low where tokens are sure and codes are used alike.
        quantization_losses: (L,), the first of the two per level.
        sample_entropies: (L,), mean entropy of a token's distribution, nats, at the entropy temperature.
        batch_entropies: (L,), entropy of the mean distribution, nats.
    """

    quantized: torch.Tensor
    codes: torch.Tensor
    quantization_loss: torch.Tensor
    entropy_loss: torch.Tensor
    quantization_losses: torch.Tensor
    sample_entropies: torch.Tensor
    batch_entropies: torch.Tensor


class ResidualQuantizer(ModelMixin, ConfigMixin):
    """Latents ⇄ codes.

    Args:
        latent_channels: C.
        codebook_size: K.
        sides: Grids of the levels, numbers or pairs; the last is the latent's own grid.
        attention_dim: d; C if None.
        norm: Of queries and keys: None, "layer_norm" or "rms_norm" (both ε = 1e-5).
        codebook_dim: D; C if None.
        beta: Weight of the loss that draws codes to latents (β; the paper's is 0.05).
        entropy_temperature: τ of the entropies.
        sample_entropy_weight: w_s, of the entropy of single tokens, which is made small.
        batch_entropy_weight: w_b, of the entropy of their mean, which is made large.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int,
        codebook_size: int,
        sides: Sequence[int | Sequence[int]],
        attention_dim: int | None = None,
        norm: str | None = None,
        codebook_dim: int | None = None,
        beta: float = 0.05,
        entropy_temperature: float = 0.01,
        sample_entropy_weight: float = 1.0,
        batch_entropy_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.layout = CodeLayout(sides, codebook_size)
        d, width = attention_dim or latent_channels, codebook_dim or latent_channels
        self.scale = 1 / math.sqrt(d)
        self.codebook = nn.Embedding(codebook_size, width)
        self.to_q = nn.Linear(latent_channels, d)
        self.to_k = nn.Linear(width, d)
        self.to_v = nn.Linear(width, latent_channels)
        self.norm_q, self.norm_k = _norm(norm, d), _norm(norm, d)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize normalised latents (B, C, h, w), with both losses and straight-through gradients."""
        latents = self._checked(latents)
        keys, values = self.keys(), self.values()  # the same at every level: once per step
        tau, beta = self.config.entropy_temperature, self.config.beta
        quantized, codes, losses, sample_entropies, batch_entropies = torch.zeros_like(latents), [], [], [], []

        def retrieve_level(level: torch.Tensor) -> tuple[Retrieved, torch.Tensor]:
            found = retrieve(self.queries(level), keys, values, tau)
            return found, found.values

        for level, found, upsampled in self._levels(latents, retrieve_level):
            target, hard = level.movedim(1, -1).flatten(0, 2), F.embedding(found.codes, values)  # (N, C)
            losses.append(
                F.mse_loss(found.values, target)
                + F.mse_loss(hard.detach(), target)
                + beta * F.mse_loss(hard, target.detach())
            )
            quantized = quantized + upsampled
            codes.append(found.codes.reshape(len(latents), -1))
            sample_entropies.append(found.sample_entropy)
            batch_entropies.append(found.batch_entropy)

        sample, batch = torch.stack(sample_entropies), torch.stack(batch_entropies)
        entropy = self.config.sample_entropy_weight * sample - self.config.batch_entropy_weight * batch
        return QuantizerOutput(
            quantized=quantized,
            codes=torch.cat(codes, dim=1),
            quantization_loss=torch.stack(losses).mean(),
            entropy_loss=entropy.mean(),
            quantization_losses=torch.stack(losses).detach(),
            sample_entropies=sample.detach(),
            batch_entropies=batch.detach(),
        )

    @torch.no_grad()
    def encode(self, latents: torch.Tensor, layout: CodeLayout | None = None) -> torch.Tensor:
        """Codes (B, T) int64 of normalised latents (B, C, h, w), in a layout; in this quantizer's own if None."""
        latents = self._checked(latents)
        values = self.values()
        queries, keys = self.folded_queries_and_keys()

        def retrieve_level(level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            codes, _ = argmax_codes(queries(level), keys)
            return codes, F.embedding(codes, values)

        found = [codes.reshape(len(latents), -1) for _, codes, _ in self._levels(latents, retrieve_level, layout)]
        return torch.cat(found, dim=1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, levels: int | None = None, layout: CodeLayout | None = None) -> torch.Tensor:
        """Normalised latents (B, C, h, w) of codes (B, T).

        Args:
            codes: Integers in [0, K).
            levels: Use only that many levels, from the coarsest on; all of them if None.
            layout: Of the codes; this quantizer's own if None.
        """
        count = self.layout.num_levels if levels is None else levels
        if not 0 <= count <= self.layout.num_levels:
            raise CodaError(f"levels is {levels}; this tokenizer has {self.layout.num_levels}")
        checked = codes.numel() and not torch.compiler.is_compiling()  # a graph cannot look at its data
        if checked and not 0 <= int(codes.min()) <= int(codes.max()) < self.layout.codebook_size:
            raise CodaError(f"codes reach from {int(codes.min())} to {int(codes.max())}, beyond {self.layout}")
        return prefix_latents(codes.long(), layout or self.layout, self.value_table())[count]

    def value_table(self) -> torch.Tensor:
        """What every code stands for in latent space, (K, C)."""
        return self.values().detach()

    def queries(self, latents: torch.Tensor) -> torch.Tensor:
        """Queries (N, d) of latents (B, C, h, w), pictures then rows, scaled by 1/√d."""
        return self.norm_q(self.to_q(latents.movedim(1, -1).flatten(0, 2))) * self.scale

    def keys(self) -> torch.Tensor:
        """Keys (K, d) of all codes."""
        return self.norm_k(self.to_k(self.codebook.weight))

    def values(self) -> torch.Tensor:
        """Values (K, C) of all codes."""
        return self.to_v(self.codebook.weight)

    def folded_queries_and_keys(self) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
        """Queries of latents, and keys, that have their largest product where `queries` and `keys` have it.

        With q = W z + b, q·k = z·(k W) + k·b: `to_q` goes into the keys, and products run over C + 1 numbers instead of
        d. An RMSNorm scales all logits of a token alike, so only its weights matter; a LayerNorm subtracts a mean
        besides, and keeps the long way.
        """
        d, c = self.to_q.weight.shape
        if isinstance(self.norm_q, nn.LayerNorm) or c + 1 >= d:
            return self.queries, self.keys()
        to_q = torch.cat([self.to_q.weight, self.to_q.bias[:, None]], dim=1)  # (d, C + 1)
        if isinstance(self.norm_q, nn.RMSNorm):
            to_q = to_q * self.norm_q.weight[:, None]
        # In blocks that stay in a core's cache: at K = 65,536 several times faster than at once.
        keys = [self.norm_k(self.to_k(block)) @ to_q for block in self.codebook.weight.split(_KEYS_AT_ONCE)]
        return lambda latents: F.pad(latents.movedim(1, -1).flatten(0, 2), (0, 1), value=1.0), torch.cat(keys)

    def _levels(
        self,
        latents: torch.Tensor,
        retrieve_level: Callable[[torch.Tensor], tuple[Found, torch.Tensor]],
        layout: CodeLayout | None = None,
    ) -> Iterator[tuple[torch.Tensor, Found, torch.Tensor]]:
        """The residual loop (paper, Section 3.2): per level what it saw, what it found, what that adds."""
        b, c, h, w = latents.shape
        residual = latents
        for height, width in (layout or self.layout).sides:
            level = downsample(residual, (height, width))
            found, values = retrieve_level(level)  # values: (B·h_l·w_l, C)
            upsampled = upsample(values.reshape(b, height, width, c).movedim(-1, 1), (h, w))
            residual = residual - upsampled
            yield level, found, upsampled

    def _checked(self, latents: torch.Tensor) -> torch.Tensor:
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            raise CodaError(
                f"latents have shape {tuple(latents.shape)}, expected (B, {self.config.latent_channels}, h, w)"
            )
        return latents.to(self.codebook.weight.dtype)


def _norm(name: str | None, dim: int) -> nn.Module:
    match name:
        case None:
            return nn.Identity()
        case "layer_norm":
            return nn.LayerNorm(dim, eps=1e-5)
        case "rms_norm":
            return nn.RMSNorm(dim, eps=1e-5)
    raise CodaError(f"norm {name!r} is not known; it is none, layer_norm or rms_norm")
