"""Muon: momentum whose update of a matrix is made orthogonal, so that all its directions learn at one rate.

After Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024. Updates are scaled to be as large
as AdamW's, so that one learning rate serves both (Liu et al., *Muon is Scalable for LLM Training*, 2025, Eq 4).
`torch.optim.Muon` does the same for matrices alone, and always in bfloat16, which most CPUs emulate.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch

_MOMENTUM = 0.95
# Coefficients of the Newton-Schulz iteration: the steepest at zero that still keeps singular values near 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ITERATIONS = 5
_LIKE_ADAMW = 0.2  # root mean square of AdamW's updates, in units of the learning rate


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum.

    Args:
        parameters: Matrices (outputs, inputs), or convolutions (outputs, ...), which count as such.
        weight_decay: Decoupled weight decay, as AdamW's.
        dtype: Type in which updates are made orthogonal: bfloat16 where the device computes in it, else float32.
    """

    def __init__(
        self, parameters: Iterable[torch.Tensor], weight_decay: float = 0.0, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__(parameters, {"lr": 0.0, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # without a closure
        """Update all parameters that have a gradient.

        On an accelerator, matrices of one shape are updated together: a kernel of one small matrix takes no longer to
        run than to launch. On a CPU each alone is faster.
        """
        for group in self.param_groups:
            lr, decay = group["lr"], group["weight_decay"]
            together: dict[object, list[tuple[torch.Tensor, torch.Tensor]]] = defaultdict(list)
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    alone = parameter.device.type == "cpu"
                    together[number if alone else parameter.shape].append((parameter, parameter.grad))
            for pairs in together.values():
                parameters, gradients = map(list, zip(*pairs, strict=True))
                momenta = [self._momentum(parameter) for parameter in parameters]
                torch._foreach_lerp_(momenta, gradients, 1 - _MOMENTUM)
                matrices = [nesterov.flatten(1) for nesterov in torch._foreach_lerp(gradients, momenta, _MOMENTUM)]
                updates = orthogonalize(torch.stack(matrices).to(self._dtype)).to(matrices[0].dtype)
                size = _LIKE_ADAMW * max(matrices[0].shape) ** 0.5
                torch._foreach_mul_(parameters, 1 - lr * decay)
                torch._foreach_add_(parameters, list(updates.unflatten(2, parameters[0].shape[1:])), alpha=-lr * size)

    def _momentum(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: torch.Tensor = state["momentum"]
        return momentum


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Matrices (P, rows, columns) with singular values moved to about 1 by Newton-Schulz iteration; zero stays zero."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.mT if tall else x
