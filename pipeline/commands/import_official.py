"""`coda import-official`."""

from __future__ import annotations

from pathlib import Path

from ..cli.arguments import Side


def import_official(
    directory: Path,
    *,
    sides: tuple[Side, ...] | None = None,
    out: Path = Path("runs/tokenizer"),
    overwrite: bool = False,
) -> str:
    """A published CODA checkpoint -> tokenizer directory.

    Args:
        directory: The checkpoint as it was published: the tokenizer's weights and the VAE that it was made from.
        sides: Sides of the levels, smallest first; those of the published model if not given.
        out: Directory to make.
        overwrite: Replace the tokenizer that --out holds.

    Examples:
        coda import-official downloads/coda-kl16 --out runs/coda-kl16
    """
    from coda.tokenizer import tokenizer_from_official

    from .output import new_directory

    with new_directory(out, overwrite, mark="coda_tokenizer.json") as folder:
        tokenizer = tokenizer_from_official(directory, sides=sides)
        tokenizer.save_pretrained(folder)
    return f"Made a tokenizer in {out}: {tokenizer.layout}"
