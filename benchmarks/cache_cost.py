"""What a code cache of any size costs, found by writing small ones with the code that writes caches."""

from __future__ import annotations

import json
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from coda.tokenizer import CodeLayout
from coda.tokenizer.code_cache.format import (
    MANIFEST,
    ShardRows,
    finished_manifest,
    read_json,
    shard_name,
    shard_spans,
    write_shard,
)
from coda.tokenizer.foundation.atomic_io import write_bytes, write_json
from coda.tokenizer.images import Skipped

_KEY = "n01440764/n01440764_10026.JPEG"  # as long as ImageNet's keys are
_REASON = "cannot be decoded: image file is truncated (13 bytes not processed)"
_PER_CLASS = 650  # images: 14,197,122 of 21,841 classes


@dataclass(frozen=True)
class ShardCost:
    """Bytes of a shard's file: `fixed` and `row` for each image."""

    fixed: float
    row: float

    def of(self, spans: Sequence[range]) -> float:
        """Bytes of shards with all of these items."""
        return len(spans) * self.fixed + sum(map(len, spans)) * self.row


@dataclass(frozen=True)
class ManifestCost:
    """A manifest, written and read once.

    Attributes:
        shards: Shards that it describes.
        bytes: Of the file.
        write_seconds: Until it is on the disk.
        note_seconds: The same of a progress note that says as much, without line breaks.
        read_seconds: Parsing included.
        memory: Bytes of what was read, in memory.
    """

    shards: int
    bytes: int
    write_seconds: float
    note_seconds: float
    read_seconds: float
    memory: int

    def noting_seconds(self, gpus: int) -> float:
        """Of all progress notes of a process: one for each of its shards, each as long as what is done by then."""
        return self.shards / gpus * self.note_seconds / gpus / 2


def shard_cost(num_tokens: int, codebook_size: int) -> ShardCost:
    """Write two small shards; what they differ by is the cost of a row."""
    layout = CodeLayout([(1, num_tokens)], codebook_size)
    few, many = 64, 128

    def size(rows: int, path: Path) -> int:
        numbers = torch.arange(rows)
        codes = torch.zeros(rows, 1, num_tokens, dtype=torch.int64)
        # The numbers are as long as they come to be, so that the header is.
        described = {"shard": 10**4, "start": 10**7, "stop": 10**7 + rows}
        write_shard(path, ShardRows(codes, numbers, numbers.clone(), [_KEY] * rows), layout, described)
        return path.stat().st_size

    with tempfile.TemporaryDirectory() as folder:
        small, large = (size(rows, Path(folder, shard_name(rows))) for rows in (few, many))
    row = (large - small) / (many - few)
    return ShardCost(small - few * row, row)


def manifest_cost(images: int, shard_size: int, cost: ShardCost, skipped_share: float) -> ManifestCost:
    """Write and read the manifest of a cache of so many images, of which a share, evenly spread, was left out."""
    spans = shard_spans(images, shard_size, None)
    shards = [
        {
            "file": shard_name(number),
            "sha256": f"{number:064x}",
            "bytes": int(cost.of([span])),
            "images": len(span),
            "start": span.start,
            "stop": span.stop,
        }
        for number, span in spans.items()
    ]
    left_out = range(0, images, max(1, round(1 / skipped_share))) if skipped_share else range(0)
    skipped = [asdict(Skipped(_KEY, _REASON, index)) for index in left_out]
    classes = [f"n{number:08d}" for number in range(-(-images // _PER_CLASS))]
    head: dict[str, Any] = {"variants": ["original"], "num_classes": len(classes), "class_names": classes}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, MANIFEST)
        manifest = finished_manifest(head, f"{0:064x}", shards, skipped)
        began = time.perf_counter()
        write_bytes(path, json.dumps(manifest, ensure_ascii=False).encode())
        noted = time.perf_counter()
        write_json(path, manifest)
        written = time.perf_counter()
        read_json(path)
        read = time.perf_counter()
        tracemalloc.start()
        try:
            manifest = read_json(path)
            memory, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(manifest["shards"]) == len(spans)
        return ManifestCost(len(spans), path.stat().st_size, written - noted, noted - began, read - written, memory)
