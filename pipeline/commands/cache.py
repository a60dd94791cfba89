"""`coda cache export` and `coda cache import`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ..cli.arguments import Count


def export_cache(
    cache: Path = Path("runs/cache"),
    *,
    to: Literal["npy", "webdataset", "parquet"] = "npy",
    out: Path = Path("runs/export"),
    overwrite: bool = False,
) -> str:
    """Code cache -> files that other programs read.

    npy is LlamaGen's folder of codes and labels, two files per picture; webdataset and parquet are a file per shard. A
    README beside them says how to read them without coda. The same command again goes on where it was interrupted.

    Args:
        cache: Code cache that tokenize-dataset made.
        to: Format.
        out: Directory to make.
        overwrite: Replace the export that --out holds.

    Examples:
        coda cache export
        coda cache export runs/cache --to webdataset --out runs/codes
    """
    from coda.tokenizer import CodeCache
    from coda.tokenizer import export_cache as export

    found = CodeCache(cache)
    path = export(found, out, to, overwrite=overwrite)
    return f"Made an export of {found.num_images:,} pictures as {to} in {path}"


def import_cache(
    directory: Path,
    *,
    tokenizer: str = "runs/tokenizer",
    out: Path = Path("runs/cache"),
    shard_size: Count = 16384,
    overwrite: bool = False,
) -> str:
    """LlamaGen's folder of codes and labels -> code cache.

    The same command again goes on where it was interrupted.

    Args:
        directory: It holds one pair of folders such as imagenet256_codes and imagenet256_labels.
        tokenizer: Directory or hub id of the tokenizer that made the codes.
        out: Directory to make.
        shard_size: Pictures per file of the cache.
        overwrite: Start anew over what --out holds.

    Examples:
        coda cache import runs/export --tokenizer runs/tokenizer --out runs/imported
    """
    from coda.tokenizer import import_npy

    cache = import_npy(directory, tokenizer, out, shard_size=shard_size, overwrite=overwrite)
    return f"Made a code cache of {cache.num_images:,} pictures in {cache.path}"
