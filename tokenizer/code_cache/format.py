"""What lies in a code cache and under which names; README.md beside this file tells the same to people.

Shapes: n images of a shard in V variants (original, mirrored, …) with T codes each; K codes of C latent channels.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..foundation.atomic_io import save_tensors
from ..foundation.errors import CodaError
from ..foundation.reading import read_json
from ..layout import CodeLayout

FORMAT = "coda code cache"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"  # written last: without it a folder is no cache
PROGRESS = "progress.json"  # what an unfinished run has done
VALUE_TABLE = "value_table.safetensors"
VARIANTS = ("original", "mirrored")
_CROPS = ("top-left", "top-right", "bottom-left", "bottom-right", "center")
TEN_CROP = (*_CROPS, *(f"{crop} of mirrored" for crop in _CROPS))  # LlamaGen's ten, in its order

_METADATA = "coda"  # the one key of a shard's metadata: several would be written in no fixed order
_NUMPY_TYPES = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "I64": np.int64}


def shard_name(number: int) -> str:
    """File name of a shard."""
    return f"shard-{number:05d}.safetensors"


@dataclass(frozen=True)
class ShardRows:
    """Some images of a shard.

    Attributes:
        codes: (n, V, T) of any type of integers.
        labels: (n,) int64, -1 where there is none.
        indices: (n,) int64, places in the source.
        keys: n names of items.
    """

    codes: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    # What follows runs in the writer's thread, and in numpy for that reason: a torch operation that is large enough to
    # be shared among threads starts a second set of them, which gets in the encoder's way for good: on a CPU it took a
    # third of the throughput.

    def on_disk(self, layout: CodeLayout) -> ShardRows:
        """The same with codes of the type on disk, in the processor's memory."""
        return replace(self, codes=torch.from_numpy(self.codes.cpu().numpy().astype(_numpy_type(layout), copy=False)))

    @classmethod
    def joined(cls, parts: Sequence[ShardRows], variants: int, layout: CodeLayout) -> ShardRows:
        """All rows in one, of the type on disk; of no parts, no rows."""
        no_codes = np.empty((0, variants, layout.num_tokens), _numpy_type(layout))
        none = np.empty(0, np.int64)
        return cls(
            torch.from_numpy(np.concatenate([no_codes, *(part.codes.numpy() for part in parts)])),
            torch.from_numpy(np.concatenate([none, *(part.labels.numpy() for part in parts)])),
            torch.from_numpy(np.concatenate([none, *(part.indices.numpy() for part in parts)])),
            [key for part in parts for key in part.keys],
        )


def _numpy_type(layout: CodeLayout) -> np.dtype:
    return np.dtype(str(layout.dtype_on_disk).removeprefix("torch."))


def write_shard(path: Path, rows: ShardRows, layout: CodeLayout, metadata: dict[str, Any]) -> None:
    """Write a shard; the same rows give the same bytes."""
    encoded = [key.encode() for key in rows.keys]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    tensors = {
        "codes": rows.on_disk(layout).codes,
        "labels": rows.labels.long(),
        "indices": rows.indices.long(),
        "key_offsets": torch.from_numpy(ends),
        "keys": torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8)),
    }
    save_tensors(path, tensors, {_METADATA: json.dumps(metadata, ensure_ascii=False)})


