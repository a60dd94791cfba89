"""What only a GPU can show; `make gpu` runs it. Where a CPU can run the same test at a small shape, it does."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique")  # operators whose result the host needs


class _Waits(TorchDispatchMode):
    """Counts the operators that would wait for an accelerator, on any device."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = "index" in name and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for indices in args
            if isinstance(indices, list | tuple)
            for index in indices
        )
        self.count += by_mask or name.startswith(_WAITS)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def waits() -> Callable[[Callable[[], object], torch.device], int]:
    """`waits(work, device)`: how often `work` waits for the device, or on a CPU would have to wait for another one."""

    def count(work: Callable[[], object], device: torch.device) -> int:
        if device.type == "cpu":
            with _Waits() as found:
                work()
            return found.count
        work()  # the first time, libraries start
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in seen)

    return count
