"""A user's picture, in whatever form it comes, as the tensor that a tokenizer takes."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image

from coda.tokenizer import CodaError
from coda.tokenizer.images import BrokenImage, decode_image, to_unit

Picture = str | Path | Image.Image | torch.Tensor
_PNG_MODES = ("1", "I;16", "L", "LA", "P", "RGB", "RGBA")


def open_photograph(image: Picture, size: tuple[int, int]) -> torch.Tensor:
    """One picture (1, 3, H, W) in [-1, 1] on the CPU.

    Args:
        image: A file, a PIL image (both are turned upright, scaled and cut from the middle, as all images are), or a
            tensor (3, H, W) or (1, 3, H, W) in [-1, 1] of that very size.
        size: (H, W).

    Raises:
        CodaError: The file is not there or no image; the tensor is of another size.
    """
    if isinstance(image, torch.Tensor):
        batch = image.detach().float().cpu().reshape(-1, *image.shape[-3:])
        if batch.shape != (1, 3, *size):
            raise CodaError(f"the image has shape {tuple(image.shape)}, expected (3, {size[0]}, {size[1]})")
        return batch
    name = "the image" if isinstance(image, Image.Image) else image
    try:
        content = _encoded(image) if isinstance(image, Image.Image) else Path(image).expanduser().read_bytes()
        return to_unit(decode_image(content, size)).unsqueeze(0)
    except BrokenImage as error:
        raise CodaError(f"{name} {error}") from error
    except OSError as error:
        raise CodaError(f"{name} cannot be read: {error.strerror or error}") from error


def _encoded(image: Image.Image) -> bytes:
    """A PIL image as a file, without loss: there is one way from files to tensors."""
    buffer = io.BytesIO()
    plain = image if image.mode in _PNG_MODES else image.convert("RGB")
    plain.save(buffer, "PNG", compress_level=0, exif=image.getexif())
    return buffer.getvalue()
