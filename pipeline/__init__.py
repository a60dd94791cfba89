"""What a user touches: the pipeline, reconstruction, editing, the classes' names and the command line.

Names are looked up when they are first used, so that `import coda.pipeline` and `coda --help` load no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .classes import ClassTable, ImageClass, find_classes, imagenet_classes
    from .coda_pipeline import CodaPipeline, CodaPipelineOutput
    from .editing import Edit, change_class, inpaint, outpaint, vary
    from .grid import labelled_grid
    from .reconstruction import Reconstruction, reconstruct

_HOME = {
    "ClassTable": "classes",
    "ImageClass": "classes",
    "find_classes": "classes",
    "imagenet_classes": "classes",
    "CodaPipeline": "coda_pipeline",
    "CodaPipelineOutput": "coda_pipeline",
    "Edit": "editing",
    "change_class": "editing",
    "inpaint": "editing",
    "outpaint": "editing",
    "vary": "editing",
    "labelled_grid": "grid",
    "Reconstruction": "reconstruction",
    "reconstruct": "reconstruction",
}

__all__ = [
    "ClassTable",
    "CodaPipeline",
    "CodaPipelineOutput",
    "Edit",
    "ImageClass",
    "Reconstruction",
    "change_class",
    "find_classes",
    "imagenet_classes",
    "inpaint",
    "labelled_grid",
    "outpaint",
    "reconstruct",
    "vary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
