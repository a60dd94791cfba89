"""A user's image or mask, as a file, a PIL image or a tensor, as the tensor that a tokenizer takes."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import ExifTags, Image, ImageOps

from coda.tokenizer import CodaError
from coda.tokenizer.foundation.errors import shown
from coda.tokenizer.images import BrokenImage, decode_image, to_unit
from coda.tokenizer.images.folders import read_image_file
from coda.tokenizer.images.source import MAX_PIXELS

ImageInput = str | Path | Image.Image | torch.Tensor
_PNG_MODES = ("1", "I;16", "L", "LA", "P", "RGB", "RGBA")


def load_image(image: ImageInput, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """One image (1, 3, H, W) in [-1, 1] on the CPU.

    Args:
        image: A file or a PIL image, which are turned upright, scaled and center-cropped; or a tensor (3, H, W) or
            (1, 3, H, W) in [-1, 1] of exactly that size.
        size: (H, W).
        max_pixels: A file or PIL image with more pixels is refused, see `decode_image`.

    Raises:
        CodaError: If the file is missing, not an image or too large, or the tensor is of another size.
    """
    if isinstance(image, torch.Tensor):
        if image.shape not in ((3, *size), (1, 3, *size)):
            raise CodaError(f"the image has shape {tuple(image.shape)}, expected (3, {size[0]}, {size[1]})")
        return image.detach().float().cpu().reshape(1, 3, *size)
    name = "the image" if isinstance(image, Image.Image) else shown(image)
    try:
        content = _as_png(image) if isinstance(image, Image.Image) else read_image_file(Path(image).expanduser())
        return to_unit(decode_image(content, size, max_pixels=max_pixels)).unsqueeze(0)
    except BrokenImage as error:
        raise CodaError(f"{name} {error}") from error
    except OSError as error:
        raise CodaError(f"{name} cannot be read: {error.strerror or error}") from error


def load_mask(mask: str | Path | Image.Image, size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> torch.Tensor:
    """Where a mask image is light and not transparent, (H, W) bool; scaled and cropped as `load_image` does it.

    Raises:
        CodaError: If the file is missing or not an image.
    """
    light = load_image(mask, size, max_pixels)[0].mean(dim=0) > 0  # transparent pixels are white here
    opened = mask if isinstance(mask, Image.Image) else Image.open(Path(mask).expanduser())
    if not opened.has_transparency_data:
        return light
    upright = opened if _orientation(opened) == 1 else ImageOps.exif_transpose(opened)
    opacity = upright.convert("RGBA").getchannel("A")
    return light & (load_image(opacity, size, max_pixels)[0, 0] > 0)


def image_shape(image: ImageInput) -> tuple[int, int]:
    """(height, width) in pixels of an image, upright, that `load_image` could read."""
    if isinstance(image, torch.Tensor):
        return image.shape[-2], image.shape[-1]
    opened = image if isinstance(image, Image.Image) else Image.open(Path(image).expanduser())
    return opened.size if _orientation(opened) in (5, 6, 7, 8) else (opened.height, opened.width)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged tag: the pixels are sound
        return 1


def _as_png(image: Image.Image) -> bytes:
    """A PIL image as a file, without loss: there is one way from files to tensors."""
    buffer = io.BytesIO()
    plain = image if image.mode in _PNG_MODES else image.convert("RGB")
    plain.save(buffer, "PNG", compress_level=0, exif=image.getexif())
    return buffer.getvalue()
