"""Samples on disk while they are generated: 50,000 images take hours, and an interrupted run must not lose them.

Each image depends on its class and seed alone, so the number of whole images in the file is where to resume.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from coda.tokenizer.foundation.atomic_io import write_json
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.images import to_uint8

from .image_set import ImageSet

Sampler = Callable[[Sequence[int], Sequence[int]], torch.Tensor]


class SampleStore(ImageSet):
    """Images of one size, as consecutive bytes in `images.u8`; their size is in `size.json`.

    Args:
        folder: Folder of the store; an unfinished one is resumed.
        labels: Class index of every image.
        seeds: Seed of every image.
        balance: How the classes were chosen, for the report.
    """

    def __init__(self, folder: str | Path, labels: Sequence[int], seeds: Sequence[int], balance: str) -> None:
        assert len(labels) == len(seeds)
        self.folder = Path(folder)
        self._file, self._size_file = self.folder / "images.u8", self.folder / "size.json"
        self.labels, self.seeds = labels, seeds
        self.description = {"set": "sampled", "balance": balance, "crop": "none"}
        self.size: tuple[int, int] | None = None
        with contextlib.suppress(OSError, ValueError, TypeError):  # without a size, sampling starts over
            height, width = map(int, json.loads(self._size_file.read_text()))
            self.size = (height, width) if min(height, width) > 0 else None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def done(self) -> int:
        """Number of whole images in the store."""
        if self.size is None or not self._file.exists():
            return 0
        return min(self._file.stat().st_size // self._bytes_each, len(self))

    def fill(self, sampler: Sampler, batch_size: int) -> None:
        """Sample the images that are missing.

        Args:
            sampler: (class indices, seeds) -> images (B, 3, H, W), float in [-1, 1] or uint8.
            batch_size: Images per batch.

        Raises:
            CodaError: If the sampler returns another number of images, or another size than before.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with progress("Sampling", total=len(self), unit="images", completed=self.done) as bar:
            for start in range(self.done, len(self), batch_size):
                labels, seeds = self.labels[start : start + batch_size], self.seeds[start : start + batch_size]
                images = sampler(labels, seeds)
                pixels = images if images.dtype == torch.uint8 else to_uint8(images)
                self._append(pixels.cpu(), len(labels), start)
                bar.advance(len(labels))

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pixels (B, 3, H, W) uint8 and labels (B,), in order."""
        assert self.size is not None and self.done == len(self), "the store is not full yet"
        with open(self._file, "rb") as file:
            for start in range(0, len(self), batch_size):
                labels = torch.tensor(self.labels[start : start + batch_size])
                content = bytearray(file.read(len(labels) * self._bytes_each))
                pixels = torch.frombuffer(content, dtype=torch.uint8).view(len(labels), *self.size, 3)
                yield pixels.permute(0, 3, 1, 2).contiguous(), labels

    @property
    def _bytes_each(self) -> int:
        assert self.size is not None
        return self.size[0] * self.size[1] * 3

    def _append(self, pixels: torch.Tensor, expected: int, start: int) -> None:
        count, channels, height, width = pixels.shape
        if (count, channels) != (expected, 3):
            raise CodaError(f"the sampler returned {tuple(pixels.shape)}, expected ({expected}, 3, H, W)")
        if self.size is None:
            self.size = (height, width)
            write_json(self._size_file, [height, width])
        if self.size != (height, width):
            raise CodaError(f"the sampler returned {height}x{width} after {self.size[0]}x{self.size[1]}")
        with open(self._file, "ab") as file:
            file.truncate(start * self._bytes_each)  # a killed run may have left a part of an image
            file.write(pixels.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
