"""Base of all image sources: encoded images in a fixed order, each with a key and a label."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType

from ..foundation.errors import CodaError, shown

MAX_ENCODED_BYTES = 256 * 2**20  # larger items are refused, not read into memory
MAX_PIXELS = 2**26  # an image of so many takes up to 0.5 GiB while it is decoded, in each loading process
PILLOWS_LIMIT = 178_956_970  # pixels; Pillow opens no larger image


class BrokenImage(CodaError):
    """An item that cannot be read as an image. The message is the reason, without the item's key."""


def too_large(size: int) -> str | None:
    """Why an item of so many bytes is not read, if so."""
    return f"its {size:,} bytes are more than any image has" if size > MAX_ENCODED_BYTES else None


class ImageSource(ABC):
    """Encoded images, in an order that depends on nothing but the data. Names in it are printable (`shown`).

    Attributes:
        kind: What sort of source it is, for messages.
        location: Where it is, as the user wrote it.
        class_names: One name or WordNet id per label; None where nobody has named them.
        num_classes: Labels are in [0, num_classes), or -1 for an item without one; 0 if none has a label.
        max_pixels: Images of more pixels are refused when they are decoded.
        ignored: How many files were left out because they are not images, by suffix.
        unreadable: Items that `read_batches` found broken so far, and why, by key.
    """

    kind: str
    location: str
    class_names: list[str] | None = None
    num_classes: int = 0
    max_pixels: int = MAX_PIXELS
    ignored: Mapping[str, int] = MappingProxyType({})

    @abstractmethod
    def __len__(self) -> int:
        """Number of items, readable or not."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """The encoded image.

        Raises:
            BrokenImage: The item does not hold an image.
            OSError: The storage failed; the item itself may be sound.
        """

    @abstractmethod
    def key(self, i: int) -> str:
        """Name of the item: unique in the source, and independent of where the source is stored."""

    @abstractmethod
    def label(self, i: int) -> int:
        """Class of the item; -1 if it has none."""

    @abstractmethod
    def identity(self, i: int) -> str:
        """Size, time of change or checksum: differs if the item was replaced. Known without reading the item."""

    @cached_property
    def unreadable(self) -> dict[str, str]:  # noqa: D102  above
        return {}

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over keys, labels, identities, class names, and `max_pixels` if it is not the default.

        Copies that keep the files' times have the same.
        """
        limit = () if self.max_pixels == MAX_PIXELS else (self.max_pixels,)  # it decides which images are skipped
        digest = hashlib.sha256(repr((self.num_classes, self.class_names, *limit)).encode())
        for i in range(len(self)):
            digest.update(f"{self.key(i)}\0{self.label(i)}\0{self.identity(i)}\n".encode())
        return digest.hexdigest()

    def describe(self) -> str:
        """The source in one line: "800 images in data (folder per class, 1000 classes)"."""
        classes = f", {self.num_classes} classes" if self.num_classes else ", no labels"
        return f"{len(self):,} images in {self.location} ({self.kind}{classes})"

    def describe_ignored(self) -> str:
        """Which files were left out, for a command's last line: "ignored 3 .heic and 1 .txt files"; "" if none."""
        counts = sorted(self.ignored.items(), key=lambda item: (-item[1], item[0]))
        kinds = [f"{count:,} {shown(suffix) or 'unnamed'}" for suffix, count in counts[:4]]
        kinds += [f"{sum(count for _, count in counts[4:]):,} other"] if counts[4:] else []
        return f"ignored {' and '.join(kinds)} files: not a supported image format" if kinds else ""

    def describe_unreadable(self) -> str:
        """Which items were replaced in a training, for a command's last line; "" if none."""
        if not self.unreadable:
            return ""
        key, reason = min(self.unreadable.items())
        images = f"{len(self.unreadable):,} unreadable image{'s' if len(self.unreadable) > 1 else ''}"
        return f"{images} replaced by others; the first, {key}, {reason}"

    def part(self, which: slice) -> ImageSource:
        """A slice of the items, in the same order and with the same classes."""
        start, stop = ("" if bound is None else str(bound) for bound in (which.start, which.stop))
        return _Part(self, range(len(self))[which], f"{self.location}[{start}:{stop}]")

    def subset(self, which: Sequence[int]) -> ImageSource:
        """The items at these places, with the same classes."""
        return _Part(self, which, self.location)


class _Part(ImageSource):
    """Some items of another source."""

    def __init__(self, whole: ImageSource, places: Sequence[int], location: str) -> None:
        self._whole, self._places, self.location = whole, places, location
        self.kind, self.class_names, self.num_classes = whole.kind, whole.class_names, whole.num_classes
        self.max_pixels, self.ignored, self.unreadable = whole.max_pixels, whole.ignored, whole.unreadable

    def __len__(self) -> int:
        return len(self._places)

    def read(self, i: int) -> bytes:
        return self._whole.read(self._places[i])

    def key(self, i: int) -> str:
        return self._whole.key(self._places[i])

    def label(self, i: int) -> int:
        return self._whole.label(self._places[i])

    def identity(self, i: int) -> str:
        return self._whole.identity(self._places[i])
