from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageEnhance

from coda.benchmarks import Features, Report, judge_generator
from coda.benchmarks.features.distances import FeatureSet, nearest_neighbors
from coda.benchmarks.judge_generator import shuffle_codes
from coda.benchmarks.judge_report import Judged, right_classes
from coda.benchmarks.settings import JudgeSettings
from coda.tokenizer import CodaError, CodeLayout
from coda.tokenizer.images import image_batches, open_images, to_unit

pytest.importorskip("torch_fidelity")

WNIDS = {281: "n02123045", 967: "n07920052", 983: "n10565667"}


@pytest.fixture(scope="module")
def unseen(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `dataset`, darker."""
    folder = tmp_path_factory.mktemp("unseen")
    for path in dataset.glob("*/*.png"):
        (folder / path.parent.name).mkdir(exist_ok=True)
        ImageEnhance.Brightness(Image.open(path)).enhance(0.8).save(folder / path.parent.name / path.name)
    return folder


class Copying:
    """Gives training images back, in their order within each class."""

    def __init__(self, data: Path) -> None:
        (batch,) = image_batches(open_images(data), None, 99)
        self.images, self.labels = to_unit(batch.pixels), batch.labels

    def __call__(self, classes: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
        of_class = {label: self.images[self.labels == label] for label in classes}
        return torch.stack([of_class[c][seed % len(of_class[c])] for c, seed in zip(classes, seeds, strict=True)])


@pytest.fixture(scope="module")
def copies(dataset: Path, unseen: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    from .conftest import ColorExtractor, GrayTokenizer

    out = tmp_path_factory.mktemp("judged") / "out"
    settings = JudgeSettings(num_images=24, shown=6, extractor=ColorExtractor(), batch_size=16)
    words: dict[str, Any] = {"settings": settings, "class_names": WNIDS, "sampling": {"model": "copies"}}
    return judge_generator(Copying(dataset), GrayTokenizer(), dataset, unseen, out, **words), out


def test_copies_of_the_training_images_are_found(copies: tuple[Report, Path]) -> None:
    report, out = copies
    assert report["nearest_distance"] == pytest.approx(0, abs=1e-3)
    assert report["fd_color"] == pytest.approx(0, abs=1e-3) and report["precision_color"] == 1
    assert report["right_class"] is None, "the extractor is no classifier of ImageNet"
    assert Image.open(out / "nearest.png").width > 8 * 128
    assert not (out / "samples").exists()


def test_the_table_goes_from_floor_to_ceiling(copies: tuple[Report, Path]) -> None:
    (table,) = copies[0].tables
    assert [row[:2] for row in table.rows] == [
        ["samples", 24],
        ["validation images", 24],
        ["their reconstructions", 24],
        ["their codes, shuffled within class and level", 24],
        ["their mean colors", 24],
    ]
    distances = {str(row[0]): row[2] for row in table.rows}
    assert distances["validation images"] < distances["their reconstructions"] < distances["their mean colors"]


def test_a_finished_judgment_is_read_again_and_another_sampler_refused(
    copies: tuple[Report, Path], dataset: Path, unseen: Path, extractor: Any, tokenizer: Any
) -> None:
    settings = JudgeSettings(num_images=24, shown=6, extractor=extractor)

    def again(model: str) -> Report:
        given = {"class_names": WNIDS, "sampling": {"model": model}}
        return judge_generator(Copying(dataset), tokenizer, dataset, unseen, copies[1], settings, **given)

    assert [figure.value for figure in again("copies").figures] == [figure.value for figure in copies[0].figures]
    with pytest.raises(CodaError, match="other settings"):
        again("another")


def test_a_class_without_images_is_named(dataset: Path, tokenizer: Any, extractor: Any, tmp_path: Path) -> None:
    settings = JudgeSettings(extractor=extractor)
    with pytest.raises(CodaError, match="no image of class 207 golden retriever"):
        names = {281: "n02123045", 207: "n02099601"}
        judge_generator(Copying(dataset), tokenizer, dataset, dataset, tmp_path / "o", settings, class_names=names)
    assert not (tmp_path / "o").exists()


def test_the_classifier_may_choose_among_the_classes_only() -> None:
    logits = torch.zeros(3, 1000)
    logits[:, 0] = 9  # the tench, which is none of them
    logits[0, 967] = logits[1, 281] = logits[2, 281] = 1
    features = FeatureSet(with_logits=True)
    features.append(Features(torch.zeros(3, 2), logits))
    assert right_classes(Judged("samples", features, [967, 281, 967]), WNIDS).tolist() == [True, True, False]
    renumbered = {0: WNIDS[281], 1: WNIDS[967]}
    assert right_classes(Judged("samples", features, [1, 0, 1]), renumbered).tolist() == [True, True, False]
    assert right_classes(Judged("samples", features, [1, 0, 1]), {0: "cats", 1: "dogs"}) is None


def test_codes_are_shuffled_within_class_and_level() -> None:
    layout = CodeLayout([1, 2], 100)
    codes, labels = torch.arange(60).view(12, 5), torch.tensor([0, 1, 2] * 4)
    mixed = shuffle_codes(codes, labels, layout, seed=0)
    assert not torch.equal(mixed, codes) and torch.equal(mixed, shuffle_codes(codes, labels, layout, seed=0))
    for level, shuffled in zip(layout.split(codes), layout.split(mixed), strict=True):
        for label in range(3):
            before, after = (part[labels == label].flatten().sort().values for part in (level, shuffled))
            assert torch.equal(before, after)


def test_nearest_neighbors() -> None:
    distances, places = nearest_neighbors(
        torch.tensor([[0.0, 1.0], [5.0, 5.0]]), torch.tensor([[5.0, 2.0], [0.0, 0.0]])
    )
    assert distances.tolist() == [1, 3] and places.tolist() == [1, 0]
