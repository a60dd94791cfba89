"""Residual quantization over levels, by attention-based retrieval from one codebook (paper, Sections 3.2 and 3.3).

Shapes: B images, C latent channels, h × w the latent's grid, L levels of h_l × w_l cells, T codes in all,
K codes in the codebook, D its width, d the attention width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import nn
from torch.utils.checkpoint import checkpoint

from ..foundation.bounds import check_integer, check_number
from ..foundation.errors import CodaError
from ..foundation.strict_loading import StrictModel
from ..layout import CodeLayout
from .full_precision import at_least_float32, call_in_float32, call_in_float64, without_autocast
from .resampling import downsample, prefix_latents, upsample
from .retrieval import Retrieved, argmax_codes, retrieve

Found = TypeVar("Found")

_KEYS_AT_ONCE = 8192
_WIDEST = 16_384  # channels, attention width


@dataclass(frozen=True)
class QuantizerOutput:
    """Output of a training step.

    Attributes:
        quantized: (B, C, h, w), sum of the levels, with straight-through gradients.
        codes: (B, T) int64, level by level, row by row.
        quantization_loss: Scalar, mean over the levels.
        entropy_loss: Scalar, mean over the levels; low if each token is certain and all codes are used equally.
        quantization_losses: (L,), quantization loss per level.
        sample_entropies: (L,), mean entropy in nats of a token's distribution, at the entropy temperature.
        batch_entropies: (L,), entropy in nats of the mean distribution.
    """

    quantized: torch.Tensor
    codes: torch.Tensor
    quantization_loss: torch.Tensor
    entropy_loss: torch.Tensor
    quantization_losses: torch.Tensor
    sample_entropies: torch.Tensor
    batch_entropies: torch.Tensor

    @classmethod
    def of_levels(
        cls,
        quantized: torch.Tensor,
        codes: list[torch.Tensor],
        losses: list[torch.Tensor],
        sample_entropies: list[torch.Tensor],
        batch_entropies: list[torch.Tensor],
        config: Any,
    ) -> QuantizerOutput:
        """Join what the levels gave; `config` is the quantizer's, with the weights of the entropies."""
        sample, batch, each = map(torch.stack, (sample_entropies, batch_entropies, losses))
        entropy = config.sample_entropy_weight * sample - config.batch_entropy_weight * batch
        return cls(
            quantized=quantized,
            codes=torch.cat(codes, dim=1),
            quantization_loss=each.mean(),
            entropy_loss=entropy.mean(),
            quantization_losses=each.detach(),
            sample_entropies=sample.detach(),
            batch_entropies=batch.detach(),
        )


