"""What a training carries from step to step: weights, their average, the optimiser, and all of it in a checkpoint.

Nothing random is among it: every draw follows from seed and step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from coda.tokenizer.training.run_directory import Checkpoint

_BETAS, _WEIGHT_DECAY = (0.9, 0.96), 0.03


def new_optimizer(transformer: nn.Module, lr: float, fused: bool) -> torch.optim.AdamW:
    """AdamW as MaskGIT sets it; weight decay for the matrices of the blocks, none for embeddings and norms."""
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in transformer.named_parameters():
        (decayed if parameter.ndim == 2 and "embedding" not in name else free).append(parameter)
    groups = [{"params": decayed, "weight_decay": _WEIGHT_DECAY}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=_BETAS, fused=fused)


def new_average(transformer: nn.Module, decay: float) -> AveragedModel:
    """Exponential moving average (EMA) of the weights."""
    return AveragedModel(transformer, multi_avg_fn=_growing_decay(decay))


def _growing_decay(decay: float) -> Callable[..., None]:
    """A decay that grows to `decay`, so that a young average forgets the random start: it spans a tenth of its age."""

    @torch.no_grad()
    def update(averages: list[torch.Tensor], current: list[torch.Tensor], updates: torch.Tensor | int) -> None:
        young = (1 + int(updates)) / (10 + int(updates))
        torch._foreach_lerp_(averages, current, 1 - min(decay, young))

    return update


def checkpoint_tensors(transformer: nn.Module, average: AveragedModel, optimizer: Any) -> dict[str, torch.Tensor]:
    """Everything a resumed run needs, by name."""
    tensors = {f"model.{name}": tensor for name, tensor in transformer.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in state.items()}
    return tensors


def restore(checkpoint: Checkpoint | None, transformer: nn.Module, average: AveragedModel, optimizer: Any) -> int:
    """Put everything back as it was; returns the number of steps already done."""
    if checkpoint is None:
        return 0
    parts: dict[str, dict[str, torch.Tensor]] = {"model": {}, "average": {}, "optimizer": {}}
    for name, tensor in checkpoint.tensors.items():
        part, rest = name.split(".", 1)
        parts[part][rest] = tensor
    transformer.load_state_dict(parts["model"])
    average.load_state_dict(parts["average"])
    state = optimizer.state_dict()
    for name, tensor in parts["optimizer"].items():
        index, key = name.split(".")
        state["state"].setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict(state)
    return checkpoint.step
