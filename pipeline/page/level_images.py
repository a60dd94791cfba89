"""Codes and confidences of every level as images.

K codes · T codes of an image · L levels of (h_l, w_l) cells · C channels of the latent
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from PIL import Image

from coda.tokenizer import CodeLayout
from coda.tokenizer.images import to_pil
from coda.tokenizer.images.grid import labelled_grid
from coda.tokenizer.quantizer.resampling import prefix_latents

from ..coda_pipeline import CodaPipeline

_MOST_COLUMNS = 7


def code_colors(value_table: torch.Tensor) -> torch.Tensor:
    """A color per code, (K, 3) in [-1, 1]; codes of similar values (K, C) have similar colors.

    Red, green and blue are the ranks along the three first principal components.
    """
    values = value_table.double().cpu()
    directions = torch.linalg.svd(values - values.mean(dim=0), full_matrices=False).Vh[:3]  # (≤ 3, C)
    directions = directions * directions.sum(dim=1, keepdim=True).sign()  # a singular vector's own sign is arbitrary
    ranks = (values @ directions.mT).argsort(dim=0).argsort(dim=0).float()
    return F.pad(2 * ranks / (len(values) - 1) - 1, (0, 3 - len(directions)))


def draw_codes(codes: torch.Tensor, layout: CodeLayout, value_table: torch.Tensor) -> Image.Image:
    """The levels of an image's codes, (T',) of the coarsest of them, side by side: a cell has its code's color."""
    colors = code_colors(value_table)[codes.cpu()]  # (T', 3)
    return _draw_levels(colors, layout, [""] * layout.num_levels)


@torch.no_grad()
def confidences(pipeline: CodaPipeline, codes: torch.Tensor, label: int | None) -> list[torch.Tensor]:
    """Probability of the most likely code in every cell of each level, [(h_l, w_l)], before the level has any code.

    Args:
        pipeline: The pipeline.
        codes: (T,), from which the levels before each level are taken.
        label: The class that the generator is told; None for none.
    """
    transformer, layout = pipeline.transformer, pipeline.tokenizer.layout
    predict = transformer.predictor([label])
    prefixes = prefix_latents(codes[None].to(transformer.device), layout, transformer.value_table.float())
    found = []
    for level, (height, width) in enumerate(layout.sides):
        masked = torch.full((1, height * width), layout.codebook_size, device=transformer.device)
        cells = torch.arange(height * width, device=transformer.device)[None]
        blocks = predict(masked, prefixes[level], level, cells, 1.0)
        likeliest = torch.cat([block.softmax(dim=1).amax(dim=1) for block in blocks])
        found.append(likeliest.view(height, width).cpu())
    return found


def draw_confidences(found: Sequence[torch.Tensor], layout: CodeLayout) -> Image.Image:
    """`confidences` as images, side by side: black is 0, the lightest the largest of the level."""
    gray = torch.cat([1.8 * (level / level.max()).flatten() - 1 for level in found])
    return _draw_levels(gray[:, None].expand(-1, 3), layout, [f", mean {level.mean():.1%}" for level in found])


def _draw_levels(pixels: torch.Tensor, layout: CodeLayout, notes: Sequence[str]) -> Image.Image:
    """Levels of pixels (T', 3) in [-1, 1], a cell is a pixel."""
    images, labels = [], []
    for level, (height, width) in enumerate(layout.sides):
        if layout.offsets[level + 1] <= len(pixels):
            cells = pixels[layout.offsets[level] : layout.offsets[level + 1]]
            images.append(to_pil(cells.mT.reshape(3, height, width)))
            labels.append(f"{level}: {height}x{width}{notes[level]}")
    rows = math.ceil(len(images) / _MOST_COLUMNS)
    return labelled_grid(images, labels, columns=math.ceil(len(images) / rows), smallest=160)
