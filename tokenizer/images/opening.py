"""From what a user writes after --data to a source of images."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..foundation.errors import CodaError
from .folders import FolderSource
from .patterns import expand, is_pattern, split_slice
from .source import ImageSource
from .webdataset import ArchiveSource

_SPLIT_NAME = re.compile(r"(train|val|valid|validation|test|dev)(?![a-z])", re.IGNORECASE)


def open_images(path: str | Path | ImageSource) -> ImageSource:
    """Open a source of images.

    Args:
        path: One of
            - a folder with a folder per class (`n01440764/…jpg`), or of images alone (no labels);
            - WebDataset archives: a `.tar`, a folder of them, or a pattern (`shards/{00000..00099}.tar`);
            - parquet files as the hub has them: a `.parquet`, a folder of them, or a pattern (`data/train-*.parquet`);
            any of them with a slice of its items at the end (`DIR[:650]`, `DIR[650:]`); or a source, which is returned.

    Raises:
        CodaError: There is nothing of that name, no image in it, or more than one thing that it could mean.
    """
    if isinstance(path, ImageSource):
        return path
    location, which = split_slice(str(path))
    source = _open(location)
    if not len(source):
        raise CodaError(f"{location} holds no images")
    if which is None:
        return source
    part = source.part(which)
    if not len(part):
        raise CodaError(f"{path} holds no images: {location} has {len(source):,}")
    return part


def _open(location: str) -> ImageSource:
    if is_pattern(location):
        return _open_files(expand(location), location)
    if not os.path.exists(location):
        raise CodaError(f"{location} does not exist; give a folder of images, .tar or .parquet files")
    if not os.path.isdir(location):
        return _open_files([location], location)
    return _open_folder(Path(location))


def _open_folder(folder: Path) -> ImageSource:
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    files = {suffix: [name for name in names if name.endswith(suffix)] for suffix in (".tar", ".parquet")}
    kinds = [suffix for suffix, found in files.items() if found]
    if len(kinds) == 2:
        raise CodaError(f"{folder} holds .tar and .parquet files; name those you mean: '{folder}/*{kinds[0]}'")
    if not kinds:
        return FolderSource(folder)
    found = files[kinds[0]]
    splits = sorted({match[1] for name in found if (match := _SPLIT_NAME.match(name))})
    if len(splits) > 1:
        pattern = folder / f"{splits[0]}*{kinds[0]}"
        raise CodaError(f"{folder} holds files of {' and '.join(splits)}; name those you mean: '{pattern}'")
    return _open_files([str(folder / name) for name in found], str(folder))


def _open_files(paths: list[str], location: str) -> ImageSource:
    suffixes = {os.path.splitext(path)[1].lower() for path in paths}
    if suffixes == {".tar"}:
        return ArchiveSource(paths, location)
    if suffixes == {".parquet"}:
        try:
            from .parquet import TableSource
        except ImportError:
            raise CodaError(f"{location}: reading parquet needs pyarrow; pip install pyarrow") from None
        return TableSource(paths, location)
    raise CodaError(f"{location} is neither a folder of images nor .tar or .parquet files")
