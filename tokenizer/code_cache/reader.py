"""Read a code cache: random access through memory maps, without the VAE."""

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
from .format import Shard, shard_name, shard_spans
from .manifest import read_manifest


class CodeCache(Dataset):
    """The codes of a data set, as a torch Dataset of (codes (T,) int64, label).

    An image encoded in V variants (original, mirrored) counts V times: sample i is variant i % V of image i // V, in
    the source's order.

    Args:
        path: Folder that `tokenize_dataset` or `merge_caches` wrote.

    Attributes:
        manifest: Content of manifest.json, see README.md beside this file.
        layout: Sides, codebook size and order of the codes.
        num_images: Number of images, not counting variants.
        num_variants: Number V of variants of each image.
        num_classes: Labels are in [0, num_classes), or -1.
        class_names: Names or WordNet ids by label; None if the classes have no names.
        tokenizer_fingerprint: Fingerprint of the only tokenizer that can decode these codes.

    Raises:
        CodaError: If there is no whole cache, its manifest is damaged, or a file is missing or cut short. What takes
            longer to check is checked where it is first read, and by `verify`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        try:
            self.layout = CodeLayout.from_json(self.manifest["layout"])
        except (CodaError, LookupError, TypeError, ValueError, OverflowError):
            raise CodaError(f"{self.path} has a damaged manifest: layout is missing or wrong") from None
        self.num_images: int = self.manifest["images"]
        self.num_classes: int = self.manifest["num_classes"]
        self.class_names: list[str] | None = self.manifest["class_names"]
        self.tokenizer_fingerprint: str = self.manifest["tokenizer_fingerprint"]
        self.num_variants = len(self.manifest["variants"])
        self._described: list[dict[str, Any]] = self.manifest["shards"]
        self._starts = np.array([0, *accumulate(s["images"] * self.num_variants for s in self._described)])
        for shard in self._described:
            file = self.path / shard["file"]
            if not file.is_file() or file.stat().st_size != shard["bytes"]:
                raise CodaError(f"{file} is {'cut short' if file.is_file() else 'missing'}; {self.path} is damaged")
        self._open: dict[int, Shard] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """Codes (T,) int64 and label of sample `i`."""
        place = range(len(self))[i]  # IndexError ends a loop over the cache
        number = bisect_right(self._starts, place) - 1
        image, variant = divmod(place - int(self._starts[number]), self.num_variants)
        shard = self._shard(number)
        codes, label = shard.codes[image, variant], int(shard.labels[image])
        if codes.max() >= self.layout.codebook_size or not -1 <= label < max(1, self.num_classes):
            self._check_codes(codes, shard.path)
            self._check_labels(shard.labels, shard.path)
        return torch.from_numpy(codes.astype(np.int64)), label

    def batch(self, indices: torch.Tensor | Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (B, T) int64 and labels (B,) int64 of samples, in the order given."""
        given = indices.numpy() if isinstance(indices, torch.Tensor) else list(indices)
        wanted = np.asarray(given, dtype=np.int64)
        if len(wanted) and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"samples {wanted.min()} to {wanted.max()} of a cache of {len(self)}")
        codes = np.empty((len(wanted), self.layout.num_tokens), dtype=self._shard(0).codes.dtype)
        order = np.argsort(wanted)  # samples of the same shard together
        bounds = np.searchsorted(wanted[order], self._starts)
        for number in np.flatnonzero(np.diff(bounds)):
            here = order[bounds[number] : bounds[number + 1]]
            codes[here] = self._shard(int(number)).samples[wanted[here] - self._starts[number]]
        self._check_codes(codes, self.path)
        return torch.from_numpy(codes.astype(np.int64)), self.labels[torch.from_numpy(wanted)]

    def key(self, i: int) -> str:
        """Name, in the source, of the image of sample `i`."""
        place = range(len(self))[i]
        number = bisect_right(self._starts, place) - 1
        return self._shard(number).key((place - int(self._starts[number])) // self.num_variants)

    @cached_property
    def labels(self) -> torch.Tensor:
        """Label of every sample, (len,) int64; -1 for no label."""
        shards = [self._shard(number) for number in range(len(self._described))]
        for shard in shards:
            self._check_labels(shard.labels, shard.path)
        return torch.from_numpy(np.concatenate([shard.labels for shard in shards])).repeat_interleave(self.num_variants)

    @cached_property
    def value_table(self) -> torch.Tensor:
        """The normalized latent vector of each code, (K, C) float32."""
        file = self.path / self.manifest["value_table"]["file"]
        try:
            table = load_file(file)["value_table"]
        except (OSError, KeyError, SafetensorError):
            raise CodaError(f"{file} is missing or damaged") from None
        if table.ndim != 2 or len(table) != self.layout.codebook_size or table.dtype != torch.float32:
            raise CodaError(
                f"{file} holds {table.dtype} values of shape {tuple(table.shape)}; "
                f"a codebook of {self.layout.codebook_size:,} has one row of float32 per code"
            )
        if not table.isfinite().all():
            raise CodaError(f"{file} holds values that are NaN or infinite")
        return table

    def verify(self) -> None:
        """Read everything and compare it with the manifest.

        Raises:
            CodaError: If a checksum is wrong, a code is beyond the codebook, a label beyond the classes, a value not
                finite, a shape or name not as it should be, or an item of the source is not accounted for exactly
                once. The message names the file.
        """
        table = self.path / self.manifest["value_table"]["file"]
        if not table.is_file() or sha256_of(table) != self.manifest["value_table"]["sha256"]:
            raise CodaError(f"{table} is missing or has the wrong checksum")
        channels = self.manifest.get("tokenizer", {}).get("latent_channels", self.value_table.shape[1])
        if channels != self.value_table.shape[1]:
            raise CodaError(f"{table} holds values of {self.value_table.shape[1]} channels, not {channels}")
        skipped = {item["index"] for item in self.manifest["skipped"]}
        if len(skipped) < len(self.manifest["skipped"]):
            raise CodaError(f"{self.path} has a damaged manifest: it leaves an item out twice")
        self._verify_spans()
        with progress("Verifying", total=len(self._described), unit="shards") as bar:
            for number in range(len(self._described)):
                self._verify_shard(number, skipped)
                bar.advance()

    def _verify_spans(self) -> None:
        """Check that the shards are those of the source, each at its place."""
        header, shards = self.manifest, len(self._described)
        (i, n), count = header["part"] or (1, 1), -(-header["source"]["items"] // header["shard_size"])
        if count * i // n - count * (i - 1) // n != shards:  # before a list of that length is made
            raise CodaError(f"{self.path} has a damaged manifest: there are {shards} shards, not as many as it says")
        spans = shard_spans(header["source"]["items"], header["shard_size"], header["part"])
        expected = [(shard_name(number), span.start, span.stop) for number, span in spans.items()]
        found = [(shard["file"], shard["start"], shard["stop"]) for shard in self._described]
        if found != expected:
            wrong = next(here[0] for here, there in zip(found, expected, strict=True) if here != there)
            raise CodaError(f"{self.path} has a damaged manifest: {wrong} is not the shard that belongs there")

    def _verify_shard(self, number: int, skipped: Collection[int]) -> None:
        described = self._described[number]
        file = self.path / described["file"]
        if sha256_of(file) != described["sha256"]:
            raise CodaError(f"{file} has the wrong checksum: it was changed or damaged after it was written")
        shard = self._shard(number)
        self._check_codes(shard.codes, file)
        self._check_labels(shard.labels, file)
        if not shard.has_sound_keys():
            raise CodaError(f"{file} holds names of items that cannot be read")
        span = range(described["start"], described["stop"])
        accounted = sorted([*shard.indices.tolist(), *(index for index in span if index in skipped)])
        if accounted != list(span):
            raise CodaError(f"{file}: items {span.start} to {span.stop - 1} are not all there exactly once")

    def _check_codes(self, codes: np.ndarray, file: Path) -> None:
        if codes.size and codes.max() >= self.layout.codebook_size:
            raise CodaError(f"{file} holds code {codes.max()}, beyond a codebook of {self.layout.codebook_size:,}")

    def _check_labels(self, labels: np.ndarray, file: Path) -> None:
        if labels.size and not -1 <= labels.min() <= labels.max() < max(1, self.num_classes):
            raise CodaError(
                f"{file} holds labels from {labels.min()} to {labels.max()}, not of {self.num_classes:,} classes"
            )

    def _shard(self, number: int) -> Shard:
        if number not in self._open:
            described = self._described[number]
            shape = (described["images"], self.num_variants, self.layout.num_tokens)
            self._open[number] = Shard(self.path / described["file"], shape)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a worker process maps the files itself
