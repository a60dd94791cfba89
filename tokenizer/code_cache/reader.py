"""Reading a code cache: random access through the memory map, nothing of the VAE needed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch.utils.data import Dataset

from ..foundation.atomic_io import sha256_of
from ..foundation.errors import CodaError
from ..foundation.progress import progress
from ..layout import CodeLayout
from .format import Shard, read_manifest


class CodeCache(Dataset):
    """The codes of a data set, as a torch data set of (codes (T,) int64, label).

    An image that was encoded in V variants (original, mirrored) counts V times: sample i is variant i % V of image
    i // V, images being in the source's order.

    Args:
        path: What `tokenize_dataset` or `merge_caches` wrote.

    Attributes:
        manifest: What manifest.json says; README.md beside the code explains it.
        layout: Sides, codebook size and order of the codes.
        num_images: Images, each once.
        num_classes: Labels are in [0, num_classes), or -1.
        class_names: Names or WordNet ids by label; None where nobody named the classes.
        tokenizer_fingerprint: Of the tokenizer that alone can decode these codes.

    Raises:
        CodaError: There is no whole cache, or one of its files is missing or cut short.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        try:
            self.layout = CodeLayout.from_json(self.manifest["layout"])
            self.num_images: int = self.manifest["images"]
            self.num_classes: int = self.manifest["num_classes"]
            self.class_names: list[str] | None = self.manifest["class_names"]
            self.tokenizer_fingerprint: str = self.manifest["tokenizer_fingerprint"]
            self._variants = len(self.manifest["variants"])
            self._described: list[dict[str, Any]] = self.manifest["shards"]
            self._starts = np.array([0, *accumulate(s["images"] * self._variants for s in self._described)])
            for shard in self._described:
                file = self.path / shard["file"]
                if not file.is_file() or file.stat().st_size != shard["bytes"]:
                    raise CodaError(f"{file} is {'cut short' if file.is_file() else 'missing'}; {self.path} is damaged")
        except (KeyError, TypeError) as error:
            raise CodaError(f"{self.path} has a damaged manifest: {error} is missing or wrong") from None
        self._open: dict[int, Shard] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """Codes (T,) int64 and label of sample `i`."""
        place = range(len(self))[i]  # an IndexError ends a loop over the cache
        number = bisect_right(self._starts, place) - 1
        image, variant = divmod(place - int(self._starts[number]), self._variants)
        shard = self._shard(number)
        return torch.from_numpy(shard.codes[image, variant].astype(np.int64)), int(shard.labels[image])

    def batch(self, indices: torch.Tensor | Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (B, T) int64 and labels (B,) int64 of samples, in the order given."""
        given = indices.numpy() if isinstance(indices, torch.Tensor) else list(indices)
        wanted = np.asarray(given, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"samples {wanted.min()} to {wanted.max()} of a cache of {len(self)}")
        codes = np.empty((len(wanted), self.layout.num_tokens), dtype=np.int64)
        order = np.argsort(wanted)  # samples of the same shard side by side
        bounds = np.searchsorted(wanted[order], self._starts)
        for number in np.flatnonzero(np.diff(bounds)):
            here = order[bounds[number] : bounds[number + 1]]
            codes[here] = self._shard(int(number)).samples[wanted[here] - self._starts[number]]
        return torch.from_numpy(codes), self.labels[torch.from_numpy(wanted)]

    def key(self, i: int) -> str:
        """Name, in the source, of the image of sample `i`."""
        place = range(len(self))[i]
        number = bisect_right(self._starts, place) - 1
        return self._shard(number).key((place - int(self._starts[number])) // self._variants)

    @cached_property
    def labels(self) -> torch.Tensor:
        """Label of every sample, (len,) int64; -1 where there is none."""
        found = [np.asarray(self._shard(number).labels) for number in range(len(self._described))]
        return torch.from_numpy(np.concatenate(found)).repeat_interleave(self._variants)

    @cached_property
    def value_table(self) -> torch.Tensor:
        """What a code stands for among normalised latents, (K, C) float32."""
        file = self.path / self.manifest["value_table"]["file"]
        try:
            return load_file(file)["value_table"]
        except (OSError, KeyError, SafetensorError):
            raise CodaError(f"{file} is missing or damaged") from None

    def verify(self) -> None:
        """Read everything and compare it with the manifest.

        Raises:
            CodaError: A checksum is wrong, a code is beyond the codebook, a label beyond the classes, or an item of
                the source is not accounted for exactly once. The message names the file.
        """
        table = self.path / self.manifest["value_table"]["file"]
        if not table.is_file() or sha256_of(table) != self.manifest["value_table"]["sha256"]:
            raise CodaError(f"{table} is missing or has the wrong checksum")
        skipped = {item["index"] for item in self.manifest["skipped"]}
        if len(skipped) < len(self.manifest["skipped"]):
            raise CodaError(f"{self.path} has a damaged manifest: it leaves an item out twice")
        with progress("Verifying", total=len(self._described), unit="shards") as bar:
            for number in range(len(self._described)):
                self._verify_shard(number, skipped)
                bar.advance()

    def _verify_shard(self, number: int, skipped: Collection[int]) -> None:
        described = self._described[number]
        shard, file = self._shard(number), self.path / described["file"]
        if sha256_of(file) != described["sha256"]:
            raise CodaError(f"{file} has the wrong checksum: it was changed or damaged after it was written")
        if shard.codes.shape != (described["images"], self._variants, self.layout.num_tokens):
            raise CodaError(f"{file} holds codes of shape {shard.codes.shape}, not those of the manifest")
        if len(shard) and int(shard.codes.max()) >= self.layout.codebook_size:
            raise CodaError(f"{file} holds code {shard.codes.max()}, beyond a codebook of {self.layout.codebook_size}")
        if len(shard) and not -1 <= int(shard.labels.min()) <= int(shard.labels.max()) < max(1, self.num_classes):
            raise CodaError(f"{file} holds labels beyond the {self.num_classes} classes")
        span = range(described["start"], described["stop"])
        accounted = sorted([*shard.indices.tolist(), *(index for index in span if index in skipped)])
        if accounted != list(span):
            raise CodaError(f"{file}: items {span.start} to {span.stop - 1} are not all there exactly once")

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            self._open[number] = Shard(self.path / self._described[number]["file"])
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a loading process maps the files itself
