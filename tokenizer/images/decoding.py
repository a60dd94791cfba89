"""Encoded image → uint8 tensor: every format, orientation and color mode becomes plain RGB of one size."""

from __future__ import annotations

import io
import warnings
from contextlib import suppress
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageOps

from ..foundation.errors import CodaError
from .source import MAX_PIXELS, BrokenImage

CROPS = ("center", "random")
# How an image is processed, for manifests and reports.
RESAMPLING = "box by halves, then bicubic (antialiased)"
ORIENTATION = "as the EXIF tag says"
TRANSPARENCY = "over white"

# Only common formats: some of Pillow's others run programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")
_STRIP_PIXELS = 2**20  # converted at a time
_RANDOM_MARGIN = 1.125  # 256 out of 288, as in the published training


def decode_image(
    content: bytes,
    size: int | tuple[int, int] | None = None,
    crop: str = "center",
    flip: bool = False,
    generator: torch.Generator | None = None,
    max_pixels: int = MAX_PIXELS,
) -> torch.Tensor:
    """Decode one image, turn it upright, resize and crop it.

    Args:
        content: The encoded image.
        size: Pixels, one number or (height, width); None keeps the image whole.
        crop: "center" is the field's standard (ADM's `center_crop_arr`): halve with a box filter while twice the size
            is left, bicubic to the exact short side, cut from the middle. An image of that size is not resampled.
            "random" scales the short side to 9/8 of the size (only down: no image is enlarged to be cut) and cuts
            anywhere.
        flip: Mirror with probability one half.
        generator: Randomness of "random" and `flip`; torch's own if None.
        max_pixels: Larger images are refused. A larger JPEG that is to be made smaller is decoded at a fraction of
            its size instead, if that is below the limit.

    Returns:
        (3, H, W) uint8.

    Raises:
        BrokenImage: The content cannot be read as an image; the message says why.
    """
    if crop not in CROPS:
        raise CodaError(f"unknown crop {crop!r}: expected {' or '.join(CROPS)}")
    image = _open_rgb(content, 0 if size is None else size if isinstance(size, int) else max(size), max_pixels)
    down, right, mirror = torch.rand(3, generator=generator).tolist() if crop == "random" or flip else (0.5, 0.5, 1.0)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        image = _random_crop(image, height, width, down, right) if crop == "random" else _crop(image, height, width)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return (pixels.flip(-1) if flip and mirror < 0.5 else pixels).contiguous()


def _open_rgb(content: bytes, size: int, max_pixels: int) -> Image.Image:
    """The first frame, upright, in RGB; `size` is the larger side that is needed of it, 0 for all."""
    if not content:
        raise BrokenImage("is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata and the like do not matter here
            image = Image.open(io.BytesIO(content), formats=_formats())
            width, height = image.size
            if width * height > max_pixels and size and not image.info.get("progressive"):
                image.draft(None, (2 * size, 2 * size))  # by 2, 4 or 8 inside the JPEG decoder, never below this size
            if image.width * image.height > max_pixels:
                raise BrokenImage(f"has {width} x {height} pixels; --max-pixels allows more than {max_pixels:,}")
            image.load()
            with suppress(Exception):  # a damaged tag: the pixels are sound
                ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except (BrokenImage, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage("is not an image of a known format") from None
    except Image.DecompressionBombError:
        raise BrokenImage("has more pixels than any image") from None
    except Exception as error:  # decoders meet damage with any exception there is
        raise BrokenImage(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    made = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):  # in strips, so that nothing else is held in full
        made.paste(_strip_to_rgb(image.crop((0, top, image.width, min(image.height, top + rows)))), (0, top))
    return made


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_deep_gray(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")  # gray, palette, CMYK (inverted as Adobe writes it), YCbCr


def _from_deep_gray(image: Image.Image) -> Image.Image:
    """16-bit gray as 8-bit; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise BrokenImage("has values of an unknown range (neither 8 nor 16 bits)")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """ADM's center crop (guided-diffusion, image_datasets.py), for any aspect."""
    image = _resize(image, height, width)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _random_crop(image: Image.Image, height: int, width: int, down: float, right: float) -> Image.Image:
    """Cut at (down, right), fractions in [0, 1) of the room that is left."""
    margin = min(_RANDOM_MARGIN, max(1.0, min(image.height / height, image.width / width)))
    image = _resize(image, round(height * margin), round(width * margin))
    left, top = int(right * (image.width - width + 1)), int(down * (image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize to the smallest size that covers (height, width), keeping the aspect."""
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    wanted = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if wanted[0] * wanted[1] > MAX_PIXELS:
        raise BrokenImage(f"is too narrow ({image.width} x {image.height}) to be resized to {width} x {height}")
    return image if wanted == image.size else image.resize(wanted, Image.Resampling.BICUBIC)


@cache
def _formats() -> tuple[str, ...]:
    """The `_FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
