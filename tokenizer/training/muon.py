"""Muon: momentum whose update of a matrix is made orthogonal, so that all its directions learn at one rate.

After Jordan et al., *Muon: An optimizer for hidden layers in neural networks*, 2024. Updates are scaled to be as large
as AdamW's, so that one learning rate serves both (Liu et al., *Muon is Scalable for LLM Training*, 2025, Eq 4).
`torch.optim.Muon` does the same for matrices alone, and always in bfloat16, which most CPUs emulate.
"""

from __future__ import annotations

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
        """Update all parameters that have a gradient."""
        for group in self.param_groups:
            lr, decay = group["lr"], group["weight_decay"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
                matrix = gradient.lerp(state["momentum"], _MOMENTUM).flatten(1)
                update = orthogonalize(matrix.to(self._dtype)).to(parameter.dtype)
                parameter.mul_(1 - lr * decay)
                parameter.add_(update.reshape(parameter.shape), alpha=-lr * _LIKE_ADAMW * max(matrix.shape) ** 0.5)


def orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix with its singular values moved to about 1 by Newton-Schulz iteration; zero stays zero."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if matrix.shape[0] > matrix.shape[1] else x
