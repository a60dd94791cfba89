"""The training objective: cross-entropy at masked cells, in chunks.

B images · T cells of all levels · M masked cells · L levels · K codes · D hidden width
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from coda.tokenizer.layout import CodeLayout
from coda.tokenizer.quantizer.resampling import prefix_latents

from .masking import TrainingDraw
from .transformer import MaskGitTransformer

LOGITS_AT_ONCE = 1 << 23  # rows × K of one chunk on a CPU: 32 MiB in float32
_ON_ACCELERATOR = 1 << 26  # where smaller chunks take longer to launch than to compute


def level_weights(law: str, layout: CodeLayout) -> tuple[float, ...]:
    """Weight of each level's mean loss; they sum to 1.

    Args:
        law: "equal"; "sqrt", by the square root of a level's cells; "tokens", by its cells, as in VAR; "lognormal", a
            bell over the logarithm of the side around the middle, for a difficulty that HMAR (arXiv 2506.04421) finds
            to have that form.
        layout: Layout of the codes.
    """
    sides = [math.sqrt(h * w) for h, w in layout.sides]
    middle = math.sqrt(sides[0] * sides[-1])
    weights = {
        "equal": [1.0 for _ in sides],
        "sqrt": sides,
        "tokens": [side**2 for side in sides],
        "lognormal": [math.exp(-(math.log(side / middle) ** 2) / 2) for side in sides],
    }[law]
    return tuple(weight / sum(weights) for weight in weights)


@dataclass(frozen=True)
class ObjectiveOutput:
    """Loss of one batch.

    Attributes:
        loss: Scalar with gradient: the weighted mean of `level_losses`, with label smoothing.
        level_losses: (L,) mean cross-entropy (nats) at the masked cells of each level, without gradient. Those of a
            process's share of the batch are relative to the cells of the whole, so that their mean over the processes
            is that of the batch.
    """

    loss: torch.Tensor
    level_losses: torch.Tensor


class MaskedCodeObjective(nn.Module):
    """The transformer with its loss as one module, so that processes average all gradients.

    Args:
        transformer: What is trained.
        weights: Law of `level_weights`.
        label_smoothing: Share of the target that is spread over all codes.
    """

    level_weights: torch.Tensor

    def __init__(self, transformer: MaskGitTransformer, weights: str = "equal", label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.transformer = transformer
        by_level = torch.tensor(level_weights(weights, transformer.layout), device=transformer.device)
        self.register_buffer("level_weights", by_level, persistent=False)
        self.label_smoothing = label_smoothing

    def forward(
        self, codes: torch.Tensor, labels: torch.Tensor, draw: TrainingDraw, batch_codes: torch.Tensor | None = None
    ) -> ObjectiveOutput:
        """Loss of all levels of every image, in one packed pass.

        Args:
            codes: (B, T) int64, the true codes.
            labels: (B,) int64; -1 stands for no class.
            draw: The random choices, on the device of `codes`.
            batch_codes: The codes of the whole batch if `codes` are a process's share of it.
        """
        model, layout = self.transformer, self.transformer.layout
        none = model.class_embedding.num_embeddings - 1
        labels = torch.where(draw.unconditional | (labels < 0), none, labels)
        with torch.no_grad(), torch.autocast(codes.device.type, enabled=False):
            # Corrupt with another image's code at the same cell: each level keeps its own distribution of codes.
            sources = (codes if batch_codes is None else batch_codes)[draw.source_images]
            corrupted_codes = torch.where(draw.corrupted, sources, codes)
            prefixes = prefix_latents(corrupted_codes, layout, model.value_table.float())[:-1]
        features = model(codes.masked_fill(draw.masked, layout.codebook_size), prefixes, labels).features

        cells_per_level = [h * w for h, w in layout.sides]
        masked_per_level = draw.mean_masked * len(codes)  # (L,)
        level_of_cell = torch.cat([codes.new_full((n,), level) for level, n in enumerate(cells_per_level)])
        level_of_row = level_of_cell[draw.cells % len(level_of_cell)]  # (M,)
        row_weights = (self.level_weights / masked_per_level)[level_of_row]
        loss, row_losses = chunked_cross_entropy(
            features.flatten(0, 1)[draw.cells],
            model.code_embedding.weight,
            codes.flatten()[draw.cells],
            row_weights,
            label_smoothing=self.label_smoothing,
        )
        sums = torch.zeros_like(masked_per_level).index_add_(0, level_of_row, row_losses)
        return ObjectiveOutput(loss, sums / masked_per_level)


def chunked_cross_entropy(
    features: torch.Tensor,
    head: torch.Tensor,
    targets: torch.Tensor,
    weights: torch.Tensor,
    logits_at_once: int | None = None,
    label_smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted cross-entropy of a linear head that never holds all logits.

    The forward pass computes the logits of a chunk of rows, their loss *and* their gradients (softmax − one-hot), then
    frees them: the work of the dense form in the memory of one chunk, as in fused losses for large vocabularies (Liger,
    arXiv 2410.10989, Section 3.2).

    Args:
        features: (M, D).
        head: (K, D).
        targets: (M,) int64 in [0, K).
        weights: (M,) float32, weight of each row, without gradient.
        logits_at_once: Rows × K of one chunk; by default 2^23 on a CPU, 2^26 elsewhere.
        label_smoothing: Share ε of the target that is spread over all codes, as in `torch.nn.CrossEntropyLoss`.

    Returns:
        Σ weight · cross-entropy with smoothed targets, a float32 scalar; and the cross-entropy of each row without
        smoothing, (M,), without gradient.
    """
    if logits_at_once is None:
        logits_at_once = LOGITS_AT_ONCE if features.device.type == "cpu" else _ON_ACCELERATOR
    loss, rows = _ChunkedCrossEntropy.apply(features, head, targets, weights, logits_at_once, label_smoothing)
    return loss, rows


