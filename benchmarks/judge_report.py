"""The figures and tables of `judge_generator`: distances, right classes, and how near the training images are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from coda.tokenizer.images.imagenet import imagenet_classes, index_of_wnid

from .comparison import sample_size_warnings
from .features.distances import (
    FeatureSet,
    Statistics,
    frechet_distance,
    kernel_distance,
    nearest_neighbors,
    precision_recall,
)
from .features.extractors import FeatureExtractor
from .reports.report import Cell, Figure, Report, Table


@dataclass(frozen=True)
class Judged:
    """One kind of images.

    Attributes:
        name: What they are.
        features: Features, with logits, of N images.
        labels: The class index of each.
    """

    name: str
    features: FeatureSet
    labels: Sequence[int]


def judgment_report(
    kinds: Sequence[Judged],
    real: torch.Tensor,
    network: FeatureExtractor,
    seed: int,
    class_names: Mapping[int, str] | None,
) -> Report:
    """The report without its provenance.

    Args:
        kinds: The samples first, then validation images, their reconstructions, and whatever else.
        real: (N, D) features of the training images.
        network: Extractor of all features.
        seed: Seed for KID's subsets.
        class_names: Names or WordNet ids by class index.
    """
    names, reference = network.figure_names, Statistics.of(real)
    smallest = min(len(kind.features) for kind in kinds)
    columns = (
        "images", "N", names.distance, f"{names.distance}, first {smallest}", names.kid, names.precision, names.recall,
        "right class, %", "distance to the nearest training image",
    )  # fmt: skip
    rows: list[list[Cell]] = []
    hits: dict[str, Any] = {kind.name: right_classes(kind, class_names) for kind in kinds}
    for kind in kinds:
        pooled, hit = kind.features.pooled, hits[kind.name]
        distances = (frechet_distance(Statistics.of(some), reference) for some in (pooled, pooled[:smallest]))
        shares = precision_recall(pooled, real, seed)
        rows.append([
            kind.name, len(pooled), *distances, kernel_distance(pooled, real, seed).mean,
            shares.precision if shares else None, shares.recall if shares else None,
            None if hit is None else 100 * float(hit.float().mean()), float(nearest_neighbors(pooled, real)[0].mean()),
        ])  # fmt: skip
    samples, unseen, reconstructions = (dict[str, Any](zip(columns, row, strict=True)) for row in rows[:3])
    right, near = columns[-2:]
    figures = [
        Figure(names.distance, samples[names.distance], note=f"{samples['N']} samples against {len(real)} images"),
        *(Figure(name, samples[name]) for name in (names.kid, names.precision, names.recall)),
        Figure("right_class", samples[right], "%", note=f"{network.name}, which may choose among these classes only"),
        _ratio("right_class_of_reconstructions", samples[right], reconstructions[right], "samples / reconstructions"),
        _ratio("right_class_of_images", samples[right], unseen[right], "samples / validation images"),
        _ratio("nearest_distance", samples[near], unseen[near], "samples / validation images; copies would be near 0"),
    ]
    tables = [Table("Between floor and ceiling", columns, rows)]
    if None not in hits.values():
        tables.append(_per_class(kinds[:3], hits, class_names))
    return Report("Generator", figures, {}, tables, sample_size_warnings(smallest, real.shape[1], names.distance))


def right_classes(kind: Judged, class_names: Mapping[int, str] | None) -> torch.Tensor | None:
    """Which of N images ImageNet's classifier takes for their own class, if it may choose among `class_names` only.

    None if the logits or the classes are not those of ImageNet-1k.
    """
    logits, indices = kind.features.logits, {i: index_of_wnid(name) for i, name in (class_names or {}).items()}
    if logits is None or logits.shape[1] != len(imagenet_classes()) or not indices or None in indices.values():
        return None
    places = torch.tensor([indices[i] for i in indices])
    found = torch.tensor(list(indices))[logits[:, places].argmax(dim=1)]
    return found == torch.tensor(kind.labels)


def shown_class(index: int, class_names: Mapping[int, str] | None) -> str:
    """A class in words: "207 golden retriever"."""
    name = (class_names or {}).get(index, "")
    known = index_of_wnid(name)
    return f"{index} {name if known is None else imagenet_classes()[known].names[0]}".strip()


def _ratio(name: str, value: float | None, of: float | None, note: str) -> Figure:
    return Figure(name, None if value is None or not of else value / of, note=note)


def _per_class(
    kinds: Sequence[Judged], hits: Mapping[str, torch.Tensor], class_names: Mapping[int, str] | None
) -> Table:
    rows: list[list[Cell]] = []
    for index in sorted(set(kinds[0].labels)):
        shares = (hits[kind.name][torch.tensor(kind.labels) == index] for kind in kinds)
        rows.append([shown_class(index, class_names), *(100 * float(share.float().mean()) for share in shares)])
    return Table("Right class, %", ("class", *(kind.name for kind in kinds)), rows)
