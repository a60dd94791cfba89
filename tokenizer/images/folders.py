"""Images as files: a folder per class (ImageFolder), or one flat folder without labels."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator
from pathlib import Path

from ..foundation.errors import CodaError
from .labels import number_names
from .source import MAX_ENCODED_BYTES, BrokenImage, ImageSource

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "dev"})


class FolderSource(ImageSource):
    """Image files under `root`, class folder by class folder, each sorted by path.

    The folders directly under `root` are the classes; images directly in it have no label. Files of other kinds and
    hidden ones are left aside.
    """

    def __init__(self, root: str | Path) -> None:
        self.location, self._root = str(root), Path(root)
        self._paths: list[str] = []  # relative, with "/" on every system
        self._sizes, self._labels = array("q"), array("q")
        folders, loose = _children(self._root)
        classes = {name: files for name in folders if (files := sorted(_images_under(self._root / name, name + "/")))}
        if classes and loose:
            raise CodaError(
                f"{root} holds both images ({loose[0][0]}) and folders of images ({next(iter(classes))}); "
                "give one folder per class, or images alone"
            )
        if classes.keys() <= _SPLITS and any(path.count("/") > 1 for files in classes.values() for path, _ in files):
            raise CodaError(
                f"{root} holds {' and '.join(classes)}; name one of them: {self._root / next(iter(classes))}"
            )
        self.kind = "folder per class" if classes else "flat folder"
        if classes:
            labels, self.class_names = number_names(list(classes))
            self.num_classes = len(self.class_names)
            for label, files in zip(labels, classes.values(), strict=True):
                self._add(files, label)
        self._add(loose, -1)

    def _add(self, files: list[tuple[str, int]], label: int) -> None:
        self._paths += [path for path, _ in files]
        self._sizes.extend(size for _, size in files)
        self._labels.extend([label] * len(files))

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, i: int) -> bytes:
        """The encoded image; BrokenImage where there is none."""
        if self._sizes[i] > MAX_ENCODED_BYTES:
            raise BrokenImage(f"is {self._sizes[i]:,} bytes large, more than any photograph")
        try:
            return (self._root / self._paths[i]).read_bytes()
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            raise BrokenImage(f"cannot be opened: {error.strerror}") from None

    def key(self, i: int) -> str:
        """Path relative to the folder."""
        return self._paths[i]

    def label(self, i: int) -> int:
        """Class of the item, -1 if it has none."""
        return self._labels[i]

    def identity(self, i: int) -> str:
        """Size in bytes."""
        return str(self._sizes[i])


def _children(root: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """Names of the folders in `root`, and its own images with their sizes; both sorted."""
    with os.scandir(root) as found:
        entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
    folders = [entry.name for entry in entries if entry.is_dir()]
    return folders, [(entry.name, _size(entry)) for entry in entries if _is_image(entry)]


def _images_under(folder: Path, prefix: str, above: frozenset[str] = frozenset()) -> Iterator[tuple[str, int]]:
    """Paths and sizes of all images below `folder`; a link back to a folder above is not followed."""
    real = os.path.realpath(folder)
    if real in above:
        return
    with os.scandir(folder) as found:
        for entry in found:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images_under(folder / entry.name, f"{prefix}{entry.name}/", above | {real})
            elif _is_image(entry):
                yield prefix + entry.name, _size(entry)


def _is_image(entry: os.DirEntry[str]) -> bool:
    return os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not entry.is_dir()


def _size(entry: os.DirEntry[str]) -> int:
    """Size in bytes; 0 for a link to nowhere, which `read` will name."""
    try:
        return entry.stat().st_size
    except OSError:
        return 0
