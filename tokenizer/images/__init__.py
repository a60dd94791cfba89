"""Images from folders, archives and tables, decoded and cropped in one place."""

from .decoding import CROPS, decode_image
from .loading import ImageBatch, ImageDataset, Skipped, image_batches, read_batches, training_batches
from .opening import open_images
from .pixel_range import to_pil, to_uint8, to_unit
from .source import BrokenImage, ImageSource

__all__ = [
    "CROPS",
    "BrokenImage",
    "ImageBatch",
    "ImageDataset",
    "ImageSource",
    "Skipped",
    "decode_image",
    "image_batches",
    "open_images",
    "read_batches",
    "to_pil",
    "to_uint8",
    "to_unit",
    "training_batches",
]
