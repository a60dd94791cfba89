"""Encoded image → uint8 tensor: every format, orientation and colour mode comes out as plain RGB of one size."""

from __future__ import annotations

import io
import warnings
from functools import cache

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps

from ..foundation.errors import CodaError
from .source import BrokenImage

CROPS = ("center", "random")
# What a picture goes through, for manifests and reports.
RESAMPLING = "box by halves, then bicubic (antialiased)"
ORIENTATION = "as the EXIF tag says"
TRANSPARENCY = "over white"

# Only what photographs come in: some of Pillow's other formats run programs (EPS).
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "GIF", "JPEG2000", "PPM", "TIFF")
_MOST_PIXELS = 178_956_970  # Pillow's own bound, twice its warning
_RANDOM_MARGIN = 1.125  # 256 out of 288, as the published training has it


def decode_image(
    content: bytes,
    size: int | tuple[int, int] | None = None,
    crop: str = "center",
    flip: bool = False,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Decode, turn upright, resize and crop one image.

    Args:
        content: The encoded image.
        size: Pixels, one number or (height, width); None keeps the picture whole.
        crop: "center" is the field's standard (ADM's `center_crop_arr`): halve with a box filter while twice the size
            is left, bicubic to the exact short side, cut from the middle. A picture of that size is not resampled.
            "random" brings the short side to 9/8 of the size (only downwards: no picture is enlarged to be cut) and
            cuts anywhere.
        flip: Mirror with probability one half.
        generator: Randomness of "random" and `flip`; torch's own if None.

    Returns:
        (3, H, W) uint8.

    Raises:
        BrokenImage: It cannot be read as an image; the message says why.
    """
    if crop not in CROPS:
        raise CodaError(f"crop {crop!r} is not known; it is {' or '.join(CROPS)}")
    image = _open_rgb(content)
    down, right, mirror = torch.rand(3, generator=generator).tolist() if crop == "random" or flip else (0.5, 0.5, 1.0)
    if size is not None:
        height, width = (size, size) if isinstance(size, int) else size
        image = _random_crop(image, height, width, down, right) if crop == "random" else _crop(image, height, width)
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return (pixels.flip(-1) if flip and mirror < 0.5 else pixels).contiguous()


def _open_rgb(content: bytes) -> Image.Image:
    """The first frame, upright, in RGB."""
    if not content:
        raise BrokenImage("is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # damaged metadata and the like do not matter here
            image = Image.open(io.BytesIO(content), formats=_formats())
            if image.width * image.height > _MOST_PIXELS:
                raise BrokenImage(f"would unpack to {image.width} x {image.height} pixels")
            image.load()
            return _to_rgb(_upright(image))
    except (BrokenImage, MemoryError):
        raise
    except Image.UnidentifiedImageError:
        raise BrokenImage("is no image of a known format") from None
    except Image.DecompressionBombError:
        raise BrokenImage("would unpack to more pixels than any photograph has") from None
    except Exception as error:  # decoders meet damage with any exception there is
        raise BrokenImage(f"cannot be decoded: {' '.join(str(error).split()) or type(error).__name__}") from None


def _upright(image: Image.Image) -> Image.Image:
    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # a damaged tag: the pixels are sound
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _from_deep_grey(image).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")  # grey, palette, CMYK (inverted as Adobe writes it), YCbCr


def _from_deep_grey(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit; Pillow's own conversion would clip everything above 255 to white."""
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() > 0xFFFF:
        raise BrokenImage("has values of no known range (neither 8 nor 16 bits)")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _crop(image: Image.Image, height: int, width: int) -> Image.Image:
    """ADM's centre crop (guided-diffusion, image_datasets.py), for any aspect."""
    image = _resize(image, height, width)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _random_crop(image: Image.Image, height: int, width: int, down: float, right: float) -> Image.Image:
    """Cut at (down, right) in [0, 1) of the room there is."""
    margin = min(_RANDOM_MARGIN, max(1.0, min(image.height / height, image.width / width)))
    image = _resize(image, round(height * margin), round(width * margin))
    left, top = int(right * (image.width - width + 1)), int(down * (image.height - height + 1))
    return image.crop((left, top, left + width, top + height))


def _resize(image: Image.Image, height: int, width: int) -> Image.Image:
    """Resize to the least that covers (height, width), keeping the aspect."""
    while image.width >= 2 * width and image.height >= 2 * height:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(width / image.width, height / image.height)
    wanted = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if wanted[0] * wanted[1] > _MOST_PIXELS:
        raise BrokenImage(f"is too narrow ({image.width} x {image.height}) to be brought to {width} x {height}")
    return image if wanted == image.size else image.resize(wanted, Image.Resampling.BICUBIC)


@cache
def _formats() -> tuple[str, ...]:
    """Those of `_FORMATS` that this Pillow was built with."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)
