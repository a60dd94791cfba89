"""Images side by side, with a line of text above each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_SMALLEST_FONT = 9  # pixels
_GAP = 4  # pixels between images and around them
_BACKGROUND, _TEXT = (255, 255, 255), (32, 32, 32)


def labelled_grid(
    images: Sequence[Image.Image],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
    smallest: int = 128,
) -> Image.Image:
    """One image that shows `images` row by row.

    Args:
        images: Images of any size; a cell is as large as the largest of them.
        labels: One line per image, written above it; too long ones make all text smaller, and are shortened then.
        columns: Images per row; by default about as many as there are rows.
        smallest: Images with a shorter edge below this many pixels are enlarged by a whole factor, pixel by pixel.

    Raises:
        ValueError: If there is no image, or not one label per image.
    """
    if not images or (labels is not None and len(labels) != len(images)):
        raise ValueError(f"{len(images)} images and {len(labels or [])} labels: a grid needs one label per image")
    shown = [_enlarged(image.convert("RGB"), smallest) for image in images]
    width, height = max(image.width for image in shown), max(image.height for image in shown)
    columns = min(len(shown), columns or math.ceil(math.sqrt(len(shown))))
    font = _font(labels or (), width, max(11, min(20, height // 14)))
    line = _line_height(font) if labels is not None else 0

    rows = math.ceil(len(shown) / columns)
    size = (columns * (width + _GAP) + _GAP, rows * (height + line + _GAP) + _GAP)
    canvas = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for position, image in enumerate(shown):
        row, column = divmod(position, columns)
        x, y = _GAP + column * (width + _GAP), _GAP + row * (height + line + _GAP)
        if labels is not None:
            draw.text((x, y), _cut(labels[position], width, font), fill=_TEXT, font=font)
        canvas.paste(image, (x, y + line))
    return canvas


def _enlarged(image: Image.Image, smallest: int) -> Image.Image:
    factor = math.ceil(smallest / min(image.size))
    if factor <= 1:
        return image
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _font(labels: Sequence[str], width: int, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The default font of `size` pixels, or as much smaller as the widest label needs."""
    font = ImageFont.load_default(size=size)
    while size > _SMALLEST_FONT and any(font.getlength(label) > width for label in labels):
        size -= 1
        font = ImageFont.load_default(size=size)
    return font


def _line_height(font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    return math.ceil(font.getbbox("Åg|")[3]) + 4


def _cut(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """`text`, shortened with three dots if it is wider than `width` pixels."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text.rstrip()}..."
