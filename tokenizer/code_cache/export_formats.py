"""Write one shard of a code cache in another format: LlamaGen's .npy files, WebDataset tars, parquet tables.

Shapes: n images of a shard in V variants with T codes each.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ..foundation.atomic_io import to_json, write_atomically
from ..foundation.errors import shown
from .format import Shard

# Folder, shard, index of its first image in the cache, the cache's manifest, function that counts finished images.
WriteShard = Callable[[Path, Shard, int, Mapping[str, Any], Callable[[int], object]], None]


@dataclass(frozen=True)
class ExportFormat:
    """A format to export to.

    Attributes:
        what: Description for the README.
        write: Writes one shard; the same shard gives the same bytes.
        reading: Python code that reads it without coda; `{size}` stands for the larger side in pixels.
    """

    what: str
    write: WriteShard
    reading: str


def _write_npy(
    folder: Path, shard: Shard, first: int, manifest: Mapping[str, Any], advance: Callable[[int], object]
) -> None:
    """Two files per image, as in LlamaGen's extract_codes_c2i.py and CustomDataset."""
    size = max(manifest["preprocessing"]["size"])
    codes, labels = folder / f"imagenet{size}_codes", folder / f"imagenet{size}_labels"
    codes.mkdir(exist_ok=True)
    labels.mkdir(exist_ok=True)
    for row in range(len(shard)):
        np.save(codes / f"{first + row}.npy", shard.codes[row : row + 1].astype(np.int64))
        np.save(labels / f"{first + row}.npy", shard.labels[row : row + 1])
        advance(1)
    os.sync()  # flushing thousands of small files one by one takes longer than writing them


def _write_tar(
    folder: Path, shard: Shard, first: int, manifest: Mapping[str, Any], advance: Callable[[int], object]
) -> None:
    """Three members per image, which WebDataset groups into one sample by their common prefix."""

    def write(path: Path) -> None:
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in range(len(shard)):
                codes = io.BytesIO()
                np.save(codes, shard.codes[row])
                about = to_json({"key": shard.key(row), "index": int(shard.indices[row])})
                members = {
                    "codes.npy": codes.getvalue(),
                    "cls": str(int(shard.labels[row])).encode(),
                    "json": about.encode(),
                }
                for ending, content in members.items():
                    member = tarfile.TarInfo(f"{first + row:08d}.{ending}")  # no time and no user
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
                advance(1)

    write_atomically(folder / f"{shard.path.stem}.tar", write)


def _write_table(
    folder: Path, shard: Shard, first: int, manifest: Mapping[str, Any], advance: Callable[[int], object]
) -> None:
    """One row per sample: every variant of every image."""
    variants, num_tokens = list(manifest["variants"]), shard.codes.shape[-1]
    keys = [shown(shard.key(row)) for row in range(len(shard)) for _ in variants]
    table = pa.table(
        {
            "codes": pa.FixedSizeListArray.from_arrays(pa.array(shard.codes.reshape(-1)), num_tokens),
            "variant": pa.array(variants * len(shard), pa.string()),
            "label": pa.array(np.repeat(shard.labels, len(variants))),
            "key": pa.array(keys, pa.string()),
            "index": pa.array(np.repeat(shard.indices, len(variants))),
        }
    )
    # Dictionaries pay off for columns that repeat values; codes do not.
    write_atomically(
        folder / f"{shard.path.stem}.parquet", partial(pq.write_table, table, use_dictionary=["variant", "key"])
    )
    advance(len(shard))


EXPORT_FORMATS = {
    "npy": ExportFormat(
        "LlamaGen's folder of .npy files, two per image",
        _write_npy,
        """import numpy as np

codes = np.load("imagenet{size}_codes/0.npy")  # (1, V, T) int64, of image 0
label = np.load("imagenet{size}_labels/0.npy")  # (1,) int64, -1 where there is no class""",
    ),
    "webdataset": ExportFormat(
        "WebDataset tars; of each image `.codes.npy`, `.cls` (its label, -1 where there is no class) and `.json`",
        _write_tar,
        """import io, numpy, tarfile

tar = tarfile.open("shard-00000.tar")  # or webdataset.WebDataset("shard-{{00000..00099}}.tar").decode()
codes = [numpy.load(io.BytesIO(tar.extractfile(m).read())) for m in tar if m.name.endswith(".npy")]  # [(V, T)]""",
    ),
    "parquet": ExportFormat(
        "parquet tables with one row per sample, that is per variant of an image; label -1 where there is no class",
        _write_table,
        """import pyarrow.parquet

table = pyarrow.parquet.read_table("shard-00000.parquet")  # columns codes, variant, label, key, index
codes = table["codes"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)  # (samples, T)""",
    ),
}
