"""Samples on disk while they are being made: 50,000 pictures take hours, and a kill must not cost them.

A picture depends on its class and its seed alone, so the count of whole pictures in the file says where to go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from coda.tokenizer.foundation.atomic_io import write_json
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.images import to_uint8

from ..features.distances import Statistics

Sampler = Callable[[Sequence[int], Sequence[int]], torch.Tensor]


class SampleStore:
    """Pictures of one size, as bytes in a row: `pictures.u8`, with their size in `size.json`.

    Args:
        folder: Where the store lies; an unfinished one there is gone on with.
        labels: Class index of every picture that there will be.
        seeds: Its seed.
        balance: How the classes were chosen, for the report.
    """

    pooled_statistics: Statistics | None = None
    spatial_statistics: Statistics | None = None

    def __init__(self, folder: str | Path, labels: Sequence[int], seeds: Sequence[int], balance: str) -> None:
        assert len(labels) == len(seeds)
        self.folder = Path(folder)
        self.labels, self.seeds = labels, seeds
        self.description: dict[str, Any] = {"set": "sampled", "balance": balance, "crop": "none"}
        self.size: tuple[int, int] | None = None
        if self._size_file.exists():
            height, width = json.loads(self._size_file.read_text())
            self.size = (height, width)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def done(self) -> int:
        """How many whole pictures the store holds."""
        if self.size is None or not self._file.exists():
            return 0
        return min(self._file.stat().st_size // self._bytes_each, len(self))

    def fill(self, sampler: Sampler, batch_size: int) -> None:
        """Make the pictures that are missing.

        Args:
            sampler: (class indices, seeds) -> images (B, 3, H, W), float in [-1, 1] or uint8.
            batch_size: Pictures at once.

        Raises:
            CodaError: The sampler gave another number of pictures, or another size than before.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with progress("Sampling", total=len(self), unit="images", completed=self.done) as bar:
            for start in range(self.done, len(self), batch_size):
                labels, seeds = self.labels[start : start + batch_size], self.seeds[start : start + batch_size]
                images = sampler(labels, seeds)
                pictures = images if images.dtype == torch.uint8 else to_uint8(images.float())
                self._append(pictures.cpu(), len(labels), start)
                bar.advance(len(labels))

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pictures (B, 3, H, W) uint8 and labels (B,), in order."""
        assert self.size is not None and self.done == len(self), "the store is not full yet"
        with open(self._file, "rb") as file:
            for start in range(0, len(self), batch_size):
                labels = torch.tensor(self.labels[start : start + batch_size])
                content = bytearray(file.read(len(labels) * self._bytes_each))
                pictures = torch.frombuffer(content, dtype=torch.uint8).view(len(labels), *self.size, 3)
                yield pictures.permute(0, 3, 1, 2).contiguous(), labels

    @property
    def _file(self) -> Path:
        return self.folder / "pictures.u8"

    @property
    def _size_file(self) -> Path:
        return self.folder / "size.json"

    @property
    def _bytes_each(self) -> int:
        assert self.size is not None
        return self.size[0] * self.size[1] * 3

    def _append(self, pictures: torch.Tensor, expected: int, start: int) -> None:
        count, channels, height, width = pictures.shape
        if (count, channels) != (expected, 3):
            raise CodaError(f"the sampler gave {tuple(pictures.shape)}, expected ({expected}, 3, H, W)")
        if self.size is None:
            self.size = (height, width)
            write_json(self._size_file, [height, width])
        if self.size != (height, width):
            raise CodaError(f"the sampler gave {height}x{width} after {self.size[0]}x{self.size[1]}")
        with open(self._file, "ab") as file:
            file.truncate(start * self._bytes_each)  # drops the part of a picture that a kill may have left
            file.write(pictures.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
