"""`coda cache export` and `coda cache import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from ..cli.arguments import Help
from .flags import Cache, Out, Overwrite, ShardSize, Tokenizer
from .model import tokenizer_place


def export_cache(
    cache: Cache = Path("runs/cache"),
    *,
    to: Annotated[Literal["npy", "webdataset", "parquet"], Help("Format.")] = "npy",
    out: Out = Path("runs/export"),
    overwrite: Overwrite = False,
) -> str:
    """Export a code cache to files that other programs read.

    npy is LlamaGen's folder of codes and labels, two files per image; webdataset and parquet have one file per shard. A
    README beside them says how to read them without coda. Rerun the same command to resume an interrupted run.

    Examples:
        coda cache export
        coda cache export runs/cache --to webdataset --out runs/codes
    """
    from coda.tokenizer import CodeCache
    from coda.tokenizer import export_cache as export

    found = CodeCache(cache)
    path = export(found, out, to, overwrite=overwrite)
    return f"Made an export of {found.num_images:,} images as {to} in {path}"


def import_cache(
    directory: Annotated[
        Path, Help("Folder with one pair of folders such as imagenet256_codes and imagenet256_labels.")
    ],
    *,
    tokenizer: Tokenizer = "runs/tokenizer",
    out: Out = Path("runs/cache"),
    shard_size: ShardSize = 16384,
    overwrite: Overwrite = False,
) -> str:
    """Import LlamaGen's folder of codes and labels as a code cache.

    Rerun the same command to resume an interrupted run.

    Examples:
        coda cache import runs/export --tokenizer runs/tokenizer --out runs/imported
    """
    from coda.tokenizer import import_npy

    cache = import_npy(directory, tokenizer_place(tokenizer), out, shard_size=shard_size, overwrite=overwrite)
    return f"Made a code cache of {cache.num_images:,} images in {cache.path}"
