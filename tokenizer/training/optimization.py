"""Shared by the three training loops: device and precision, learning rate, optimizer with EMA, finite check.

Everything random follows from (seed, step), so a checkpoint is a safetensors file and a step number.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from diffusers.training_utils import EMAModel
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..foundation.device import resolve_device
from ..foundation.distributed import mean_over_processes
from ..foundation.errors import CodaError
from ..foundation.launcher import check_world_size, rank_and_world_size, was_launched
from ..foundation.settings import OptimizerName
from ..images.loading import ImageBatch
from .muon import Muon
from .run_directory import RunDirectory

LOG_EVERY = 10  # steps
_MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's state of a parameter
_MOMENTUM = ("momentum",)  # Muon's
_MIXED_PRECISION = {"float32": "no", "bfloat16": "bf16"}


def start_accelerator(device: str = "auto", dtype: str = "auto") -> Accelerator:
    """Start accelerate on a device and in a precision.

    Processes that `torchrun` or `accelerate launch` started work together, on the CPU if there is nothing else.

    Args:
        device: "auto" (CUDA or MPS if available), "cpu", "mps", "cuda" or "cuda:N".
        dtype: "float32"; "bfloat16" for mixed precision (weights stay float32); "auto": bfloat16 on CUDA devices that
            compute in it, else float32 (most CPUs emulate bfloat16, hundreds of times slower; with AMX it is faster).

    Raises:
        CodaError: If there is no such device or dtype, or the processes that were started cannot work together.
    """
    wanted = None if device == "auto" else resolve_device(device)
    if dtype == "auto":
        on_cuda = torch.cuda.is_available() and (wanted is None or wanted.type == "cuda")
        dtype = "bfloat16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if dtype not in _MIXED_PRECISION:
        raise CodaError(f"dtype {dtype!r} is not known for training; it is auto, {' or '.join(_MIXED_PRECISION)}")
    launched = rank_and_world_size()[1]
    if launched == 1:
        check_world_size(1)
        if not was_launched():
            os.environ.pop("LOCAL_RANK", None)  # left by something else; accelerate would wait for other processes
    elif wanted is not None and (wanted.index is not None or wanted.type == "mps"):
        raise CodaError(f"device {device} is one device, and {launched} processes were started; use cuda or cpu")
    shareable = torch.accelerator.is_available() and not torch.backends.mps.is_available()
    cpu = launched > 1 and not shareable if wanted is None else wanted.type == "cpu"
    if PartialState(cpu=cpu).num_processes == 1:  # otherwise a second training in this process could not choose again
        AcceleratorState._reset_state(reset_partial_state=True)
    if wanted is not None and wanted.index is not None:
        torch.cuda.set_device(wanted)
    accelerator = Accelerator(cpu=cpu, mixed_precision=_MIXED_PRECISION[dtype])
    check_world_size(accelerator.num_processes)
    if accelerator.device.type == "cuda":
        _repeat_to_the_bit()
    return accelerator


def _repeat_to_the_bit() -> None:
    """Let CUDA choose algorithms that give the same bits every time, so that a resumed run ends with the same bytes."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)


def open_run_directory(
    accelerator: Accelerator, out: str | Path, kind: str, record: dict[str, Any], overwrite: bool
) -> RunDirectory:
    """The run directory; `record` is everything that changes the result, apart from the precision."""
    with accelerator.main_process_first():
        return RunDirectory(out, kind, {**record, "precision": accelerator.mixed_precision}, overwrite)


