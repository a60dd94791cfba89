"""Meaning of labels: ImageNet's classes if the data names them, else the data's own."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..foundation.errors import CodaError, shown
from .imagenet import imagenet_classes, index_of_wnid
from .source import ImageSource

MAX_CLASSES = 2**20  # unless the user says more


def imagenet_wnids() -> list[str]:
    """The class names of ImageNet-1k as sources give them: WordNet ids, from which names can be looked up."""
    return [entry.wnid for entry in imagenet_classes()]


def number_names(names: Sequence[str], num_classes: int | None = None) -> tuple[list[int], list[str]]:
    """Labels for classes given by name.

    Args:
        names: One name per class, in order.
        num_classes: The largest number of classes; `MAX_CLASSES` if None.

    Returns:
        The label of each name, and the class names by label. If all are WordNet ids of ImageNet-1k the labels are its
        indices, so that a folder of some of its classes agrees with the whole; else they count the names in order.
    """
    known = [index_of_wnid(name) for name in names]
    indices = [index for index in known if index is not None]
    if names and len(indices) == len(names):
        return indices, imagenet_wnids()
    check_label(len(names) - 1, num_classes, "class names")
    return list(range(len(names))), [shown(name) for name in names]


def name_numbers(highest: int, num_classes: int | None = None, where: str = "labels") -> tuple[int, list[str] | None]:
    """Number of classes and their names, for labels given as bare numbers.

    Args:
        highest: The largest label; -1 if there are none.
        num_classes: How many classes there are, where the user says so; else they are counted up to `highest`.
        where: Where the largest label stands, for the message.

    Returns:
        (number of classes, their names or None). Bare numbers have no names, except that 1,000 classes are ImageNet's.

    Raises:
        CodaError: The largest label is not below `num_classes`, or `MAX_CLASSES` if that is None.
    """
    if highest < 0:
        return 0, None
    check_label(highest, num_classes, where)
    count = highest + 1 if num_classes is None else num_classes
    return count, imagenet_wnids() if count == len(imagenet_classes()) else None


def labels_are_imagenets(source: ImageSource) -> bool:
    """Whether the first labels are ImageNet's indices of WordNet ids in the items' names (`n01440764_18.JPEG`)."""
    labels = {source.key(i): source.label(i) for i in range(min(len(source), 1000)) if source.label(i) >= 0}
    wnids = {key: re.search(r"n\d{8}", key) for key in labels}
    return all((wnid := wnids[key]) and index_of_wnid(wnid[0]) == label for key, label in labels.items())


def check_label(label: int, num_classes: int | None, where: str) -> None:
    """Refuse a label that is not below `num_classes` (`MAX_CLASSES` if None)."""
    limit = MAX_CLASSES if num_classes is None else num_classes
    if label >= limit:
        raise CodaError(f"{where}: label {label:,} is too large for {limit:,} classes; --num-classes allows more")
