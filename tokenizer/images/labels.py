"""What labels mean: ImageNet's classes wherever the data say so, else the data's own."""

from __future__ import annotations

from collections.abc import Sequence

from .imagenet import imagenet_classes, index_of_wnid


def imagenet_wnids() -> list[str]:
    """The class names of ImageNet-1k as sources give them: WordNet ids, from which names can be looked up."""
    return [entry.wnid for entry in imagenet_classes()]


def number_names(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Labels for classes given by name.

    Returns:
        The label of each name, and the class names by label. If all are WordNet ids of ImageNet-1k the labels are its
        indices, so that a folder of some of its classes agrees with the whole; else they count the names in order.
    """
    known = [index_of_wnid(name) for name in names]
    indices = [index for index in known if index is not None]
    if names and len(indices) == len(names):
        return indices, imagenet_wnids()
    return list(range(len(names))), list(names)


def name_numbers(highest: int) -> tuple[int, list[str] | None]:
    """Number of classes and their names, for labels given as bare numbers up to `highest` (-1: there are none)."""
    if highest < 0:
        return 0, None
    if highest < len(imagenet_classes()):
        return len(imagenet_classes()), imagenet_wnids()
    return highest + 1, None
