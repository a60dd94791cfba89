"""Export a code cache to formats that other programs read.

An unfinished export lies in a hidden folder beside its final place:

.export.partial/
  progress.json   cache, format, finished shards
  content/        renamed to runs/export at the end
"""

from __future__ import annotations

import shutil
from itertools import accumulate
from pathlib import Path

from ..foundation.atomic_io import publish_directory, remove, sha256_of, write_bytes, write_json
from ..foundation.errors import CodaError
from ..foundation.output_directory import check_free, read_mark, resolve_out, staging_directory
from ..foundation.progress import progress
from .export_formats import EXPORT_FORMATS
from .format import EXPORTED_MANIFEST, FORMAT, MANIFEST, PROGRESS, VALUE_TABLE, Shard
from .reader import CodeCache

_README = "README.md"


def export_cache(
    cache: str | Path | CodeCache, out: str | Path = "runs/export", to: str = "npy", overwrite: bool = False
) -> Path:
    """Write a code cache in a format that other programs read. Rerun the same call to resume an interrupted export.

    The export also holds `cache.json` (the cache's manifest), the value table, and a README that says how to read it
    without coda. Equal caches give equal bytes.

    Args:
        cache: The cache, or its folder.
        out: Folder to make. If it holds the same export, nothing is done.
        to: "npy": what LlamaGen's `extract_codes_c2i.py` writes, `imagenet256_codes/{i}.npy` (1, V, T) int64 and
            `imagenet256_labels/{i}.npy` (1,) int64 with i counting the images from 0, 256 being the larger side.
            "webdataset": a tar per shard with `.codes.npy` (V, T), `.cls` and `.json` of each image.
            "parquet": a table per shard with codes, variant, label, key and index of each sample.
        overwrite: Replace the export in `out`; what is not an export is never touched.

    Returns:
        `out`.

    Raises:
        CodaError: If the cache is damaged, the format is unknown, `out` holds something else, or another process is
            exporting there.
    """
    if to not in EXPORT_FORMATS:
        raise CodaError(f"there is no format {to!r} to export to; there are {', '.join(EXPORT_FORMATS)}")
    cache = cache if isinstance(cache, CodeCache) else CodeCache(cache)
    final = resolve_out(out)
    _is_there(final, cache, to, overwrite)  # refuse before anything is written
    with staging_directory(final, keep=True) as staging:
        if not _is_there(final, cache, to, overwrite):
            content = _write_shards(staging, cache, to)
            write_bytes(content / _README, _readme(cache, to).encode())
            for source, copy in ((VALUE_TABLE, VALUE_TABLE), (MANIFEST, EXPORTED_MANIFEST)):
                shutil.copyfile(cache.path / source, content / copy)
            publish_directory(content, final, overwrite)
    return Path(out)


def _is_there(out: Path, cache: CodeCache, to: str, overwrite: bool) -> bool:
    """Whether `out` holds this very export and stays; CodaError if it holds something that may not be replaced."""
    wanted = {_README: _readme(cache, to).encode(), EXPORTED_MANIFEST: (cache.path / MANIFEST).read_bytes()}
    same = all((out / name).is_file() and (out / name).read_bytes() == content for name, content in wanted.items())
    if same and not overwrite:
        return True
    check_free(out, True, _is_export, "holds something that is not an export of a code cache")
    if not overwrite and (out / EXPORTED_MANIFEST).exists():
        raise CodaError(f"{out} holds another export; choose another --out or give --overwrite")
    return False


def _is_export(folder: Path) -> bool:
    return read_mark(folder / EXPORTED_MANIFEST).get("format") == FORMAT


def _write_shards(staging: Path, cache: CodeCache, to: str) -> Path:
    """Write the shards that earlier runs have not written; returns the folder that holds all."""
    content, note = staging / "content", staging / PROGRESS
    task = {"format": to, "cache": sha256_of(cache.path / MANIFEST)}
    begun = read_mark(note)
    done = begun.get("shards", [])
    if not content.is_dir() or content.is_symlink() or begun != {**task, "shards": done}:
        note.unlink(missing_ok=True)  # first, so that what is half removed is not taken for half made
        remove(content)
        content.mkdir()
        done = []
    shards = cache.manifest["shards"]
    starts = accumulate((shard["images"] for shard in shards), initial=0)
    before = sum(shard["images"] for shard in shards if shard["file"] in done)
    with progress("Exporting", cache.num_images, "images", completed=before) as bar:
        for described, first in zip(shards, starts, strict=False):
            if described["file"] not in done:
                shard = Shard(cache.path / described["file"])
                EXPORT_FORMATS[to].write(content, shard, first, cache.manifest, bar.advance)
                done.append(described["file"])
                write_json(note, {**task, "shards": done})
    return content


def _readme(cache: CodeCache, to: str) -> str:
    """README of the export, for people who do not know coda."""
    variants = cache.manifest["variants"]
    reading = EXPORT_FORMATS[to].reading.format(size=max(cache.manifest["preprocessing"]["size"]))
    return f"""# Codes of {cache.num_images:,} images

{EXPORT_FORMATS[to].what}. Exported by coda.

V = {len(variants)} of each image ({", ".join(variants)}), each in T codes, level by level and row by row:
{cache.layout}.

```python
{reading}
```

- `value_table.safetensors`: `value_table` (K, C) float32, the latent vector of each code, normalized
- `cache.json`: the code cache that this was exported from: tokenizer, layout, preprocessing, source, class names

Only the tokenizer with the fingerprint `{cache.tokenizer_fingerprint}` can decode these codes.
"""
