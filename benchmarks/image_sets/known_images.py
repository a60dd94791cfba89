"""The images of a source whose classes a generator knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import ImageSource, image_batches
from coda.tokenizer.settings import RunOptions

from ..class_matching import find_class
from ..judge_report import shown_class
from .image_set import SourceSet


class KnownImages(SourceSet):
    """The images whose classes a generator knows, with its class indices as labels.

    Args:
        source: The images.
        class_names: Names or WordNet ids of the generator's classes, by index; None takes the labels of the source.
        size: Center crop in pixels, (height, width).
        run: Workers, and whether to stop at an image that cannot be read.
        limit: Use at most this many images, drawn evenly by `seed`.
        seed: Seed of that draw.

    Raises:
        CodaError: If there is no image of one of the classes.
    """

    def __init__(
        self,
        source: ImageSource,
        class_names: Mapping[int, str] | None,
        size: tuple[int, int],
        run: RunOptions,
        limit: int | None = None,
        seed: int = 0,
    ) -> None:
        self._index_of: dict[int, int | None] = {source.label(i): source.label(i) for i in range(len(source))}
        if class_names is not None and (names := source.class_names) is not None:
            self._index_of = {label: find_class(names[label], class_names) for label in self._index_of if label >= 0}
        known = {label for label in self._index_of if label >= 0} if class_names is None else set(class_names)
        places = [i for i in range(len(source)) if self._index_of.get(source.label(i)) in known]
        for index in sorted(known - {self._index_of[source.label(i)] for i in places}):
            raise CodaError(f"{source.location} has no image of class {shown_class(index, class_names)}")
        super().__init__(source.subset(places), size, limit, seed, run.workers, run.strict)

    def labels(self) -> list[int]:
        """The class of every image, without decoding any."""
        return self.class_indices(super().labels())

    def batches(self, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Pixels (B, 3, H, W) uint8 and class indices (B,), in the order of the source."""
        for pixels, labels in super().batches(batch_size):
            yield pixels, torch.tensor(self.class_indices(labels.tolist()))

    def pixels(self, places: torch.Tensor) -> torch.Tensor:
        """The images at these places (N,) among those that `batches` gave, (N, 3, H, W) uint8."""
        unreadable = {item.index for item in self.skipped}
        readable = [i for i in self.indices if i not in unreadable]
        chosen = [readable[place] for place in places.tolist()]
        return torch.cat([batch.pixels for batch in image_batches(self.source, self.size, 32, chosen, strict=True)])

    def class_indices(self, labels: Sequence[int]) -> list[int]:
        """The generator's class indices of labels of the source."""
        return [index for label in labels if (index := self._index_of[label]) is not None]
