"""`coda merge-cache`."""

from __future__ import annotations

from pathlib import Path


def merge_cache(parts: tuple[Path, ...], *, out: Path = Path("runs/cache"), overwrite: bool = False) -> str:
    """Join the parts of a code cache.

    Args:
        parts: Code caches that tokenize-dataset --part 1/n ... n/n made, in any order.
        out: Directory to make.
        overwrite: Replace the cache that --out holds.

    Examples:
        coda merge-cache runs/cache-1 runs/cache-2 --out runs/cache
    """
    from coda.tokenizer.code_cache import merge_caches

    cache = merge_caches(parts, out, overwrite=overwrite)
    return f"Made a code cache of {cache.num_images:,} pictures in {out}"
