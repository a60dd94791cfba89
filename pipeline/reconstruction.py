"""What a tokenizer keeps of one photograph: the picture it gives back, and what that cost."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from PIL import Image

from coda.tokenizer import CodaError, CodaTokenizer
from coda.tokenizer.images import to_pil, to_uint8
from coda.tokenizer.images.psnr_ssim import psnr

from .grid import labelled_grid
from .photograph import Picture, open_photograph

DIFFERENCE_GAIN = 4  # differences are small: shown as they are, they would look black


@dataclass(frozen=True)
class Reconstruction:
    """A photograph through the tokenizer and back.

    Attributes:
        original: The photograph as the tokenizer sees it, scaled and cropped.
        reconstruction: What the codes give back.
        difference: |original − reconstruction|, `DIFFERENCE_GAIN` times.
        codes: (T,) int64, those of the levels that were used.
        psnr: Peak signal-to-noise ratio of the two as uint8 pictures, dB.
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
        """The three in one picture, with what there is to say written above them."""
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
    tokenizer: CodaTokenizer, image: Picture, levels: int | None = None, size: tuple[int, int] | None = None
) -> Reconstruction:
    """Take one picture through the tokenizer and back.

    Args:
        tokenizer: The tokenizer, on whatever device it is.
        image: A file, a PIL image, or a tensor (3, H, W) in [-1, 1]; files and PIL images are scaled and cropped.
        levels: Use only that many levels, from the coarsest on; all of them if None.
        size: (H, W) in pixels, which the VAE's factor divides; the tokenizer's own if None.

    Raises:
        CodaError: The file is no image, the tensor has another size, or there are not that many levels.
    """
    most = tokenizer.layout.num_levels
    if levels is not None and not 1 <= levels <= most:
        raise CodaError(f"levels is {levels}; this tokenizer has 1 to {most}")
    photograph = open_photograph(image, size or tokenizer.size)
    codes = tokenizer.encode(photograph.to(next(tokenizer.parameters()).device))
    restored = tokenizer.decode(codes, levels).float().cpu()

    before, after = to_uint8(photograph), to_uint8(restored)  # (1, 3, H, W)
    difference = (before.short() - after.short()).abs().mul(DIFFERENCE_GAIN).clamp(max=255).to(torch.uint8)
    height, width = before.shape[-2:]
    layout = tokenizer.layout_for(height, width)
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