def learning_rate(step: int, steps: int, peak: float, warmup: int, decay: str = "cosine", floor: float = 0.0) -> float:
    """Learning rate of step `step` (from 0): linear warm-up, then "constant" or "cosine" down to `floor` · `peak`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    if decay == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))


def micro_batches(batches: Iterable[ImageBatch], start: int, parts: int) -> Iterator[tuple[int, ImageBatch, bool]]:
    """Each step's batch in `parts` equal parts, for gradients that are accumulated.

    Args:
        batches: One per step.
        start: Number of the first step.
        parts: Parts of a batch; its length is a multiple of it.

    Yields:
        The step, a part, and whether it is the step's last, which alone names the batch's skipped items.
    """
    for step, batch in enumerate(batches, start):
        length = len(batch) // parts
        for i in range(parts):
            cut, last = slice(i * length, (i + 1) * length), i == parts - 1
            yield (
                step,
                ImageBatch(
                    batch.pixels[cut],
                    batch.labels[cut],
                    batch.keys[cut],
                    batch.indices[cut],
                    batch.skipped if last else [],
                ),
                last,
            )


def synchronize_gradients(model: nn.Module, on: bool) -> None:
    """Choose whether backward passes average the gradients over processes: only the last of a step has to."""
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = on


def check_finite(step: int, **figures: torch.Tensor) -> dict[str, float]:
    """Losses and gradient norm after `step` steps, as numbers: the means over all processes, which all call it.

    Raises:
        CodaError: If one of them is NaN or infinite.
    """
    means = mean_over_processes(torch.stack([tensor.detach().float() for tensor in figures.values()]))
    values = dict(zip(figures, means.tolist(), strict=True))
    for name, value in values.items():
        if not math.isfinite(value):
            raise CodaError(f"the {name} is {value} at step {step}: the training has diverged; a lower lr may help")
    return values


class OptimizerWithEMA:
    """AdamW or Muon with gradient clipping, and an exponential moving average (EMA) of the weights.

    Args:
        module: Its parameters that require gradients are trained.
        betas: AdamW's betas.
        ema_decay: EMA decay; after n updates at most (1 + n) / (10 + n). None keeps no average.
        weight_decay: Weight decay of matrices other than embeddings, with Muon also of convolutions. All other
            parameters have none.
        decay_all: Decay all parameters.
        max_gradient_norm: Gradients with a larger norm are scaled down to it.
        fused: Use torch's fused kernel of AdamW instead of its foreach implementation.
        optimizer: "adamw" for all parameters; "muon" for hidden matrices and convolutions, with AdamW for the rest:
            embeddings, 1×1 convolutions, and everything with one dimension.
        precision: accelerate's mixed precision; Muon computes in bfloat16 with "bf16".
    """

    def __init__(
        self,
        module: nn.Module,
        betas: tuple[float, float],
        ema_decay: float | None = None,
        weight_decay: float = 0.0,
        decay_all: bool = False,
        max_gradient_norm: float = 1.0,
        fused: bool = False,
        optimizer: OptimizerName = "adamw",
        precision: str = "no",
    ) -> None:
        self._named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._parameters = list(self._named.values())
        hidden = [name for name, p in self._named.items() if optimizer == "muon" and _is_hidden(name, p)]
        rest = [name for name in self._named if name not in hidden]
        decayed = {name for name, p in self._named.items() if decay_all or (p.ndim == 2 and "embedding" not in name)}
        groups = [
            {"params": [self._named[n] for n in rest if n in decayed], "weight_decay": weight_decay},
            {"params": [self._named[n] for n in rest if n not in decayed], "weight_decay": 0.0},
        ]
        # `foreach` is stated: torch's own choice differs between devices, and with it the last bits.
        adamw = torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=fused, foreach=not fused)
        self._optimizers: list[torch.optim.Optimizer] = [adamw]
        self._of_parameter: dict[str, tuple[torch.optim.Optimizer, tuple[str, ...]]]
        self._of_parameter = dict.fromkeys(rest, (adamw, _MOMENTS))
        if hidden:
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            muon = Muon([self._named[n] for n in hidden], weight_decay, dtype)
            self._optimizers.append(muon)
            self._of_parameter.update(dict.fromkeys(hidden, (muon, _MOMENTUM)))
        self._fused, self._max_gradient_norm = fused, max_gradient_norm
        self._ema = None if ema_decay is None else EMAModel(self._parameters, decay=ema_decay, foreach=True)

    def step(self, lr: float) -> torch.Tensor:
        """Clip the gradients, update the weights and their average, drop the gradients.

        Returns:
            The norm of the gradients before clipping, a scalar.
        """
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_gradient_norm)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            optimizer.step()
            optimizer.zero_grad()
        if self._ema is not None:
            self._ema.step(self._parameters)
        return norm

    def average(self) -> dict[str, torch.Tensor]:
        """The averages by the names of the parameters."""
        assert self._ema is not None
        return dict(zip(self._named, self._ema.shadow_params, strict=True))

    def use_average(self) -> None:
        """Replace the weights by their average, for good."""
        if self._ema is not None:
            self._ema.copy_to(self._parameters)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Replace the weights by their average, for as long as the context lasts."""
        kept = [parameter.detach().clone() for parameter in self._parameters]
        self.use_average()
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weight in zip(self._parameters, kept, strict=True):
                    parameter.copy_(weight)

    def state_tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """All state: `<prefix>.weight.<name>`, `.ema.`, AdamW's `.exp_avg.` and `.exp_avg_sq.`, Muon's `.momentum.`."""
        tensors: dict[str, torch.Tensor] = {}
        for number, (name, parameter) in enumerate(self._named.items()):
            tensors[f"{prefix}.weight.{name}"] = parameter
            optimizer, moments = self._of_parameter[name]
            for key in moments:
                if key in optimizer.state[parameter]:
                    tensors[f"{prefix}.{key}.{name}"] = optimizer.state[parameter][key]
            if self._ema is not None:
                tensors[f"{prefix}.ema.{name}"] = self._ema.shadow_params[number]
        return tensors

    @torch.no_grad()
    def load_state_tensors(self, prefix: str, tensors: Mapping[str, torch.Tensor], updates: int) -> None:
        """Restore what `state_tensors` returned after that many updates.

        Raises:
            CodaError: If the checkpoint belongs to another model.
        """
        expected = {f"{prefix}.weight.{name}" for name in self._named}
        found = {key for key in tensors if key.startswith(f"{prefix}.weight.")}
        if expected != found:
            raise CodaError(f"the checkpoint does not fit: {min(expected ^ found)} is on one side only")
        for number, (name, parameter) in enumerate(self._named.items()):
            parameter.copy_(tensors[f"{prefix}.weight.{name}"])
            if updates:
                optimizer, moments = self._of_parameter[name]
                # Strides as the parameter's: others could take another path, with other last bits.
                state = {key: torch.empty_like(parameter).copy_(tensors[f"{prefix}.{key}.{name}"]) for key in moments}
                if moments is _MOMENTS:
                    state["step"] = torch.tensor(float(updates), device=parameter.device if self._fused else "cpu")
                optimizer.state[parameter] = state
            if self._ema is not None:
                self._ema.shadow_params[number].copy_(tensors[f"{prefix}.ema.{name}"])
        if self._ema is not None:
            self._ema.optimization_step = updates


def _is_hidden(name: str, parameter: torch.Tensor) -> bool:
    """Whether Muon trains a parameter: a hidden matrix, or a convolution of more than single cells."""
    if parameter.ndim == 4:
        return parameter.shape[2:].numel() > 1
    return parameter.ndim == 2 and "embedding" not in name
