"""What a training needs beside its loop: device and precision, the learning rate's course, and the state to go on from.

All of it is a function of the step or a plain tensor, so that a checkpoint is a safetensors file and a step number.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from diffusers.training_utils import EMAModel

from ..foundation.device import resolve_device
from ..foundation.errors import CodaError
from ..foundation.launcher import check_world_size, rank_and_world_size, was_launched

_MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW remembers of a parameter
_DTYPES = {"float32": "no", "bfloat16": "bf16"}


def start_accelerator(device: str = "auto", dtype: str = "auto") -> Accelerator:
    """Start accelerate on the device and in the precision asked for.

    Processes that `torchrun` or `accelerate launch` started work together, on the CPU where there is nothing else.

    Args:
        device: "auto" (what is there), "cpu", "mps", "cuda" or "cuda:N".
        dtype: "float32"; "bfloat16" for mixed precision (weights stay float32); "auto": the second on CUDA devices
            that compute in it, the first elsewhere (CPUs mostly emulate it, hundreds of times slower).

    Raises:
        CodaError: If there is no such device or dtype, or the processes that were started cannot work together.
    """
    wanted = None if device == "auto" else resolve_device(device)
    if dtype == "auto":
        on_cuda = torch.cuda.is_available() and (wanted is None or wanted.type == "cuda")
        dtype = "bfloat16" if on_cuda and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if dtype not in _DTYPES:
        raise CodaError(f"dtype {dtype!r} is not known for training; it is auto, {' or '.join(_DTYPES)}")
    launched = rank_and_world_size()[1]
    if launched == 1:
        check_world_size(1)
        if not was_launched():
            os.environ.pop("LOCAL_RANK", None)  # left by something else; accelerate would wait for other processes
    elif wanted is not None and (wanted.index is not None or wanted.type == "mps"):
        raise CodaError(f"device {device} is one device, and {launched} processes were started; use cuda or cpu")
    shareable = torch.accelerator.is_available() and not torch.backends.mps.is_available()
    cpu = launched > 1 and not shareable if wanted is None else wanted.type == "cpu"
    if PartialState(cpu=cpu).num_processes == 1:  # else a second training of this process could not choose again
        AcceleratorState._reset_state(reset_partial_state=True)
    if wanted is not None and wanted.index is not None:
        torch.cuda.set_device(wanted)
    accelerator = Accelerator(cpu=cpu, mixed_precision=_DTYPES[dtype])
    check_world_size(accelerator.num_processes)
    return accelerator


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Learning rate of step `step` (from 0): up in a line for `warmup` steps, then down a cosine to 0 after `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def finite(loss: torch.Tensor, step: int) -> float:
    """The loss as a number.

    Raises:
        CodaError: It is none any more.
    """
    value = float(loss.detach())
    if not math.isfinite(value):
        raise CodaError(f"the loss is {value} at step {step}: the training has diverged; a lower lr may help")
    return value


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Let all of the optimizer's parameters learn at `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class TrainedParameters:
    """Parameters by name, with their optimizer and their moving average: one part of a checkpoint.

    Args:
        named: (name, parameter) of all that is trained.
        betas: Of AdamW. There is no weight decay: it would pull a quantizer away from its start.
        ema_decay: Of the moving average, reached over the first steps; None for none.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, torch.nn.Parameter]],
        betas: tuple[float, float],
        ema_decay: float | None = None,
    ) -> None:
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        # `foreach` is chosen here: left to torch it differs between devices, and with it the last bits.
        self.optimizer = torch.optim.AdamW(self.parameters, lr=0.0, betas=betas, weight_decay=0.0, foreach=True)
        self.ema = None if ema_decay is None else EMAModel(self.parameters, decay=ema_decay, foreach=True)

    def update(self, rate: float, largest_gradient: float) -> torch.Tensor:
        """One step of the optimizer and of the average; returns the gradient's norm before clipping."""
        set_learning_rate(self.optimizer, rate)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, largest_gradient)
        self.optimizer.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        return norm

    def use_average(self) -> None:
        """Replace the parameters by their moving average, for good."""
        if self.ema is not None:
            self.ema.copy_to(self.parameters)

    def tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """All state: `<prefix>.weight.<name>`, `.exp_avg.`, `.exp_avg_sq.` and `.ema.`."""
        found: dict[str, torch.Tensor] = {}
        for number, (name, parameter) in enumerate(zip(self.names, self.parameters, strict=True)):
            found[f"{prefix}.weight.{name}"] = parameter
            for key in _MOMENTS:
                if key in self.optimizer.state[parameter]:
                    found[f"{prefix}.{key}.{name}"] = self.optimizer.state[parameter][key]
            if self.ema is not None:
                found[f"{prefix}.ema.{name}"] = self.ema.shadow_params[number]
        return found

    @torch.no_grad()
    def load(self, prefix: str, tensors: Mapping[str, torch.Tensor], updates: int) -> None:
        """Take back what `tensors` gave after that many updates.

        Raises:
            CodaError: The checkpoint belongs to something else.
        """
        expected = {f"{prefix}.weight.{name}" for name in self.names}
        found = {key for key in tensors if key.startswith(f"{prefix}.weight.")}
        if expected != found:
            raise CodaError(f"the checkpoint does not fit: {min(expected ^ found)} is on one side only")
        for number, (name, parameter) in enumerate(zip(self.names, self.parameters, strict=True)):
            parameter.copy_(tensors[f"{prefix}.weight.{name}"])
            if updates:
                # As the parameter lies in memory: other strides could take another path, with other last bits.
                moments = {
                    key: torch.empty_like(parameter).copy_(tensors[f"{prefix}.{key}.{name}"]) for key in _MOMENTS
                }
                self.optimizer.state[parameter] = {"step": torch.tensor(float(updates)), **moments}
            if self.ema is not None:
                self.ema.shadow_params[number].copy_(tensors[f"{prefix}.ema.{name}"])
        if self.ema is not None:
            self.ema.optimization_step = updates
