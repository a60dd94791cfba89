"""`coda export-onnx`."""

from __future__ import annotations

from pathlib import Path

from .flags import Out, Overwrite, Tokenizer, TokenizerSize
from .model import tokenizer_place
from .output import new_directory


def export_onnx(
    *,
    tokenizer: Tokenizer = "runs/tokenizer",
    size: TokenizerSize = None,
    out: Out = Path("runs/onnx"),
    overwrite: Overwrite = False,
) -> str:
    """Export a tokenizer as encoder.onnx (images to codes) and decoder.onnx (codes to images).

    Examples:
        coda export-onnx
        coda export-onnx --tokenizer runs/coda-kl16 --size 512 --out runs/coda-kl16-512
    """
    from coda.tokenizer import CodaTokenizer
    from coda.tokenizer.onnx_export import DECODER, DESCRIPTION, ENCODER
    from coda.tokenizer.onnx_export import export_onnx as export

    with new_directory(out, overwrite, mark=DESCRIPTION) as folder:
        model = CodaTokenizer.from_pretrained(tokenizer_place(tokenizer))
        export(model, folder, (size, size) if isinstance(size, int) else size)
    return f"Made {out / ENCODER} and {out / DECODER}"
