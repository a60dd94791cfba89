"""A folder that `coda sample` made, as a source of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.reading import plain_name, read_json
from coda.tokenizer.images import BrokenImage, ImageSource, open_images
from coda.tokenizer.images.patterns import split_slice
from coda.tokenizer.images.source import MAX_PIXELS

LISTING = "samples.json"


class SavedSamples(ImageSource):
    """The images that `samples.json` names; other files of the folder, such as `grid.png`, are not samples.

    Args:
        folder: Folder with a `samples.json`.

    Raises:
        CodaError: If the listing is damaged or names a file outside of the folder.
    """

    kind = "samples of a model"

    def __init__(self, folder: Path) -> None:
        self.location = str(folder)
        listing = folder / LISTING
        found = read_json(listing)
        entries = found.get("images", found.get("pictures"))  # the older name
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise CodaError(f"{listing} is damaged: it has no list of images")
        labels = {plain_name(entry.get("file"), listing): _label(entry, listing) for entry in entries}
        self._keys, self._labels = list(labels), list(labels.values())
        self.num_classes = max(self._labels, default=-1) + 1
        self._files = open_images(folder)
        self._places = {self._files.key(i): i for i in range(len(self._files))}

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, i: int) -> bytes:
        """The encoded image; BrokenImage if the file is missing."""
        if self._keys[i] not in self._places:
            raise BrokenImage(f"is named in {LISTING} but missing")
        return self._files.read(self._places[self._keys[i]])

    def key(self, i: int) -> str:
        """File name."""
        return self._keys[i]

    def label(self, i: int) -> int:
        """Class of the image, -1 if it has none."""
        return self._labels[i]

    def identity(self, i: int) -> str:
        """Identity of the file."""
        place = self._places.get(self._keys[i])
        return "missing" if place is None else self._files.identity(place)


def open_saved_samples(path: str | Path | ImageSource, max_pixels: int = MAX_PIXELS) -> ImageSource | None:
    """The samples in a folder, or in a part such as `runs/samples[:100]`; None if `path` has no `samples.json`."""
    if isinstance(path, ImageSource):
        return None
    location, which = split_slice(str(path))
    if not (Path(location) / LISTING).is_file():
        return None
    source = SavedSamples(Path(location))
    source.max_pixels = max_pixels
    return source if which is None else source.part(which)


def _label(entry: dict[str, Any], listing: Path) -> int:
    label = entry.get("class")
    if label is None:
        return -1
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise CodaError(f"{listing} is damaged: {label!r} is not a class")
    return label
