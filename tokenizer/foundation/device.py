"""The device that a command or function runs on."""

from __future__ import annotations

import torch

from .errors import CodaError

_KNOWN = "auto, cpu, cuda, cuda:N or mps"


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device of that name, which must be there; "auto" is CUDA where there is one, else the CPU.

    Raises:
        CodaError: The name is unknown, or this machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise CodaError(f"device {str(device)!r} is not known; use {_KNOWN}") from None
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if found.type not in counts:
        raise CodaError(f"device {str(device)!r} is not known; use {_KNOWN}")
    if (found.index or 0) >= counts[found.type]:
        there = (
            f"{counts[found.type]} {found.type.upper()} devices" if counts[found.type] else f"no {found.type.upper()}"
        )
        raise CodaError(f"device {device}: this machine has {there}; use auto or cpu")
    return found
