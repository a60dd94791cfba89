"""What every source of images offers: encoded images in a fixed order, each with a key and a label."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property

from ..foundation.errors import CodaError

# No photograph is larger as a file; what claims to be is not read into memory.
MAX_ENCODED_BYTES = 256 * 2**20


class BrokenImage(CodaError):
    """One item that cannot be read as an image; the message is the reason, without the item's key."""


class ImageSource(ABC):
    """Encoded images, in an order that depends on nothing but the data.

    Attributes:
        kind: What sort of source it is, for messages.
        location: Where it is, as the user wrote it.
        class_names: One name or WordNet id per label; None where nobody has named them.
        num_classes: Labels are in [0, num_classes), or -1 for an item without one; 0 if none has a label.
    """

    kind: str
    location: str
    class_names: list[str] | None = None
    num_classes: int = 0

    @abstractmethod
    def __len__(self) -> int:
        """Number of items, readable or not."""

    @abstractmethod
    def read(self, i: int) -> bytes:
        """The encoded image.

        Raises:
            BrokenImage: The item holds none.
            OSError: The storage failed; the item itself may be sound.
        """

    @abstractmethod
    def key(self, i: int) -> str:
        """The item's name: unique in the source and the same wherever the data lie."""

    @abstractmethod
    def label(self, i: int) -> int:
        """The item's class, -1 if it has none."""

    @abstractmethod
    def identity(self, i: int) -> str:
        """What tells the item from a changed one of the same key, without reading it."""

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the keys, labels, identities and class names: equal for equal data in another place."""
        digest = hashlib.sha256(repr((self.num_classes, self.class_names)).encode())
        for i in range(len(self)):
            digest.update(f"{self.key(i)}\0{self.label(i)}\0{self.identity(i)}\n".encode())
        return digest.hexdigest()

    def describe(self) -> str:
        """One line for people."""
        classes = f", {self.num_classes} classes" if self.num_classes else ", no labels"
        return f"{len(self):,} images in {self.location} ({self.kind}{classes})"

    def part(self, which: slice) -> ImageSource:
        """The items of a slice, in the same order and with the same classes."""
        return _Part(self, which)


class _Part(ImageSource):
    """A run of another source's items."""

    def __init__(self, whole: ImageSource, which: slice) -> None:
        self._whole, self._places = whole, range(len(whole))[which]
        self.kind, self.class_names, self.num_classes = whole.kind, whole.class_names, whole.num_classes
        start, stop = ("" if bound is None else str(bound) for bound in (which.start, which.stop))
        self.location = f"{whole.location}[{start}:{stop}]"

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