class _ChunkedCrossEntropy(torch.autograd.Function):
    """See `chunked_cross_entropy`."""

    @staticmethod
    def forward(
        ctx: Any,
        features: torch.Tensor,
        head: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        logits_at_once: int,
        label_smoothing: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The losses, and the gradients for `backward` if any are needed."""
        differentiable = any(ctx.needs_input_grad[:2])
        kind = features.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features.dtype
        rows = max(1, logits_at_once // len(head))
        losses = torch.empty(len(targets), dtype=torch.float32, device=features.device)
        smoothed = torch.empty_like(losses)
        d_features = torch.empty_like(features) if differentiable else None
        d_head = torch.zeros_like(head, dtype=torch.float32) if differentiable else None
        with torch.autocast(kind, enabled=False):
            table = head.to(dtype)
            for first in range(0, len(targets), rows):
                part = slice(first, first + rows)
                x, target, weight = features[part].to(dtype), targets[part, None], weights[part, None]
                logits = (x @ table.mT).float()  # (r, K)
                log_sum = logits.logsumexp(dim=1, keepdim=True)
                losses[part] = (log_sum - logits.gather(1, target))[:, 0]
                smoothed[part] = losses[part]
                if label_smoothing:  # (1 − ε) · -log p + ε · the mean of -log p over the codes
                    smoothed[part] += label_smoothing * (log_sum[:, 0] - logits.mean(dim=1) - losses[part])
                if d_features is not None and d_head is not None:
                    d_logits = logits.sub_(log_sum).clamp_(min=-80).exp_()
                    if label_smoothing:
                        d_logits -= label_smoothing / len(head)
                    d_logits = d_logits.mul_(weight).scatter_add_(1, target, (label_smoothing - 1) * weight).to(dtype)
                    d_features[part] = (d_logits @ table).to(features.dtype)
                    d_head += d_logits.mT @ x
        ctx.save_for_backward(d_features, d_head)
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(losses)
        return (smoothed * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, *grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Scale the gradients that `forward` computed."""
        d_features, d_head = ctx.saved_tensors
        return d_features * grad[0], (d_head * grad[0]).to(ctx.head_dtype), None, None, None, None
