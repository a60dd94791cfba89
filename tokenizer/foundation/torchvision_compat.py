"""Lets a CPU build of torch live beside PyPI's torchvision, which is built for CUDA.

torch-fidelity requires torchvision, and wherever torchvision is installed, transformers (and with it peft and
diffusers) imports it. Beside a torch that it was not built for, that import dies of `operator torchvision::nms does
not exist`: its compiled operators could not be loaded, yet schemas are registered for them. Declaring the two missing
schemas lets the import succeed; the operators stay unusable, and nothing here uses them.

Importing this module loads no torch: the schemas are declared just before torchvision is first imported, and only if
its operators do not load.
"""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: Any = None  # a torch.library.Library: its schemas live as long as it does


def declare_missing_operators() -> bool:
    """Declare torchvision's schemas if its compiled operators cannot load; True if that was necessary."""
    import torch

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


class _BeforeTorchvision(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            declare_missing_operators()
        return None  # the usual finders find it


def declare_before_import() -> None:
    """Call `declare_missing_operators` once, when torchvision is first looked for."""
    if "torchvision" not in sys.modules:
        sys.meta_path.insert(0, _BeforeTorchvision())
