"""Sets of images to compare, as batches of uint8 pixels: image sources, and `.npz` files of ADM's evaluator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from coda.tokenizer.foundation.atomic_io import sha256_of
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.seeding import epoch_order
from coda.tokenizer.images import ImageSource, Skipped, image_batches, open_images
from coda.tokenizer.images.decoding import RESAMPLING
from coda.tokenizer.settings import RunOptions

from ..features.distances import Statistics
from ..reports.provenance import class_balance
from ..settings import MeasureSettings
from .adm_npz import AdmArchive
from .saved_samples import open_saved_samples

ROUNDING = "uint8: (x + 1) * 127.5, rounded to nearest, clamped"
_NOT_CROPPED = "none: the images as they are"
_NAMED = 5  # skipped images that a report names

Size = int | tuple[int, int]


class ImageSet(ABC):
    """One side of a comparison.

    Attributes:
        description: What it is, its hash, its crop, for the report.
        class_names: Name or WordNet id of each label, if known.
        skipped: Images that could not be read, known after `batches`.
        pooled_statistics: Inception statistics in the file itself, which replace those of its images.
        spatial_statistics: The same for the spatial features.
    """

    description: dict[str, Any]
    class_names: Sequence[str] | None = None
    skipped: Sequence[Skipped] = ()
    pooled_statistics: Statistics | None = None
    spatial_statistics: Statistics | None = None

    @abstractmethod
    def __len__(self) -> int:
        """Number of images; 0 if there are only statistics."""

    @abstractmethod
    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pixels (B, 3, H, W) uint8 and labels (B,) int64, -1 if unknown, in order."""


class SourceSet(ImageSet):
    """The images of a source, or some of them drawn at random.

    Args:
        source: The source.
        size: Center crop in pixels, one number or (height, width); None takes the images as they are.
        limit: Use at most this many images, drawn evenly by `seed`.
        seed: Seed of that draw.
        workers: Processes that decode.
        strict: Raise an error for an image that cannot be read, instead of skipping it.
    """

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
        self.class_names = source.class_names
        self.indices = drawn_indices(len(source), limit, seed)
        self.description = {"set": source.describe(), "hash": source.fingerprint}
        self.crop_to(size)
        if len(self.indices) < len(source):
            self.description["drawn"] = f"{len(self.indices)} of {len(source)}, seed {seed}"

    def __len__(self) -> int:
        return len(self.indices)

    def crop_to(self, size: Size | None) -> None:
        """Set the size of the images."""
        self.size = size
        height, width = size if isinstance(size, tuple) else (size, size)
        self.description["crop"] = f"center, {height}x{width}, {RESAMPLING}" if size is not None else _NOT_CROPPED

    def labels(self) -> list[int]:
        """The label of every image, without decoding any."""
        return [self.source.label(i) for i in self.indices]

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pixels (B, 3, H, W) uint8 and labels (B,), in the order of the source."""
        skipped: list[Skipped] = []
        self.skipped = skipped
        for batch in image_batches(
            self.source, self.size, batch_size, indices=self.indices, workers=self.workers, strict=self.strict
        ):
            skipped += batch.skipped
            yield batch.pixels, batch.labels


class NpzSet(ImageSet):
    """An `.npz` of ADM's layout.

    Args:
        path: The file.
        use_statistics: Use the Inception statistics in the file, if there are any.
        limit: Use only this many images, the first.
    """

    def __init__(self, path: str | Path, use_statistics: bool = False, limit: int | None = None) -> None:
        self.archive = AdmArchive(path)
        self.limit = len(self.archive) if limit is None else min(limit, len(self.archive))
        self.pooled_statistics = self.archive.pooled_statistics if use_statistics else None
        self.spatial_statistics = self.archive.spatial_statistics if use_statistics else None
        self.description = {"set": Path(path).name, "hash": sha256_of(path), "crop": _NOT_CROPPED}
        if self.archive.label_problem:
            self.description["labels"] = self.archive.label_problem
        if self.pooled_statistics is not None:
            self.description["statistics"] = "mu and sigma of the file; its images serve KID, precision and recall"

    def __len__(self) -> int:
        return self.limit

    def crop_to(self, size: Size | None) -> None:
        """Do nothing: images of an `.npz` are used as they are, and the report says their size."""

    def labels(self) -> list[int]:
        """The label of every image, -1 if the file has none."""
        found = self.archive.labels
        return [-1] * self.limit if found is None else found[: self.limit].tolist()

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pixels (B, 3, H, W) uint8 and labels (B,), in the order of the file."""
        labels, start = torch.tensor(self.labels()), 0
        for images in self.archive.batches(batch_size) if self.limit else ():
            images = images[: self.limit - start]
            yield images, labels[start : start + len(images)]
            start += len(images)
            if start == self.limit:
                return


def open_image_set(
    images: str | Path | ImageSource,
    size: Size | None = None,
    limit: int | None = None,
    settings: MeasureSettings = MeasureSettings(),
    run: RunOptions = RunOptions(),
    use_statistics: bool = False,
) -> SourceSet | NpzSet:
    """Open an `.npz`, a folder that `coda sample` made, or whatever `open_images` takes.

    `settings` say which images are accepted, and seed the draw; the other arguments are those of `SourceSet` and
    `NpzSet`.

    Raises:
        CodaError: If it cannot be opened, or has neither images nor statistics that may be used.
    """
    if isinstance(images, (str, Path)) and str(images).endswith(".npz"):
        archive = NpzSet(images, use_statistics, limit)
        if not len(archive) and archive.pooled_statistics is None:
            raise CodaError(f"{images} has Inception statistics but no images: use the extractor inception")
        return archive
    source = open_saved_samples(images, settings.max_pixels)
    source = source or open_images(images, settings.max_pixels, settings.num_classes)
    return SourceSet(source, size, limit, settings.seed, run.workers, run.strict)


def describe_measured(images: ImageSet, labels: Sequence[int], size: tuple[int, int] | None) -> dict[str, Any]:
    """The description of a set after all of its images were read: N, classes, size, and what was skipped."""
    found = {
        **images.description,
        "n": len(labels),
        "class_balance": class_balance(labels),
        "pixels": "x".join(map(str, size)) if size else None,
    }
    if skipped := images.skipped:
        named = ", ".join(f"{item.key} {item.reason}" for item in skipped[:_NAMED])
        found["skipped"] = f"{len(skipped)} unreadable: {named}{', …' if len(skipped) > _NAMED else ''}"
    return found


def drawn_indices(count: int, limit: int | None, seed: int) -> list[int]:
    """At most `limit` of `count` indices, in rising order; which ones depends on `seed` alone.

    Raises:
        CodaError: If `limit` is not positive.
    """
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise CodaError(f"limit is {limit}; at least one image is needed")
    return sorted(epoch_order(seed, 0, count)[:limit].tolist())
