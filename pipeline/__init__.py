"""The pipeline, reconstruction, editing, class names and the command line."""

from typing import TYPE_CHECKING

from coda.tokenizer.foundation.lazy import lazy_package

if TYPE_CHECKING:
    from coda.tokenizer.images.grid import labelled_grid

    from .classes import ClassTable, ImageClass, find_classes, imagenet_classes
    from .coda_pipeline import CodaPipeline, CodaPipelineOutput
    from .editing import Edit, change_class, inpaint, outpaint, vary
    from .reconstruction import Reconstruction, reconstruct

__all__ = lazy_package(
    __name__,
    {
        ".classes": ["ClassTable", "ImageClass", "find_classes", "imagenet_classes"],
        ".coda_pipeline": ["CodaPipeline", "CodaPipelineOutput"],
        ".editing": ["Edit", "change_class", "inpaint", "outpaint", "vary"],
        "coda.tokenizer.images.grid": ["labelled_grid"],
        ".reconstruction": ["Reconstruction", "reconstruct"],
    },
)