class ResidualQuantizer(StrictModel):
    """Latents ⇄ codes.

    Weights may be float16 or bfloat16 and autocast may be on: it computes in float32 all the same.

    Args:
        latent_channels: C.
        codebook_size: K.
        sides: Grids of the levels, numbers or (h, w) pairs; the last is the latent's grid.
        attention_dim: d; C if None.
        norm: Normalization of queries and keys: None, "layer_norm" or "rms_norm" (both ε = 1e-5).
        codebook_dim: D; C if None.
        beta: β, weight of the loss that moves codes toward latents (0.05 in the paper).
        entropy_temperature: τ, temperature of both entropies.
        sample_entropy_weight: w_s, weight of the mean entropy of single tokens, which is minimized.
        batch_entropy_weight: w_b, weight of the entropy of the mean distribution, which is maximized.

    Raises:
        CodaError: If an argument is out of its range.
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
        for name, dim in {"latent_channels": latent_channels, "attention_dim": d, "codebook_dim": width}.items():
            check_integer(name, dim, 1, _WIDEST)
        for name in ("beta", "entropy_temperature", "sample_entropy_weight", "batch_entropy_weight"):
            check_number(name, self.config[name], positive=name == "entropy_temperature")
        self.scale = 1 / math.sqrt(d)
        self.codebook = nn.Embedding(codebook_size, width)
        self.to_q = nn.Linear(latent_channels, d)
        self.to_k = nn.Linear(width, d)
        self.to_v = nn.Linear(width, latent_channels)
        self.norm_q, self.norm_k = _norm(norm, d), _norm(norm, d)

    @without_autocast
    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize normalized latents (B, C, h, w), with both losses and straight-through gradients.

        Where several processes train together, with gradients on, all must call it: the batch entropies are those of
        their whole batch.
        """
        # A training on an accelerator does not wait for the check; it sees its loss every few steps.
        latents = self._checked(latents, check=latents.device.type == "cpu" or not self.training)
        keys, values = self._centered_keys(), self.values()  # the same at every level: once per step
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
        return QuantizerOutput.of_levels(quantized, codes, losses, sample_entropies, batch_entropies, self.config)

    @torch.no_grad()
    @without_autocast
    def encode(self, latents: torch.Tensor, layout: CodeLayout | None = None, check: bool = True) -> torch.Tensor:
        """Encode normalized latents (B, C, h, w) to codes (B, T) int64.

        Args:
            latents: Finite numbers of any floating-point type.
            layout: Layout of the codes; the quantizer's own if None.
            check: Check that the latents are finite, which waits for the accelerator.

        Raises:
            CodaError: If the latents have another shape, or hold NaN or infinite values.
        """
        latents = self._checked(latents, check)
        values = self.values()
        queries, keys = self.folded_queries_and_keys()

        def retrieve_level(level: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            codes, _ = argmax_codes(queries(level), keys)
            return codes, F.embedding(codes, values)

        found = [codes.reshape(len(latents), -1) for _, codes, _ in self._levels(latents, retrieve_level, layout)]
        return torch.cat(found, dim=1)

    @torch.no_grad()
    def decode(self, codes: torch.Tensor, levels: int | None = None, layout: CodeLayout | None = None) -> torch.Tensor:
        """Decode codes (B, T) to normalized latents (B, C, h, w).

        Args:
            codes: Integers in [0, K).
            levels: Number of levels to use, starting with the coarsest; all if None.
            layout: Layout of the codes; the quantizer's own if None.
        """
        count = self.layout.num_levels if levels is None else levels
        if not 0 <= count <= self.layout.num_levels:
            raise CodaError(f"levels is {levels}; this tokenizer has {self.layout.num_levels}")
        checked = codes.numel() and not torch.compiler.is_compiling()  # a graph cannot look at its data
        if checked and not 0 <= int(codes.min()) <= int(codes.max()) < self.layout.codebook_size:
            raise CodaError(f"codes reach from {int(codes.min())} to {int(codes.max())}, beyond {self.layout}")
        return prefix_latents(codes.long(), layout or self.layout, self.value_table())[count]

    def value_table(self) -> torch.Tensor:
        """The point in latent space that each code stands for, (K, C)."""
        return self.values().detach()

    @without_autocast
    def queries(self, latents: torch.Tensor) -> torch.Tensor:
        """Queries (N, d) of latents (B, C, h, w), images then rows, scaled by 1/√d."""
        tokens = latents.movedim(1, -1).flatten(0, 2)
        return call_in_float32(self.norm_q, call_in_float32(self.to_q, tokens)) * self.scale

    @without_autocast
    def keys(self) -> torch.Tensor:
        """Keys (K, d) of all codes."""
        return self._keys(self.codebook.weight)

    @without_autocast
    def values(self) -> torch.Tensor:
        """Values (K, C) of all codes."""
        return call_in_float32(self.to_v, self.codebook.weight)

    @without_autocast
    def folded_queries_and_keys(self) -> tuple[Callable[[torch.Tensor], torch.Tensor], torch.Tensor]:
        """A function from latents to queries, and keys, with the same best code as `queries` and `keys` but cheaper.

        With q = W z + b, q·k = z·(k W) + k·b: `to_q` is folded into the keys, and products run over C + 1 numbers
        instead of d. An RMSNorm scales all logits of a token by the same factor, so only its weights matter. A
        LayerNorm also subtracts a mean, so nothing is folded.
        """
        d, c = self.to_q.weight.shape
        if isinstance(self.norm_q, nn.LayerNorm) or c + 1 >= d:
            return self.queries, self.keys()
        to_q = at_least_float32(torch.cat([self.to_q.weight, self.to_q.bias[:, None]], dim=1))  # (d, C + 1)
        if isinstance(self.norm_q, nn.RMSNorm):
            to_q = to_q * self.norm_q.weight[:, None]
        # In blocks that fit a core's cache: at K = 65,536 several times faster than all at once.
        keys = [self._keys(block) @ to_q for block in self.codebook.weight.split(_KEYS_AT_ONCE)]
        return lambda latents: F.pad(latents.movedim(1, -1).flatten(0, 2), (0, 1), value=1.0), torch.cat(keys)

    def _centered_keys(self) -> torch.Tensor:
        """Keys (K, d) minus their mean, which adds the same number to all logits of a token.

        Keys set by k-means are nearly equal: without centering, logits of 10^4 and more differ by a few nats, and
        float32 rounds to 10^-3 nats what the entropies multiply by 1/τ. Most of the mean is taken off in float64, of
        which one block at a time is held.
        """
        with torch.no_grad():
            center = self.keys().mean(dim=0)

        def centered(block: torch.Tensor) -> torch.Tensor:
            if block.device.type == "mps":  # has no float64
                return self._keys(block) - center
            return (call_in_float64(self.norm_k, call_in_float64(self.to_k, block)) - center).to(center.dtype)

        blocks = self.codebook.weight.split(_KEYS_AT_ONCE)
        keys = torch.cat(
            [checkpoint(centered, block, use_reentrant=False, preserve_rng_state=False) for block in blocks]
        )
        return keys - keys.mean(dim=0)  # takes the rest out of the gradients, too: their sum over the keys is zero

    def _keys(self, codebook: torch.Tensor) -> torch.Tensor:
        return call_in_float32(self.norm_k, call_in_float32(self.to_k, codebook))

    def _levels(
        self,
        latents: torch.Tensor,
        retrieve_level: Callable[[torch.Tensor], tuple[Found, torch.Tensor]],
        layout: CodeLayout | None = None,
    ) -> Iterator[tuple[torch.Tensor, Found, torch.Tensor]]:
        """The residual loop (paper, Section 3.2): yields each level's input, its retrieval and its contribution."""
        b, c, h, w = latents.shape
        residual = latents
        for height, width in (layout or self.layout).sides:
            level = downsample(residual, (height, width))
            found, values = retrieve_level(level)  # values: (B·h_l·w_l, C)
            upsampled = upsample(values.reshape(b, height, width, c).movedim(-1, 1), (h, w))
            residual = residual - upsampled
            yield level, found, upsampled

    def _checked(self, latents: torch.Tensor, check: bool = True) -> torch.Tensor:
        if latents.ndim != 4 or latents.shape[1] != self.config.latent_channels:
            raise CodaError(
                f"latents have shape {tuple(latents.shape)}, expected (B, {self.config.latent_channels}, h, w)"
            )
        if latents.shape[0] == 0:
            raise CodaError("there are no latents to quantize: the batch is empty")
        latents = latents.to(torch.promote_types(self.codebook.weight.dtype, torch.float32))
        if not check or torch.compiler.is_compiling():  # a graph cannot depend on its data
            return latents
        if not latents.sum().isfinite() and not latents.isfinite().all():  # a sum alone may overflow, but is fast
            raise CodaError("latents hold NaN or infinite values: the images or the VAE's weights are damaged")
        return latents


def _norm(name: str | None, dim: int) -> nn.Module:
    match name:
        case None:
            return nn.Identity()
        case "layer_norm":
            return nn.LayerNorm(dim, eps=1e-5)
        case "rms_norm":
            return nn.RMSNorm(dim, eps=1e-5)
    raise CodaError(f"norm {name!r} is not known; expected none, layer_norm or rms_norm")
