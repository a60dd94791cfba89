"""Uploaded images and the masks brushed on them, and the image files that the browser is sent."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from PIL import Image, ImageChops

from coda.tokenizer import CodaError
from coda.tokenizer.foundation.errors import shown
from coda.tokenizer.images import to_pil

from ..image_file import load_image

MAX_BYTES = 32 * 2**20  # of one upload
_EASEL = 512  # pixels: images are shown at least this large where a mask is brushed


def read_upload(path: str | None, size: tuple[int, int], max_pixels: int) -> Image.Image:
    """An uploaded file as an image of (height, width) pixels, scaled and cropped.

    Raises:
        CodaError: If there is none, or it is not an image or too large; the message has the file's name, not its place.
    """
    if path is None:
        raise CodaError("choose an image first")
    try:
        return to_pil(load_image(path, size, max_pixels)[0])
    except CodaError as error:
        raise CodaError(str(error).replace(shown(path), shown(Path(path).name))) from None


def saved(image: Image.Image) -> str:
    """A PNG of an image for the browser, in a place of its own.

    Gradio names files after their content, and would write one again while a browser reads it.
    """
    path = Path(mkdtemp(dir=os.environ["GRADIO_TEMP_DIR"])) / "image.png"
    image.save(path)
    return str(path)


def easel_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) at which an image of height × width pixels is shown for brushing, a whole multiple."""
    factor = math.ceil(_EASEL / max(height, width))
    return width * factor, height * factor


def on_easel(image: Image.Image) -> Image.Image:
    """An image as it is shown for brushing, enlarged pixel by pixel."""
    return image.resize(easel_size(image.height, image.width), Image.Resampling.NEAREST)


def brushed_mask(drawn: Mapping[str, Any] | None) -> Image.Image | None:
    """Where the layers of Gradio's image editor are painted, white on black; None if nowhere."""
    mask: Image.Image | None = None
    for layer in (drawn or {}).get("layers", []):
        painted = layer.convert("RGBA").getchannel("A").point(lambda alpha: 255 * (alpha > 63))
        mask = painted if mask is None else ImageChops.lighter(mask, painted)
    return mask if mask is not None and mask.getbbox() else None
