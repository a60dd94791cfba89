"""Join the parts of a cache that several machines made."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ..foundation.atomic_io import write_json
from ..foundation.errors import CodaError
from ..foundation.output_directory import check_free, new_directory, resolve_out
from .format import MANIFEST, VALUE_TABLE
from .manifest import differences, finished_manifest, is_code_cache
from .reader import CodeCache

# Keys of a manifest that only a finished part has.
_OF_THE_PART = ("part", "images", "samples", "value_table", "shards", "skipped")


def merge_caches(parts: Sequence[str | Path], out: str | Path = "runs/cache", overwrite: bool = False) -> CodeCache:
    """Join all parts 1/n … n/n of a cache, in any order; the bytes are those of an undivided run.

    Shards are hard-linked if the file system allows it, else copied; the parts do not change.

    Args:
        parts: Folders that `tokenize_dataset(…, part="i/n")` wrote.
        out: Folder of the whole cache.
        overwrite: Replace the code cache in `out`.

    Raises:
        CodaError: If a part is missing, given twice, damaged, or of another cache than the first; or if none of them
            has an image.
    """
    caches = [CodeCache(part) for part in parts]
    final = resolve_out(out)
    if not caches:
        raise CodaError("there are no parts to merge")
    numbers: dict[int, CodeCache] = {}
    first = caches[0].manifest
    for cache in caches:
        if cache.manifest["part"] is None:
            raise CodaError(f"{cache.path} is not a part of a cache but a whole one")
        i, n = cache.manifest["part"]
        there, here = ({k: v for k, v in m.items() if k not in _OF_THE_PART} for m in (first, cache.manifest))
        different = differences(there, here) or differences(first["part"][1], n, "number of parts")
        if different:
            raise CodaError(f"{caches[0].path} and {cache.path} are of different caches ({'; '.join(different)})")
        if i in numbers:
            raise CodaError(f"{numbers[i].path} and {cache.path} are both part {i}/{n}")
        numbers[i] = cache
        if final.resolve() in (cache.path.resolve(), *cache.path.resolve().parents):
            raise CodaError(f"{out} holds the part {cache.path}; choose another --out")
    count = first["part"][1]
    if len(numbers) < count:
        missing = islice((str(i) for i in range(1, count + 1) if i not in numbers), 5)
        raise CodaError(f"part {', '.join(missing)} of {count} is missing")
    if not any(cache.num_images for cache in caches):
        raise CodaError(f"none of {first['source']['items']:,} items can be read, in none of the parts")
    check_free(final, overwrite, is_code_cache, "is not a code cache")
    for cache in caches:
        cache.verify()
    with new_directory(final, overwrite, is_code_cache, "is not a code cache") as folder:
        _join([numbers[i] for i in range(1, count + 1)], folder)
    return CodeCache(out)


def _join(parts: Sequence[CodeCache], folder: Path) -> None:
    """Write the whole cache into an empty folder."""
    for part in parts:
        for shard in part.manifest["shards"]:
            _link_or_copy(part.path / shard["file"], folder / shard["file"])
    _link_or_copy(parts[0].path / VALUE_TABLE, folder / VALUE_TABLE)
    first = parts[0].manifest
    header = {key: value for key, value in first.items() if key not in _OF_THE_PART or key == "part"} | {"part": None}
    shards = [shard for part in parts for shard in part.manifest["shards"]]
    skipped = [item for part in parts for item in part.manifest["skipped"]]
    write_json(folder / MANIFEST, finished_manifest(header, first["value_table"]["sha256"], shards, skipped))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
