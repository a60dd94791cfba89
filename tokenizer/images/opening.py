"""From what a user writes after --data to a source of images."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..foundation.errors import CodaError
from .folders import FolderSource, find_splits
from .patterns import expand, is_pattern, split_slice
from .source import MAX_PIXELS, ImageSource
from .webdataset import ArchiveSource

_PACKED = (".tar", ".parquet")


def open_images(
    path: str | Path | ImageSource, max_pixels: int = MAX_PIXELS, num_classes: int | None = None
) -> ImageSource:
    """Open a source of images.

    Args:
        path: One of
            - a folder with a folder per class (`n01440764/…jpg`), or of images alone (no labels);
            - WebDataset archives: a `.tar`, a folder of them, or a pattern (`shards/{00000..00099}.tar`);
            - parquet files in the layout of Hugging Face datasets: a `.parquet`, a folder of them, or a pattern
              (`data/train-*.parquet`);
            any of them with a slice of its items at the end (`DIR[:650]`, `DIR[650:]`); or a source, which is returned
            as it is.
        max_pixels: Images of more pixels are refused when they are decoded, but for a JPEG that is scaled down.
        num_classes: Number of classes, for labels that are numbers; counted up to the largest label if None, when
            labels above 2**20 are refused.

    Raises:
        CodaError: `path` does not exist, holds no images, or could mean several things; or a label is too large.
    """
    if isinstance(path, ImageSource):
        return path
    location, which = split_slice(str(path))
    source = _open(location, num_classes)
    source.max_pixels = max_pixels
    if not len(source):
        ignored = source.describe_ignored()
        raise CodaError(f"{location} holds no images" + (f"; {ignored}" if ignored else ""))
    if which is None:
        return source
    part = source.part(which)
    if not len(part):
        raise CodaError(f"{path} holds no images: {location} has {len(source):,}")
    return part


def _open(location: str, num_classes: int | None) -> ImageSource:
    if is_pattern(location):
        return _open_files(expand(location), location, num_classes)
    if not os.path.exists(location):
        raise CodaError(f"{location} does not exist; give a folder of images, .tar or .parquet files")
    if not os.path.isdir(location):
        return _open_files([location], location, num_classes)
    packed = _find_packed(location, os.listdir(location))
    if packed:
        return _open_files(packed, location, num_classes)
    source = FolderSource(location, num_classes)
    if not len(source) and any(source.ignored.get(suffix) for suffix in _PACKED):
        for folder, _, names in os.walk(location):
            if _find_packed(folder, names):
                raise CodaError(f"{location} holds no images itself; give the folder of its archives: {folder}")
    return source


def _find_packed(folder: str, names: Sequence[str]) -> list[str]:
    """The tar archives or the parquet files of a folder, which are to be of one kind and one split."""
    visible = sorted(name for name in names if not name.startswith("."))
    files = {suffix: [name for name in visible if name.lower().endswith(suffix)] for suffix in _PACKED}
    kinds = [suffix for suffix, found in files.items() if found]
    if len(kinds) == 2:
        raise CodaError(f"{folder} holds .tar and .parquet files; name those you mean: '{folder}/*{kinds[0]}'")
    found = files[kinds[0]] if kinds else []
    splits = find_splits({re.split("[^a-zA-Z]", name)[0] for name in found})
    if len(splits) > 1:
        raise CodaError(
            f"{folder} holds files of {' and '.join(splits)}; name those you mean: '{folder}/{splits[0]}*{kinds[0]}'"
        )
    return [os.path.join(folder, name) for name in found]


def _open_files(paths: list[str], location: str, num_classes: int | None) -> ImageSource:
    suffixes = {os.path.splitext(path)[1].lower() for path in paths}
    if suffixes not in ({".tar"}, {".parquet"}):
        raise CodaError(f"{location} is neither a folder of images nor .tar or .parquet files")
    for path in paths:
        if not os.path.isfile(path):
            raise CodaError(f"{path} is not a regular file")
    if suffixes == {".tar"}:
        return ArchiveSource(paths, location, num_classes)
    try:
        from .parquet import TableSource
    except ImportError:
        raise CodaError(f"{location}: reading parquet needs pyarrow; pip install pyarrow") from None
    return TableSource(paths, location, num_classes)
