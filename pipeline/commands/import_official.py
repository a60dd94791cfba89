"""`coda import-official`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda.tokenizer.foundation.settings import Side

from ..cli.arguments import Help
from .flags import Out, Overwrite
from .output import new_directory

Checkpoint = Annotated[
    Path, Help("The checkpoint as published: the tokenizer's weights and the VAE that it was made from.")
]
Sides = Annotated[
    tuple[Side, ...] | None, Help("Sides of the levels, smallest first; by default those of the published model.")
]


def import_official(
    directory: Checkpoint, *, sides: Sides = None, out: Out = Path("runs/tokenizer"), overwrite: Overwrite = False
) -> str:
    """Convert a published CODA checkpoint into a tokenizer.

    Examples:
        coda import-official downloads/coda-kl16 --out runs/coda-kl16
    """
    from coda.tokenizer import tokenizer_from_official

    with new_directory(out, overwrite, mark="coda_tokenizer.json") as folder:
        tokenizer = tokenizer_from_official(directory, sides=sides)
        tokenizer.save_pretrained(folder)
    return f"Made a tokenizer in {out}: {tokenizer.layout}"
