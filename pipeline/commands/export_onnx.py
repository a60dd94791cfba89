"""`coda export-onnx`."""

from __future__ import annotations

from pathlib import Path

from ..cli.arguments import Size


def export_onnx(
    *,
    tokenizer: str = "runs/tokenizer",
    size: Size | None = None,
    out: Path = Path("runs/onnx"),
    overwrite: bool = False,
) -> str:
    """Tokenizer -> encoder.onnx (images to codes) and decoder.onnx (codes to images).

    Args:
        tokenizer: Tokenizer directory or hub id.
        size: Pixels, or height x width as in 192x256, that the graphs take; the tokenizer's own if not given.
        out: Directory to make.
        overwrite: Replace what --out holds.

    Examples:
        coda export-onnx
        coda export-onnx --tokenizer runs/coda-kl16 --size 512 --out runs/coda-kl16-512
    """
    from coda.tokenizer import CodaTokenizer
    from coda.tokenizer.onnx_export import DECODER, DESCRIPTION, ENCODER
    from coda.tokenizer.onnx_export import export_onnx as export

    from .output import new_directory

    with new_directory(out, overwrite, mark=DESCRIPTION) as folder:
        model = CodaTokenizer.from_pretrained(tokenizer)
        export(model, folder, (size, size) if isinstance(size, int) else size)
    return f"Made {out / ENCODER} and {out / DECODER}"
