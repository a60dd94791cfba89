"""Images from folders, archives and tables, decoded and cropped in one place."""

from typing import TYPE_CHECKING

from ..foundation.lazy import lazy_package

if TYPE_CHECKING:
    from .decoding import CROPS, decode_image
    from .loading import ImageBatch, ImageDataset, Skipped, image_batches, read_batches, training_batches
    from .opening import open_images
    from .pixel_range import to_pil, to_uint8, to_unit
    from .source import BrokenImage, ImageSource

__all__ = lazy_package(
    __name__,
    {
        ".decoding": ["CROPS", "decode_image"],
        ".loading": [
            "ImageBatch",
            "ImageDataset",
            "Skipped",
            "image_batches",
            "read_batches",
            "training_batches",
        ],
        ".opening": ["open_images"],
        ".pixel_range": ["to_pil", "to_uint8", "to_unit"],
        ".source": ["BrokenImage", "ImageSource"],
    },
)
