"""Layers and a decorator that keep the quantizer in full precision, whatever its weights and its caller use.

Codes are chosen by small differences of large logits, which half precision rounds away: with bfloat16 arithmetic most
of the codebook is never chosen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 as float32; wider types as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: turn autocast off while `function` runs."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        enabled = [device for device in ("cpu", "cuda", "mps", "xpu") if torch.is_autocast_enabled(device)]
        if not enabled:
            return function(*args, **kwargs)
        with ExitStack() as stack:
            for device in enabled:
                stack.enter_context(torch.autocast(device, enabled=False))
            return function(*args, **kwargs)

    return wrapped


class Linear(nn.Linear):
    """`nn.Linear` that computes in float32 when its weights are float16 or bfloat16."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, in_features) to (…, out_features)."""
        return F.linear(at_least_float32(input), at_least_float32(self.weight), at_least_float32(self.bias))


class LayerNorm(nn.LayerNorm):
    """`nn.LayerNorm` that computes in float32 when its weights are float16 or bfloat16."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, d) to the same."""
        weight, bias = at_least_float32(self.weight), at_least_float32(self.bias)
        return F.layer_norm(at_least_float32(input), self.normalized_shape, weight, bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """`nn.RMSNorm` that computes in float32 when its weights are float16 or bfloat16."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, d) to the same."""
        return F.rms_norm(at_least_float32(input), self.normalized_shape, at_least_float32(self.weight), self.eps)
