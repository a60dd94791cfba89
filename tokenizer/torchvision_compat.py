"""Lets a CPU build of torch live beside PyPI's torchvision, which is built for CUDA.

torch-fidelity requires torchvision, and wherever torchvision is installed, transformers (and with it peft and
diffusers) imports it. Beside a torch that it was not built for, that import dies of `operator torchvision::nms does
not exist`: its compiled operators could not be loaded, yet schemas are registered for them. Declaring the two missing
schemas lets the import succeed; the operators stay unusable, and nothing here uses them.

Acts only where torchvision is installed *and* its operators do not load.
"""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # schemas live as long as this object


def declare_missing_operators() -> bool:
    """Declare torchvision's schemas if its compiled operators cannot load; True if that was necessary."""
    global _library
    spec = importlib.util.find_spec("torchvision")
    if _library is not None or spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return False
    if _operators_load(Path(spec.origin).parent):
        return False
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
    return True


def _operators_load(folder: Path) -> bool:
    """Whether the compiled part of torchvision in `folder` can be loaded into this process."""
    compiled = [*folder.glob("_C*.so"), *folder.glob("_C*.pyd"), *folder.glob("_C*.dll")]
    try:
        for path in compiled:
            ctypes.CDLL(str(path))
    except OSError:
        return False
    return bool(compiled)


declare_missing_operators()
