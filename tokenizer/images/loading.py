"""Batches of images, independent of how many processes load them.

The content of a batch is decided before it is loaded: a list of (item, draw), where `draw` seeds the item's crop and
mirroring. Loading processes only carry out such lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch.utils.data import Dataset

from ..foundation.errors import CodaError
from ..foundation.seeding import EndlessOrder, step_generator
from ..foundation.worker_processes import load_ahead
from .decoding import decode_image
from .pixel_range import to_unit
from .source import BrokenImage, ImageSource

_MAX_REPLACEMENTS = 32  # tried for one broken item of a training


@dataclass(frozen=True)
class Skipped:
    """An item that could not be read: its key and index, and why."""

    key: str
    reason: str
    index: int


@dataclass
class ImageBatch:
    """Images of one step.

    Attributes:
        pixels: (B, 3, H, W) uint8 in [0, 255]. Move them to the device first, then apply `to_unit`.
        labels: (B,) int64; -1 for no label.
        keys: Names of the B items.
        indices: (B,) int64, indices in the source.
        skipped: Items of the batch that could not be read.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    keys: list[str]
    indices: torch.Tensor
    skipped: list[Skipped] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.keys)


Request = Sequence[tuple[int, int]]  # (item, draw) each


class ImageDataset(Dataset):
    """A source as a torch data set.

    Args:
        source: The images.
        size: Pixels, one number or (height, width); None keeps images as they are.
        crop: "center" or "random", see `decode_image`.
        flip: Mirror with probability one half.
        seed: Seed for random crops and mirroring: an item gets the same ones each time.
    """

    def __init__(
        self,
        source: ImageSource,
        size: int | tuple[int, int] | None,
        crop: str = "center",
        flip: bool = False,
        seed: int = 0,
    ) -> None:
        self.source, self.size, self.crop, self.flip, self.seed = source, size, crop, flip, seed

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        """Image (3, H, W) in [-1, 1] and label of item `i`; BrokenImage if it cannot be read."""
        return to_unit(self.pixels(i, i)), self.source.label(i)

    def pixels(self, i: int, draw: int) -> torch.Tensor:
        """(3, H, W) uint8 of item `i`, with crop and mirroring drawn by (seed, draw)."""
        random = self.crop == "random" or self.flip
        generator = step_generator(self.seed, draw, "crop and mirror") if random else None
        return decode_image(
            self.source.read(i), self.size, self.crop, self.flip, generator, max_pixels=self.source.max_pixels
        )


def read_batches(
    dataset: ImageDataset,
    requests: Iterable[Request],
    workers: int = 0,
    strict: bool = False,
    replace: bool = False,
) -> Iterator[ImageBatch]:
    """Load one batch per request, in order. Without items that cannot be read, a batch may even be empty.

    Items that cannot be read are also noted in the source, as `unreadable`.

    Args:
        dataset: The images.
        requests: (item, draw) of each image of each batch.
        workers: Processes that load; 0 loads in this one.
        strict: Stop at the first item that cannot be read.
        replace: Replace items that cannot be read by others, drawn at random.

    Raises:
        CodaError: If an item cannot be read (`strict`), or no replacement can (`replace`).
        OSError: If the storage failed.
    """
    for loaded in load_ahead(_Loader(dataset, replace), requests, workers):
        dataset.source.unreadable.update((item.key, item.reason) for item in loaded.skipped)
        if strict and loaded.skipped:
            first = loaded.skipped[0]
            raise CodaError(f"{first.key} in {dataset.source.location} {first.reason}")
        yield loaded


def image_batches(
    source: ImageSource,
    size: int | tuple[int, int] | None,
    batch_size: int,
    indices: Iterable[int] | None = None,
    crop: str = "center",
    workers: int = 0,
    strict: bool = False,
    seed: int = 0,
) -> Iterator[ImageBatch]:
    """Go through a source once.

    Items that cannot be read are named in `skipped` of their batch, or of its neighbor: no batch is empty.

    Args:
        source: The images.
        size: Pixels, one number or (height, width); None keeps images as they are, which must be of one size.
        batch_size: Items per batch; the last may be smaller.
        indices: Which items, in which order; all in order if None.
        crop: "center" or "random".
        workers: Processes that load; any number gives the same batches.
        strict: Stop at the first item that cannot be read.
        seed: Seed for random crops.

    Raises:
        CodaError: If no item can be read, or one cannot (`strict`), or images differ in size and `size` is None.
    """
    order = range(len(source)) if indices is None else [int(i) for i in indices]
    requests = [[(i, i) for i in order[start : start + batch_size]] for start in range(0, len(order), batch_size)]
    held: ImageBatch | None = None
    lost: list[Skipped] = []
    for batch in read_batches(ImageDataset(source, size, crop, seed=seed), requests, workers, strict):
        if len(batch) == 0:
            (lost if held is None else held.skipped).extend(batch.skipped)
            continue
        if held is not None:
            yield held
        batch.skipped[:0], lost = lost, []
        held = batch
    if held is not None:
        yield held
    elif lost:
        raise CodaError(f"no image in {source.location} can be read; the first, {lost[0].key}, {lost[0].reason}")


