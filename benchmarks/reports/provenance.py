"""Provenance of a figure: versions, hardware, date, command. Without them it cannot be compared with others."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from coda.tokenizer.fingerprint import weights_digest

_PACKAGES = (
    "coda",
    "torch",
    "triton",
    "vector-quantize-pytorch",
    "muse-maskgit-pytorch",
    "torchvision",
    "diffusers",
    "peft",
    "torch-fidelity",
    "numpy",
    "pillow",
)


def describe_run(device: torch.device) -> dict[str, Any]:
    """Versions, hardware, date (UTC) and command of this process, as JSON."""
    return {
        "versions": versions(),
        "hardware": hardware(device),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that can change a figure."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine and the device."""
    found: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "system": platform.system(),
        "device": str(device),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"gpu": properties.name, "gpu_memory_gib": round(properties.total_memory / 2**30, 1)}
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "driver": _driver()}
    return found


def command() -> str:
    """The command line, as it was typed but for the program's folder: `coda …` or `python -m coda.pipeline …`."""
    program, *arguments = sys.argv or ["python"]
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None) if getattr(main, "__file__", None) == program else None  # of `python -m`
    words = ["python", "-m", spec.name.removesuffix(".__main__")] if spec else [Path(program).name or "python"]
    return shlex.join([*words, *arguments])


def model_identity(model: object) -> str:
    """Identify a model by its fingerprint, or a hash of its tensors.

    A bare callable has neither. It is identified by the time, so that no two calls take it for the same model.
    """
    name = type(model).__name__
    fingerprint = getattr(model, "fingerprint", None)
    if isinstance(fingerprint, str):
        return f"{name} {fingerprint}"
    if isinstance(model, torch.nn.Module):
        return f"{name} {weights_digest(name, model)}"
    return f"{name} without a fingerprint, {datetime.now(UTC).isoformat()}"


def class_balance(labels: Sequence[int]) -> str:
    """Images per class: "uniform: 50 each of 1000 classes"; -1 is an unknown label."""
    counts: dict[int, int] = {}
    for label in labels:
        counts[int(label)] = counts.get(int(label), 0) + 1
    unknown = counts.pop(-1, 0)
    if not counts:
        return "unknown: no labels"
    least, most = min(counts.values()), max(counts.values())
    spread = f"uniform: {most} each" if least == most else f"uneven: {least} to {most} each"
    return f"{spread} of {len(counts)} classes" + (f", {unknown} without a label" if unknown else "")


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _driver() -> str | None:
    """The version of NVIDIA's driver; None if nvidia-smi does not say."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
