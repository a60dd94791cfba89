"""Files of a code cache and their content; README.md beside this file explains them.

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

from ..foundation.atomic_io import save_tensors, to_json
from ..foundation.errors import CodaError
from ..layout import CodeLayout

FORMAT = "coda code cache"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"  # written last: without it a folder is not a cache
PROGRESS = "progress.json"  # shards that an unfinished run has finished
EXPORTED_MANIFEST = "cache.json"  # the manifest's name in an export
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
        labels: (n,) int64, -1 for no label.
        indices: (n,) int64, indices in the source.
        keys: n names of items.
    """

    codes: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    keys: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    # The methods below run in the writer's thread, and use numpy because of that: a torch operation large enough to use
    # several threads would start a second pool of them, which slows the encoder down: on a CPU by a third.

    def on_disk(self, layout: CodeLayout) -> ShardRows:
        """The same with codes of the type on disk, on the CPU."""
        return replace(self, codes=torch.from_numpy(self.codes.cpu().numpy().astype(_numpy_type(layout), copy=False)))

    @classmethod
    def joined(cls, parts: Sequence[ShardRows], variants: int, layout: CodeLayout) -> ShardRows:
        """Concatenate rows; codes have the type on disk."""
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
    encoded = [key.encode(errors="surrogateescape") for key in rows.keys]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    tensors = {
        "codes": rows.on_disk(layout).codes,
        "labels": rows.labels.long(),
        "indices": rows.indices.long(),
        "key_offsets": torch.from_numpy(ends),
        "keys": torch.from_numpy(np.frombuffer(bytearray(b"".join(encoded)), dtype=np.uint8)),
    }
    save_tensors(path, tensors, {_METADATA: to_json(metadata)})


class Shard:
    """A shard, mapped into memory as one map, which keeps no file open: only what is looked at is read.

    Args:
        path: The file.
        shape: (n, V, T) that the codes must have; any if None.

    Attributes:
        codes: (n, V, T), the type on disk.
        labels: (n,) int64.
        indices: (n,) int64.
        metadata: What `write_shard` was given.

    Raises:
        CodaError: If the file is missing or damaged, or holds arrays of other shapes.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int] | None = None) -> None:
        self.path = path
        try:
            size = path.stat().st_size
            content = (
                torch.from_file(str(path), size=size, dtype=torch.uint8).numpy() if size else np.empty(0, np.uint8)
            )
            content.flags.writeable = False
            length = int.from_bytes(content[:8].tobytes(), "little")
            header = json.loads(content[8 : 8 + min(length, size)].tobytes())
            self.metadata: dict[str, Any] = json.loads(header.pop("__metadata__")[_METADATA])
            arrays = {name: _array(content[8 + length :], entry) for name, entry in header.items()}
            self.codes, self.labels, self.indices = (arrays[name] for name in ("codes", "labels", "indices"))
            self._keys, self._key_offsets = arrays["keys"], arrays["key_offsets"]
            self._check_shapes(shape or self.codes.shape)
        except FileNotFoundError:
            raise CodaError(f"{path} is missing") from None
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError):
            raise CodaError(f"{path} is damaged: it is not a shard of codes, or cut short") from None

    def _check_shapes(self, shape: tuple[int, ...]) -> None:
        rows = len(self.codes)
        vectors = (self.labels.shape, self.indices.shape, self._key_offsets.shape)
        if self.codes.shape != shape or len(shape) != 3 or vectors != ((rows,), (rows,), (rows + 1,)):
            raise ValueError("misshapen")
        if self.codes.dtype.kind != "u" or {self.labels.dtype, self.indices.dtype} != {np.dtype(np.int64)}:
            raise ValueError("mistyped")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def samples(self) -> np.ndarray:
        """Codes of all variants of all images, (n·V, T), the type on disk."""
        return self.codes.reshape(-1, self.codes.shape[-1])

    def key(self, row: int) -> str:
        """Name of the item of a row."""
        name = self._keys[self._key_offsets[row] : self._key_offsets[row + 1]]
        return name.tobytes().decode(errors="surrogateescape")

    def has_sound_keys(self) -> bool:
        """Whether every row has a name: the names' bounds ascend from 0 to the end of all names."""
        offsets = self._key_offsets
        return offsets[0] == 0 and offsets[-1] == len(self._keys) and bool((np.diff(offsets) >= 0).all())

    def rows(self) -> ShardRows:
        """Everything, copied out of the file."""
        codes, labels, indices = (
            torch.from_numpy(np.array(array)) for array in (self.codes, self.labels, self.indices)
        )
        return ShardRows(codes, labels, indices, [self.key(row) for row in range(len(self))])


def _array(content: np.ndarray, entry: Mapping[str, Any]) -> np.ndarray:
    """One tensor of a safetensors file, as an array over the mapped bytes after its header."""
    start, stop = entry["data_offsets"]
    return content[start:stop].view(_NUMPY_TYPES[entry["dtype"]]).reshape(entry["shape"])


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
