"""Time and memory of one piece of work."""

from __future__ import annotations

import ctypes
import gc
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

_MIB = 2**20
_GEMM_SIZE, _GEMM_SIZE_ON_DEVICE = 2048, 8192


@dataclass(frozen=True)
class Measured:
    """The cost of one piece of work.

    Attributes:
        seconds: The fastest of the repetitions; on CUDA their median, because clocks vary there, while on a CPU other
            work only ever adds.
        slowest: The slowest of them.
        peak_mib: Peak memory above what was held before; None if the system does not report it.
    """

    seconds: float
    slowest: float
    peak_mib: float | None


def measure(work: Callable[[], object], device: torch.device, repeats: int) -> Measured:
    """Run `work` once to measure its memory (and to warm up), then `repeats` times to measure its time."""
    return measure_in_turns([work], device, repeats)[0]


def measure_in_turns(works: list[Callable[[], object]], device: torch.device, repeats: int) -> list[Measured]:
    """Measure several works in turns, so that other load on the machine affects all of them."""
    assert repeats >= 1
    peaks = [_peak_mib(work, device) for work in works]
    seconds: list[list[float]] = [[] for _ in works]
    for _ in range(repeats):
        for work, taken in zip(works, seconds, strict=True):
            taken.append(_seconds(work, device))
    typical = statistics.median if device.type == "cuda" else min
    return [Measured(typical(s), max(s), peak) for s, peak in zip(seconds, peaks, strict=True)]


def matmul_rate(device: torch.device, dtype: torch.dtype, repeats: int) -> float:
    """Operations per second of a large matrix product: what the machine can do."""
    size = _GEMM_SIZE if device.type == "cpu" else _GEMM_SIZE_ON_DEVICE
    a = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / measure(lambda: a @ a, device, repeats).seconds


def available_bytes(device: torch.device) -> int | None:
    """Memory available for an allocation; None if the system does not report it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    available = _kib("/proc/meminfo", "MemAvailable")
    return None if available is None else 1024 * available


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000
    start = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - start


def _peak_mib(work: Callable[[], object], device: torch.device) -> float | None:
    gc.collect(1)  # recent garbage only: a full pass takes longer than some measurements
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        _wait(device)
        return (torch.cuda.max_memory_allocated(device) - before) / _MIB
    _return_freed_memory()
    resettable = _reset_resident_peak()
    before_kib = _kib("/proc/self/status", "VmRSS")
    work()
    peak_kib = _kib("/proc/self/status", "VmHWM")
    if not resettable or before_kib is None or peak_kib is None:
        return None
    return max(0, peak_kib - before_kib) / 1024


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _return_freed_memory() -> None:
    """Let the C library return free memory to the system, so that reusing it does not hide an increase."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        except (OSError, AttributeError):
            return


def _reset_resident_peak() -> bool:
    """Reset the kernel's peak of resident memory (VmHWM); False if that is not possible."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _kib(path: str, key: str) -> int | None:
    """A value of a file such as /proc/meminfo; None if the system has none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{key}:")), None)
