"""Matching the classes of samples and reference, by name or WordNet id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images.imagenet import imagenet_classes, index_of_wnid

_NAMED = 5  # classes that a message names
_ADVICE = "give the classes to sample"


def match_classes(
    labels: Iterable[int], label_names: Sequence[str] | None, class_names: Mapping[int, str] | None
) -> tuple[list[int], str]:
    """Find the sampler's classes that the images of a reference belong to.

    Labels without names are the sampler's indices only if its classes have no names either, or are ImageNet-1k's.

    Args:
        labels: Labels of the reference's images; those below 0 are ignored.
        label_names: Name or WordNet id of each label; None if the labels are bare numbers.
        class_names: Name or WordNet id of each class that the sampler knows, by index, empty for a class without a
            name; None if the sampler takes the reference's labels as they are.

    Returns:
        The class indices to sample, in rising order, and how they were found, for the report.

    Raises:
        CodaError: If no image has a label, or a class has no counterpart or several.
    """
    present = sorted({int(label) for label in labels if label >= 0})
    if not present:
        raise CodaError(f"the reference's images have no labels; {_ADVICE}")
    if class_names is None:
        return present, "the reference's labels are class indices"
    unknown: list[object]
    if label_names is None:
        if any(class_names.values()) and not _are_imagenet(class_names):
            raise CodaError(f"the reference's labels are numbers, but the model's classes have names; {_ADVICE}")
        unknown = [label for label in present if label not in class_names]
        indices, how = present, "by index: the reference's classes have no names"
    else:
        names = [label_names[label] if label < len(label_names) else str(label) for label in present]
        found = {name: find_class(name, class_names) for name in names}
        unknown = [name for name, index in found.items() if index is None]
        indices = sorted({index for index in found.values() if index is not None})
        how = "by name: " + _some([f"{name} is class {index}" for name, index in found.items()])
    if unknown:
        raise CodaError(f"the reference has classes that the model does not know: {_some(unknown)}; {_ADVICE}")
    return indices, how


def find_class(name: str, class_names: Mapping[int, str]) -> int | None:
    """The index of the class that is called `name`; None if there is none.

    Equal names and WordNet ids come first, then synonyms: "tabby" is "tabby, tabby cat" and "n02123045".

    Raises:
        CodaError: If several classes are called so.
    """
    matches = [index for index, other in class_names.items() if _plain(other) == _plain(name) != ""]
    if not matches:
        wanted = _synonyms(name)
        for index, other in class_names.items():
            offered = _synonyms(other)
            if wanted and offered and (wanted <= offered or offered <= wanted):
                matches.append(index)
    if len(matches) > 1:
        raise CodaError(f"the class {name!r} could be {_some([f'class {index}' for index in matches])}; {_ADVICE}")
    return matches[0] if matches else None


def class_warnings(sampled: Iterable[str], reference: Iterable[str]) -> list[str]:
    """Warnings about classes that only the samples or only the reference have; all names may be WordNet ids."""
    found = []
    sides = {"samples": dict(enumerate(sampled)), "reference": dict(enumerate(reference))}
    for one, other in (("samples", "reference"), ("reference", "samples")):
        if alone := [name for name in sides[one].values() if not _is_among(name, sides[other])]:
            found.append(f"Only the {one} {'have' if one == 'samples' else 'has'} images of {_some(alone)}.")
    return found


def _is_among(name: str, others: Mapping[int, str]) -> bool:
    try:
        return find_class(name, others) is not None
    except CodaError:
        return True


def _synonyms(name: str) -> set[str]:
    """The names that a class name stands for: those of a WordNet id, or those between its commas."""
    index = index_of_wnid(name.strip())
    names = name.split(",") if index is None else imagenet_classes()[index].names
    return {_plain(part) for part in names} - {""}


def _plain(name: str) -> str:
    """A spelling without case, underscores and repeated spaces."""
    return " ".join(name.replace("_", " ").lower().split())


def _are_imagenet(class_names: Mapping[int, str]) -> bool:
    return all(index_of_wnid(name) == index for index, name in class_names.items())


def _some(items: Sequence[object]) -> str:
    return ", ".join(map(str, items[:_NAMED])) + (f" and {len(items) - _NAMED} more" if len(items) > _NAMED else "")