def training_batches(
    source: ImageSource,
    size: int | tuple[int, int],
    batch_size: int,
    seed: int,
    start_step: int,
    steps: int,
    crop: str = "random",
    flip: bool = True,
    workers: int = 0,
    strict: bool = False,
    process: tuple[int, int] = (0, 1),
) -> Iterator[ImageBatch]:
    """One batch for each of the steps `start_step` … `steps` − 1, the same as in an uninterrupted training.

    Epoch e visits the items in `epoch_order(seed, e)`; a batch may span two epochs. Items that cannot be read are
    named in `skipped` and replaced by others, so batches are always full.

    Args:
        source: The images.
        size: Pixels, one number or (height, width).
        batch_size: Images per step, over all processes.
        seed: Seed for order, crops and mirroring.
        start_step: Steps done before.
        steps: Steps in total.
        crop: "random" or "center".
        flip: Mirror with probability one half.
        workers: Processes that load; any number gives the same batches.
        strict: Stop at the first item that cannot be read.
        process: (rank, count): every count-th image of each batch from rank on.
    """
    dataset = ImageDataset(source, size, crop, flip, seed)
    rank, count = process

    def requests() -> Iterator[Request]:
        for step in range(start_step, steps):
            draws = range(step * batch_size + rank, (step + 1) * batch_size, count)
            yield list(zip(order.items(draws).tolist(), draws, strict=True))

    order = EndlessOrder(len(source), seed)
    return read_batches(dataset, requests(), workers, strict, replace=True)


class _Loader:
    """Carries out requests."""

    def __init__(self, dataset: ImageDataset, replace: bool) -> None:
        self._dataset, self._replace = dataset, replace

    def __getitem__(self, request: Request) -> ImageBatch:
        source = self._dataset.source
        pixels: list[torch.Tensor] = []
        indices: list[int] = []
        skipped: list[Skipped] = []
        for i, draw in request:
            found = self._pixels(i, draw, skipped)
            if found is None and self._replace:
                i, found = self._replacement(draw, skipped)
            if found is not None:
                pixels.append(found)
                indices.append(i)
        return ImageBatch(
            pixels=self._stacked(pixels),
            labels=torch.tensor([source.label(i) for i in indices], dtype=torch.int64),
            keys=[source.key(i) for i in indices],
            indices=torch.tensor(indices, dtype=torch.int64),
            skipped=skipped,
        )

    def _stacked(self, pixels: list[torch.Tensor]) -> torch.Tensor:
        size = self._dataset.size
        if not pixels:
            height, width = (0, 0) if size is None else (size, size) if isinstance(size, int) else size
            return torch.empty(0, 3, height, width, dtype=torch.uint8)
        shapes = {tuple(image.shape[1:]) for image in pixels}
        if len(shapes) > 1:
            (h, w), (other_h, other_w) = sorted(shapes)[:2]
            location = self._dataset.source.location
            raise CodaError(f"{location} holds images of {w}x{h} and {other_w}x{other_h}; give a size to crop them to")
        return torch.stack(pixels)

    def _pixels(self, i: int, draw: int, skipped: list[Skipped]) -> torch.Tensor | None:
        try:
            return self._dataset.pixels(i, draw)
        except BrokenImage as error:
            skipped.append(Skipped(self._dataset.source.key(i), str(error), i))
            return None

    def _replacement(self, draw: int, skipped: list[Skipped]) -> tuple[int, torch.Tensor]:
        generator = step_generator(self._dataset.seed, draw, "replacement")
        for i in torch.randint(len(self._dataset), (_MAX_REPLACEMENTS,), generator=generator).tolist():
            found = self._pixels(i, draw, skipped)
            if found is not None:
                return i, found
        location, last = self._dataset.source.location, skipped[-1]
        raise CodaError(f"hardly any image in {location} can be read; the last tried, {last.key}, {last.reason}")
