"""The 1,000 classes of ImageNet-1k: index, WordNet id and names."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple


class ImageNetClass(NamedTuple):
    """One class of ImageNet-1k: its WordNet id and its names, the usual one first."""

    wnid: str
    names: tuple[str, ...]


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """All 1,000 classes in the order of their indices, which is the order of their WordNet ids."""
    table = Path(__file__).with_name("imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in table.splitlines()[1:]]  # index, wnid, names
    return tuple(ImageNetClass(wnid, tuple(names.split(", "))) for _, wnid, names in rows)


@cache
def _indices() -> dict[str, int]:
    return {entry.wnid: index for index, entry in enumerate(imagenet_classes())}


def index_of_wnid(wnid: str) -> int | None:
    """The index of a WordNet id ("n02099601" → 207); None if it is not a class of ImageNet-1k."""
    return _indices().get(wnid)
