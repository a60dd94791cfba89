"""The two sides of a comparison: sets of pictures, wherever they lie, as uint8 batches with what must be said of them.

A set is a folder (any that `coda.tokenizer.images.open_images` opens), an `.npz` of ADM's, or samples made by a
callable and kept in a `SampleStore`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from coda.tokenizer.foundation.atomic_io import sha256_of
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.foundation.seeding import epoch_order
from coda.tokenizer.images import ImageSource, image_batches, open_images
from coda.tokenizer.images.decoding import RESAMPLING

from ..features.distances import FeatureSet, Statistics
from ..features.extractors import FeatureExtractor
from ..reports.provenance import class_balance
from .adm_npz import AdmArchive

ROUNDING = "uint8: (x + 1) * 127.5, rounded to nearest, clamped"
_AS_THEY_ARE = "none: the pictures as they are"

Size = int | tuple[int, int]


class PictureSet(Protocol):
    """What a side of a comparison offers.

    Attributes:
        description: What it is, its hash, its crop: goes into the report.
        pooled_statistics: Inception statistics that the file itself brings (they replace its pictures').
        spatial_statistics: The same for the spatial features.
    """

    description: dict[str, Any]
    pooled_statistics: Statistics | None
    spatial_statistics: Statistics | None

    def __len__(self) -> int:
        """How many pictures there are; 0 where there are only statistics."""
        ...

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pictures (B, 3, H, W) uint8 and labels (B,) int64, -1 where unknown."""
        ...


class SourceSet:
    """Pictures of an image source, or a random part of them.

    Args:
        source: The source.
        size: Pixels, one number or (height, width), of the centre crop; None takes the pictures as they are.
        limit: Take at most that many, drawn evenly from the whole by `seed`.
        seed: Of that draw.
        workers: Processes that decode.
        strict: A broken picture is an error; else it is left out and counted.
    """

    pooled_statistics: Statistics | None = None
    spatial_statistics: Statistics | None = None

    def __init__(
        self,
        source: ImageSource,
        size: Size | None,
        limit: int | None = None,
        seed: int = 0,
        workers: int = 0,
        strict: bool = False,
    ) -> None:
        self.source, self.workers, self.strict = source, workers, strict
        self.indices = drawn_indices(len(source), limit, seed)
        self.skipped: list[str] = []
        self.description: dict[str, Any] = {"set": source.describe(), "hash": source.fingerprint}
        self.crop_to(size)
        if len(self.indices) < len(source):
            self.description["drawn"] = f"{len(self.indices)} of {len(source)}, seed {seed}"

    def __len__(self) -> int:
        return len(self.indices)

    def crop_to(self, size: Size | None) -> None:
        """Let the pictures come out in this size."""
        self.size = size
        height, width = size if isinstance(size, tuple) else (size, size)
        self.description["crop"] = f"centre, {height}x{width}, {RESAMPLING}" if size is not None else _AS_THEY_ARE

    def labels(self) -> list[int]:
        """Label of every picture, without decoding any."""
        return [self.source.label(i) for i in self.indices]

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pictures (B, 3, H, W) uint8 and labels (B,), in the source's order."""
        found = image_batches(
            self.source, self.size, batch_size, indices=self.indices, workers=self.workers, strict=self.strict
        )
        self.skipped = []
        for batch in found:
            self.skipped += [skipped.key for skipped in batch.skipped]
            yield batch.pixels, batch.labels


class NpzSet:
    """An `.npz` of ADM's layout.

    Args:
        path: The file.
        use_statistics: Take the Inception statistics that the file brings, where it brings some.
        limit: Take only the first pictures.
    """

    def __init__(self, path: str | Path, use_statistics: bool = False, limit: int | None = None) -> None:
        self.archive = AdmArchive(path)
        self.limit = len(self.archive) if limit is None else min(limit, len(self.archive))
        self.pooled_statistics = self.archive.pooled_statistics if use_statistics else None
        self.spatial_statistics = self.archive.spatial_statistics if use_statistics else None
        self.description: dict[str, Any] = {
            "set": Path(path).name,
            "hash": sha256_of(path),
            "crop": _AS_THEY_ARE,
        }
        if self.pooled_statistics is not None:
            self.description["statistics"] = "mu and sigma of the file; its pictures serve KID, precision and recall"

    def __len__(self) -> int:
        return self.limit

    def crop_to(self, size: Size | None) -> None:
        """Nothing: what an `.npz` holds is taken as it is, and the report says of what size that is."""

    def labels(self) -> list[int]:
        """Label of every picture, -1 where the file has none."""
        found = self.archive.labels
        return [-1] * self.limit if found is None else found[: self.limit].tolist()

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pictures (B, 3, H, W) uint8 and labels (B,), in the file's order."""
        labels, start = torch.tensor(self.labels()), 0
        for images in self.archive.batches(batch_size) if self.limit else ():
            images = images[: self.limit - start]
            yield images, labels[start : start + len(images)]
            start += len(images)
            if start == self.limit:
                return


def open_picture_set(
    pictures: str | Path | ImageSource,
    size: Size | None = None,
    limit: int | None = None,
    seed: int = 0,
    workers: int = 0,
    strict: bool = False,
    use_statistics: bool = False,
) -> SourceSet | NpzSet:
    """Open a folder, a source or an `.npz`; the arguments are those of `SourceSet` and `NpzSet`.

    Raises:
        CodaError: There is nothing to open, or it holds no pictures and no statistics that may be used.
    """
    if isinstance(pictures, (str, Path)) and str(pictures).endswith(".npz"):
        archive = NpzSet(pictures, use_statistics, limit)
        if not len(archive) and archive.pooled_statistics is None:
            raise CodaError(f"{pictures} holds statistics of Inception but no pictures: use the extractor inception")
        return archive
    return SourceSet(open_images(pictures), size, limit, seed, workers, strict)


@dataclass(frozen=True)
class Seen:
    """A set as the extractor saw it.

    Attributes:
        features: Of all its pictures.
        labels: Of all its pictures, -1 where unknown.
        description: The set's own, with N, class balance and size.
        size: (H, W) of the pictures; None where there were none.
    """

    features: FeatureSet
    labels: list[int]
    description: dict[str, Any]
    size: tuple[int, int] | None


def look_at(
    pictures: PictureSet, extractor: FeatureExtractor, batch_size: int, title: str, with_logits: bool = False
) -> Seen:
    """Run all pictures of a set through the extractor.

    Args:
        pictures: The set.
        extractor: What sees them.
        batch_size: Pictures at a time.
        title: Of the progress.
        with_logits: Whether the classifier's output is kept, for the Inception score.

    Raises:
        CodaError: They are not of one size.
    """
    features, labels = FeatureSet(with_logits), []
    size: tuple[int, int] | None = None
    with progress(title, total=len(pictures), unit="images") as bar:
        for images, batch_labels in pictures.batches(batch_size):
            here = (images.shape[-2], images.shape[-1])
            if size not in (None, here):
                sizes = " and of ".join("x".join(map(str, s)) for s in (size, here) if s)
                raise CodaError(f"{pictures.description['set']}: pictures of {sizes} cannot be compared; crop them")
            features.append(extractor(images))
            labels += batch_labels.tolist()
            size = here
            bar.advance(len(images))
    return Seen(features, labels, describe_seen(pictures, labels, size), size)


def describe_seen(pictures: PictureSet, labels: list[int], size: tuple[int, int] | None) -> dict[str, Any]:
    """The set's description with what only reading it tells."""
    found = dict(pictures.description)
    found["n"] = len(labels)
    found["class_balance"] = class_balance(labels)
    found["pixels"] = "x".join(map(str, size)) if size else None
    skipped = getattr(pictures, "skipped", [])
    if skipped:
        found["skipped"] = f"{len(skipped)} broken: {', '.join(skipped[:5])}{', …' if len(skipped) > 5 else ''}"
    return found


def drawn_indices(count: int, limit: int | None, seed: int) -> list[int]:
    """At most `limit` of `count` indices, in rising order; which ones depends on `seed` alone.

    Raises:
        CodaError: `limit` is not positive.
    """
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise CodaError(f"limit is {limit}; at least one picture is needed")
    return sorted(epoch_order(seed, 0, count)[:limit].tolist())
