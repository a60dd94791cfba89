"""`coda merge-cache`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda.tokenizer.foundation.settings import Unsplit

from ..cli.arguments import Help
from .flags import Out, Overwrite

Parts = Annotated[
    tuple[Path, ...], Unsplit, Help("Code caches that tokenize-dataset --part 1/n ... n/n made, in any order.")
]


def merge_cache(parts: Parts, *, out: Out = Path("runs/cache"), overwrite: Overwrite = False) -> str:
    """Join the parts of a code cache.

    Examples:
        coda merge-cache runs/cache-1 runs/cache-2 --out runs/cache
    """
    from coda.tokenizer import merge_caches

    cache = merge_caches(parts, out, overwrite=overwrite)
    return f"Made a code cache of {cache.num_images:,} images in {out}"
