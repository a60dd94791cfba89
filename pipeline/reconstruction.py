"""One image through a tokenizer and back: the reconstruction, its PSNR and its size in bits."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image

from coda.tokenizer import CodaError, CodaTokenizer
from coda.tokenizer.images import to_pil, to_uint8
from coda.tokenizer.images.grid import labelled_grid
from coda.tokenizer.images.psnr_ssim import psnr
from coda.tokenizer.images.source import MAX_PIXELS

from .image_file import ImageInput, load_image

DIFFERENCE_GAIN = 4  # differences are too small to see as they are


@dataclass(frozen=True)
class Reconstruction:
    """An image through the tokenizer and back.

    Attributes:
        original: The image as the tokenizer sees it, scaled and cropped.
        reconstruction: The decoded codes.
        difference: |original − reconstruction|, `DIFFERENCE_GAIN` times.
        codes: (T,) int64, of the levels that were used.
        psnr: Peak signal-to-noise ratio of the reconstruction as uint8, dB.
        tokens: Number of codes.
        bits: tokens · log2 K.
        bits_per_pixel: bits / (height · width).
    """

    original: Image.Image
    reconstruction: Image.Image
    difference: Image.Image
    codes: torch.Tensor
    psnr: float
    tokens: int
    bits: float
    bits_per_pixel: float

    @property
    def images(self) -> tuple[Image.Image, Image.Image, Image.Image]:
        """Original, reconstruction, difference."""
        return self.original, self.reconstruction, self.difference

    def side_by_side(self) -> Image.Image:
        """The three in one image, with size, PSNR and bits per pixel above them."""
        labels = [  # Pillow's own font has no ×
            f"original {self.original.width}x{self.original.height}",
            f"{self.psnr:.2f} dB, {self.bits_per_pixel:.3g} bit/px",
            f"difference x{DIFFERENCE_GAIN}",
        ]
        return labelled_grid(self.images, labels, columns=3, smallest=256)

    def describe(self) -> str:
        """One line: PSNR, tokens, bits."""
        size = f"{self.tokens:,} tokens, {self.bits:,.0f} bits ({self.bits_per_pixel:.3g} per pixel)"
        return f"PSNR {self.psnr:.2f} dB, {size}"


@torch.no_grad()
def reconstruct(
    tokenizer: CodaTokenizer,
    image: ImageInput,
    levels: int | None = None,
    size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Reconstruction:
    """Encode and decode one image.

    Args:
        tokenizer: The tokenizer, on any device.
        image: A file, a PIL image, or a tensor (3, H, W) in [-1, 1]; the first two are scaled and cropped.
        levels: Use only that many of the coarsest levels; all of them if None.
        size: (H, W) in pixels, which the VAE's factor divides; the tokenizer's own if None.
        max_pixels: An image with more pixels is refused, see `load_image`.

    Raises:
        CodaError: If the file is not an image, the tensor has another size, or there are fewer levels.
    """
    most = tokenizer.layout.num_levels
    if levels is not None and not 1 <= levels <= most:
        raise CodaError(f"levels is {levels}; this tokenizer has 1 to {most}")
    pixels = load_image(image, size or tokenizer.size, max_pixels)
    codes = tokenizer.encode(pixels.to(next(tokenizer.parameters()).device))
    layout = tokenizer.layout_for(*pixels.shape[-2:])
    restored = tokenizer.decode(codes, levels, layout).float().cpu()

    before, after = to_uint8(pixels), to_uint8(restored)  # (1, 3, H, W)
    difference = (before.short() - after.short()).abs().mul(DIFFERENCE_GAIN).clamp(max=255).to(torch.uint8)
    height, width = before.shape[-2:]
    tokens = layout.offsets[most if levels is None else levels]
    bits = tokens * math.log2(layout.codebook_size)
    return Reconstruction(
        original=to_pil(before[0]),
        reconstruction=to_pil(after[0]),
        difference=to_pil(difference[0]),
        codes=codes[0, :tokens].cpu(),
        psnr=float(psnr(before, after)),
        tokens=tokens,
        bits=bits,
        bits_per_pixel=bits / (height * width),
    )
