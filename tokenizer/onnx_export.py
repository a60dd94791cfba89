"""Export of a tokenizer as two ONNX graphs, images to codes and codes to images, for use without PyTorch.

    directory/
      encoder.onnx    images (B, 3, H, W) float32 in [-1, 1] → codes (B, T) int64
      decoder.onnx    codes (B, T) int64 → images (B, 3, H, W) float32 in [-1, 1]
      onnx.json       size, layout and fingerprint of the tokenizer; written last

The image size is fixed, the batch size is not. ONNX has no area resizing, and its bicubic resizing depends on the
runtime. Both are linear and separable, so they are exported as matrices computed with PyTorch.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .foundation.atomic_io import write_json
from .foundation.errors import CodaError
from .layout import CodeLayout, Grid
from .quantizer.resampling import downsample, upsample
from .tokenizer import CodaTokenizer

ENCODER, DECODER, DESCRIPTION = "encoder.onnx", "decoder.onnx", "onnx.json"
_OPSET = 18
_CODES_AT_ONCE = 8192  # part of the codebook, so that a runtime never holds all tokens × all codes


def export_onnx(tokenizer: CodaTokenizer, directory: str | Path, size: tuple[int, int] | None = None) -> None:
    """Export a tokenizer's encoder and decoder as ONNX graphs.

    Args:
        tokenizer: A tokenizer on the CPU, in float32.
        directory: Output directory for the three files.
        size: Image size (H, W) of the graphs in pixels; the tokenizer's own if None.

    Raises:
        CodaError: If onnx or onnxscript is not installed, or the VAE does not take that size.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise CodaError(f"exporting needs {package}: pip install 'coda[onnx]'")
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    height, width = size or tokenizer.size
    layout = tokenizer.layout_for(height, width)
    images = torch.zeros(2, 3, height, width)  # a batch of one would become a constant
    codes = tokenizer.encode(images)
    _export(_Encoder(tokenizer, layout), images, "images", "codes", folder / ENCODER)
    _export(_Decoder(tokenizer, layout), codes, "codes", "images", folder / DECODER)
    described = {"size": [height, width], "layout": layout.to_json(), "fingerprint": tokenizer.fingerprint}
    write_json(folder / DESCRIPTION, described)


class _Resize(nn.Module):
    """`downsample` or `upsample` between two grids, as two matrices."""

    def __init__(self, resize: Callable[[torch.Tensor, Grid], torch.Tensor], before: Grid, after: Grid) -> None:
        super().__init__()
        for name, length, new in (("rows", before[0], after[0]), ("columns", before[1], after[1])):
            # Resize each unit vector along one axis; the other axis has a single cell.
            unit = torch.eye(length, dtype=torch.float64)[:, None, :, None]
            self.register_buffer(name, resize(unit, (new, 1))[:, 0, :, 0].T.float().contiguous())

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        rows, columns = self.get_buffer("rows"), self.get_buffer("columns")
        return rows @ latents @ columns.T


class _Levels(nn.Module):
    """Common part of encoder and decoder: the layout, the value table, and upsampling from each level."""

    def __init__(self, tokenizer: CodaTokenizer, layout: CodeLayout) -> None:
        super().__init__()
        self.vae, self.layout = tokenizer.vae, layout
        self.register_buffer("value_table", tokenizer.value_table().float())
        self.ups = nn.ModuleList(_Resize(upsample, side, layout.grid) for side in layout.sides)

    def upsampled(self, level: int, codes: torch.Tensor) -> torch.Tensor:
        """Contribution of a level's codes (B, h_l · w_l) to the latent, (B, C, h, w)."""
        values = F.embedding(codes, self.get_buffer("value_table")).movedim(-1, 1)
        return self.ups[level](values.unflatten(-1, self.layout.sides[level]))


class _Encoder(_Levels):
    def __init__(self, tokenizer: CodaTokenizer, layout: CodeLayout) -> None:
        super().__init__(tokenizer, layout)
        self.quantizer = tokenizer.quantizer
        self.queries, keys = tokenizer.quantizer.folded_queries_and_keys()
        self.keys = nn.ParameterList(nn.Parameter(part, requires_grad=False) for part in keys.split(_CODES_AT_ONCE))
        self.downs = nn.ModuleList(_Resize(downsample, layout.grid, side) for side in layout.sides)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        residual = self.vae.encode(images)
        found = []
        for level, down in enumerate(self.downs):
            codes = self.search(self.queries(down(residual))).unflatten(0, (images.shape[0], -1))
            residual = residual - self.upsampled(level, codes)
            found.append(codes)
        return torch.cat(found, dim=1)

    def search(self, queries: torch.Tensor) -> torch.Tensor:
        """Codes (N,) of the largest logits; the first if several are equal, as in `argmax_codes`."""
        peak = codes = None
        for number, keys in enumerate(self.keys):
            logits = queries @ keys.T
            top, place = logits.amax(dim=1), logits.argmax(dim=1) + number * _CODES_AT_ONCE
            if peak is None or codes is None:
                peak, codes = top, place
            else:
                codes, peak = torch.where(top > peak, place, codes), torch.maximum(top, peak)
        assert codes is not None
        return codes


class _Decoder(_Levels):
    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        parts = codes.split([h * w for h, w in self.layout.sides], dim=1)
        latents = self.upsampled(0, parts[0])
        for level, part in enumerate(parts[1:], start=1):
            latents = latents + self.upsampled(level, part)
        return self.vae.decode(latents).clamp(-1, 1)


def _export(module: nn.Module, example: torch.Tensor, takes: str, gives: str, path: Path) -> None:
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's internals
            program = torch.onnx.export(
                module.eval(),
                (example,),
                dynamo=True,
                input_names=[takes],
                output_names=[gives],
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=_OPSET,
                verbose=False,
            )
    finally:
        logger.setLevel(before)
    assert program is not None
    program.save(str(path), external_data=False)