class Shard:
    """A shard, mapped into memory: only what is looked at is read.

    Attributes:
        codes: (n, V, T), the type on disk.
        labels: (n,) int64.
        indices: (n,) int64.
        metadata: What `write_shard` was given.

    Raises:
        CodaError: The file is missing or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(min(length, path.stat().st_size)))
            self.metadata: dict[str, Any] = json.loads(header.pop("__metadata__")[_METADATA])
            arrays = {name: _map_array(path, 8 + length, entry) for name, entry in header.items()}
            self.codes, self.labels, self.indices = (arrays[name] for name in ("codes", "labels", "indices"))
            self._keys, self._key_offsets = arrays["keys"], arrays["key_offsets"]
        except FileNotFoundError:
            raise CodaError(f"{path} is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise CodaError(f"{path} is damaged: no shard of codes, or cut short") from None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def samples(self) -> np.ndarray:
        """Codes of all variants of all images, (n·V, T), the type on disk."""
        return self.codes.reshape(-1, self.codes.shape[-1])

    def key(self, row: int) -> str:
        """Name of the item of a row."""
        return self._keys[self._key_offsets[row] : self._key_offsets[row + 1]].tobytes().decode()

    def rows(self) -> ShardRows:
        """Everything, copied out of the file."""
        codes, labels, indices = (
            torch.from_numpy(np.array(array)) for array in (self.codes, self.labels, self.indices)
        )
        return ShardRows(codes, labels, indices, [self.key(row) for row in range(len(self))])


def _map_array(path: Path, start: int, entry: Mapping[str, Any]) -> np.ndarray:
    """One tensor of a safetensors file as an array over the file."""
    shape, dtype = tuple(entry["shape"]), _NUMPY_TYPES[entry["dtype"]]
    if 0 in shape:
        return np.empty(shape, dtype)
    # A plain array over the map: numpy's own class of mapped arrays takes longer to index than to read.
    return np.asarray(np.memmap(path, dtype, "r", start + entry["data_offsets"][0], shape))


def shard_spans(items: int, shard_size: int, part: Sequence[int] | None) -> dict[int, range]:
    """Which items belong to which shard: by place alone, so that every shard can be made by itself.

    Args:
        items: Number of items in the source.
        shard_size: Items per shard; those that cannot be read leave it smaller.
        part: (i, n) for the i-th of n parts, from 1; None for all.

    Raises:
        CodaError: There is nothing to do for this part.
    """
    count = -(-items // shard_size)
    first, last = 0, count
    if part is not None:
        i, n = part
        first, last = count * (i - 1) // n, count * i // n
        if first == last:
            raise CodaError(
                f"part {i}/{n} is empty: {items:,} images make {count} shards of {shard_size:,}; "
                f"give all parts a shard size of {max(1, items // n):,} or less"
            )
    return {k: range(k * shard_size, min(items, (k + 1) * shard_size)) for k in range(first, last)}


def finished_manifest(
    head: dict[str, Any], value_table: str, shards: Sequence[dict[str, Any]], skipped: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The manifest of a whole cache.

    Args:
        head: What was known before the first image.
        value_table: SHA-256 of the value table's file.
        shards: Description of each shard, in order.
        skipped: Index, key and reason of each item left out, in the source's order.
    """
    images = sum(shard["images"] for shard in shards)
    return {
        **head,
        "images": images,
        "samples": images * len(head["variants"]),
        "value_table": {"file": VALUE_TABLE, "sha256": value_table},
        "shards": list(shards),
        "skipped": list(skipped),
    }


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a whole cache.

    Raises:
        CodaError: There is none, it is damaged, or of a format that this version does not know.
    """
    if not (path / MANIFEST).is_file():
        if (path / PROGRESS).is_file():
            raise CodaError(f"{path} is an unfinished code cache: give the command that began it again to finish it")
        raise CodaError(f"{path} is no code cache: it has no {MANIFEST}" if path.exists() else f"{path} does not exist")
    manifest = read_json(path / MANIFEST)
    if manifest.get("format") != FORMAT:
        raise CodaError(f"{path} is no code cache: its {MANIFEST} says {manifest.get('format')!r}")
    if manifest.get("format_version") != FORMAT_VERSION:
        version = manifest.get("format_version")
        raise CodaError(f"{path} has format version {version}; this version of coda reads {FORMAT_VERSION}")
    return manifest


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """In words, where two descriptions differ: `size 64 there, 256 here`."""
    if there == here:
        return []
    if isinstance(there, dict) and isinstance(here, dict):
        keys = [*here, *(key for key in there if key not in here)]
        found = [differences(there.get(key), here.get(key), f"{name}.{key}".lstrip(".")) for key in keys]
        return [difference for some in found for difference in some]
    return [f"{name} {_short(there)} there, {_short(here)} here"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 32 else f"{text[:16]}…"
