"""Full precision for the quantizer, whatever the type of its weights and the autocast of its caller.

Codes are chosen by small differences of large logits, which half precision rounds away: with bfloat16 arithmetic most
of the codebook is never chosen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

P = ParamSpec("P")
R = TypeVar("R")


def at_least_float32(tensor: torch.Tensor) -> torch.Tensor:
    """float16 and bfloat16 as float32; wider types as they are."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def call_in_float32(module: nn.Module, inputs: torch.Tensor) -> Any:
    """`module(inputs)`, computed in float32 if the module's weights are float16 or bfloat16."""
    weights = dict(module.named_parameters())
    if all(weight.dtype.itemsize >= 4 for weight in weights.values()):
        return module(inputs)
    widened = {name: at_least_float32(weight) for name, weight in weights.items()}
    return torch.func.functional_call(module, widened, at_least_float32(inputs))


def call_in_float64(module: nn.Module, inputs: torch.Tensor) -> Any:
    """`module(inputs)`, computed in float64."""
    widened = {name: weight.double() for name, weight in module.named_parameters()}
    return torch.func.functional_call(module, widened, inputs.double())


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
