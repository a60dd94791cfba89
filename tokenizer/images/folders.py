"""Images as files: a folder per class (ImageFolder), or one flat folder without labels."""

from __future__ import annotations

import errno
import os
import re
import stat
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..foundation.errors import CodaError, shown
from .imagenet import index_of_wnid
from .labels import number_names
from .source import BrokenImage, ImageSource, too_large

_JPEG_SUFFIXES = frozenset({".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"})
IMAGE_SUFFIXES = _JPEG_SUFFIXES | {".avif", ".bmp", ".gif", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MAX_DEPTH = 64
_NOT_THERE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENOTDIR)  # else the storage failed
_SPLIT = re.compile(r"(train|training|trainval|val|valid|validation|test|testing|dev|eval)([-_. ]?\d+)?", re.IGNORECASE)
_File = tuple[str, int, int]  # path from the source's folder, with "/" on every system; bytes; time of change in ns


class FolderSource(ImageSource):
    """Image files under `root`, class folder by class folder, each sorted by path.

    The folders directly under `root` are the classes; images directly in it have no label. Hidden files are skipped,
    those of other kinds are counted in `ignored`.
    """

    def __init__(self, root: str | Path, num_classes: int | None = None) -> None:
        self.location, self._root = shown(root), Path(root)
        self._paths: list[str] = []
        self._sizes, self._changed, self._labels = (array("q") for _ in range(3))
        self.ignored = Counter[str]()
        classes: dict[str, list[_File]] = {}
        for file in _walk(self._root, self.ignored):
            top, slash, _ = file[0].partition("/")
            classes.setdefault(top if slash else "", []).append(file)
        loose = sorted(classes.pop("", []))
        if classes and loose:
            raise CodaError(
                f"{root} holds both images ({loose[0][0]}) and folders of images ({min(classes)}); "
                "give one folder per class, or images alone"
            )
        _check_level(self._root, [path for files in classes.values() for path, _, _ in files])
        self.kind = "folder per class" if classes else "flat folder"
        if classes:
            names = sorted(classes)
            labels, self.class_names = number_names(names, num_classes)
            self.num_classes = len(self.class_names)
            for label, name in zip(labels, names, strict=True):
                self._add(sorted(classes[name]), label)
        self._add(loose, -1)

    def _add(self, files: list[_File], label: int) -> None:
        for path, size, changed in files:
            self._paths.append(path)
            self._sizes.append(size)
            self._changed.append(changed)
            self._labels.append(label)

    def __len__(self) -> int:
        return len(self._paths)

    def read(self, i: int) -> bytes:
        """The encoded image; BrokenImage where there is none."""
        return read_image_file(self._root / self._paths[i])

    def key(self, i: int) -> str:
        """Path relative to the folder."""
        return shown(self._paths[i])

    def label(self, i: int) -> int:
        """Class of the item, -1 if it has none."""
        return self._labels[i]

    def identity(self, i: int) -> str:
        """Size in bytes and time of the last change."""
        return f"{self._sizes[i]} {self._changed[i]}"


def read_image_file(path: Path) -> bytes:
    """The content of a regular file of a size that images can have; BrokenImage where there is none."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise BrokenImage("is not a regular file")
        if problem := too_large(status.st_size):
            raise BrokenImage(problem)
        return path.read_bytes()
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
        raise BrokenImage(f"cannot be opened: {error.strerror}") from None


def _walk(root: Path, ignored: Counter[str]) -> Iterator[_File]:
    """All images below `root`, each real folder once: where it is, rather than through a link to it."""
    folders, links = [(root, "", 0)], deque[tuple[Path, str, int]]()
    seen: set[tuple[int, int]] = set()
    while folders or links:
        folder, prefix, depth = folders.pop() if folders else links.popleft()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        if depth > _MAX_DEPTH:
            raise CodaError(f"{root} has folders more than {_MAX_DEPTH} deep, in {prefix.partition('/')[0]}")
        with os.scandir(folder) as found:
            entries = sorted((entry for entry in found if not entry.name.startswith(".")), key=lambda entry: entry.name)
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()
            if _is_folder(entry):
                below = links if entry.is_symlink() else folders
                below.append((folder / entry.name, f"{prefix}{entry.name}/", depth + 1))
            elif suffix in IMAGE_SUFFIXES:
                try:
                    status = entry.stat()
                    yield prefix + entry.name, status.st_size, status.st_mtime_ns
                except OSError:  # a link to nowhere, which `read` will name
                    yield prefix + entry.name, 0, 0
            else:
                ignored[suffix] += 1


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _check_level(root: Path, paths: Iterable[str]) -> None:
    """Refuse a folder that is above the one whose folders are the classes, and would lose or mistake them."""
    folders = [folder.split("/") for folder in sorted({path.rpartition("/")[0] for path in paths})]
    level = root
    while folders:
        _refuse_splits(level, folders, least=1)
        names = {parts[0] for parts in folders}
        if level != root and all(index_of_wnid(name) is not None for name in names):
            raise CodaError(f"{root} holds the classes of ImageNet one folder down: give {level}")
        if len(names) > 1 or any(len(parts) == 1 for parts in folders):
            for name in names:
                below = [parts[1:] for parts in folders if parts[0] == name and len(parts) > 2]
                _refuse_splits(level / name, below, least=2)
            return
        level /= folders[0][0]
        folders = [parts[1:] for parts in folders]


def _refuse_splits(level: Path, folders: list[list[str]], least: int) -> None:
    """Refuse folders at `level` that are the splits of a data set; a lone "train" among classes is a vehicle."""
    names = {parts[0] for parts in folders}
    splits = find_splits(names)
    is_class = len(names) > 1 and [name.lower() for name in splits] == ["train"] and [splits[0]] in folders
    if len(splits) >= least and not is_class:
        raise CodaError(f"{level} holds splits, not classes ({' and '.join(splits)}); give one: {level / splits[0]}")


def find_splits(names: Iterable[str]) -> list[str]:
    """Those of `names` that are called like a data set's splits ("train", "Val", "test2017"), training first."""
    splits = [name for name in names if _SPLIT.fullmatch(name)]
    return sorted(splits, key=lambda name: (not name.lower().startswith("train"), name))
