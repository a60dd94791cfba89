from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from coda.benchmarks import Report
from coda.benchmarks import generation_metrics as measure
from coda.benchmarks.features.distances import Statistics
from coda.benchmarks.generation import choose_classes
from coda.benchmarks.image_sets.sample_store import SampleStore
from coda.benchmarks.settings import GenerationSettings
from coda.tokenizer import CodaError
from coda.tokenizer.images import to_uint8

pytest.importorskip("torch_fidelity")


def generation_metrics(samples: Any, reference: Path, out: Path, **given: Any) -> Report:
    """The function, with the fields of its settings as keywords."""
    others = {name: given.pop(name) for name in ("classes", "class_names", "sampling") if name in given}
    return measure(samples, reference, out, GenerationSettings(**given), **others)


class Sampler:
    """Noise around a color per class; records what it was asked for, and can be interrupted."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.asked: list[tuple[int, int]] = []
        self.stop_after = stop_after

    def __call__(self, classes: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += zip(classes, seeds, strict=True)
        images = []
        for label, seed in zip(classes, seeds, strict=True):
            noise = torch.randn(3, 32, 32, generator=torch.Generator().manual_seed(seed))
            images.append((noise / 3 + (label % 7) / 7 - 0.5).clamp(-1, 1))
        return torch.stack(images)


def test_report_of_a_sampler(dataset: Path, extractor: Any, tmp_path: Path) -> None:
    sampler = Sampler()
    settings = {"guidance": 3.0, "steps": [1, 2, 4]}
    report = generation_metrics(
        sampler, dataset, tmp_path / "out", num_images=20, extractor=extractor, sampling=settings, seed=100
    )
    for name in ("fd_color", "kid_color", "precision_color", "recall_color", "score_color", "sfd_color"):
        assert report[name] is not None, name
    assert [seed for _, seed in sampler.asked] == list(range(100, 120))
    assert {label for label, _ in sampler.asked} == {281, 967, 983}
    assert report.provenance["sampling"] == settings
    assert report.provenance["samples"]["n"] == 20
    assert report.provenance["samples"]["class_balance"] == "uneven: 6 to 7 each of 3 classes"
    assert report.provenance["reference"]["n"] == 24
    assert not (tmp_path / "out" / "samples").exists()


def test_the_reference_against_itself(dataset: Path, extractor: Any, tmp_path: Path) -> None:
    report = generation_metrics(dataset, dataset, tmp_path / "out", extractor=extractor)
    assert report["fd_color"] == pytest.approx(0, abs=1e-6)
    assert report["precision_color"] == report["recall_color"] == 1
    assert abs(float(report.provenance["self_check"].split()[0])) < 1e-6


def test_an_interrupted_run_is_resumed(dataset: Path, extractor: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_images": 10, "extractor": extractor, "sampling": {"model": "m"}, "batch_size": 3}
    whole = generation_metrics(Sampler(), dataset, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        generation_metrics(Sampler(stop_after=6), dataset, tmp_path / "out", **options)
    with pytest.raises(CodaError, match="other settings"):
        generation_metrics(Sampler(), dataset, tmp_path / "out", **options | {"sampling": {"model": "n"}})
    # A killed run may leave a part of an image behind.
    with open(tmp_path / "out" / "samples" / "images.u8", "ab") as file:
        file.write(b"\x00" * 100)
    rest = Sampler()
    resumed = generation_metrics(rest, dataset, tmp_path / "out", **options)
    assert [seed for _, seed in rest.asked] == [6, 7, 8, 9]
    assert [f.value for f in resumed.figures] == [f.value for f in whole.figures]


@pytest.mark.parametrize("damaged", ["", "[8", "[0, 0]", "{}", '"a"', "[8, 8, 8]"])
def test_a_store_with_a_damaged_size_starts_over(damaged: str, tmp_path: Path) -> None:
    (tmp_path / "size.json").write_text(damaged)
    (tmp_path / "images.u8").write_bytes(b"?" * 9999)
    store = SampleStore(tmp_path, [0, 1], [0, 1], "uniform")
    assert store.done == 0
    store.fill(Sampler(), batch_size=2)
    ((pixels, _),) = store.batches(2)
    assert torch.equal(pixels, to_uint8(Sampler()([0, 1], [0, 1])))


def test_exported_samples_measure_the_same(dataset: Path, extractor: Any, tmp_path: Path) -> None:
    first = generation_metrics(
        Sampler(), dataset, tmp_path / "a", num_images=9, extractor=extractor, export_npz=True, batch_size=4
    )
    with np.load(tmp_path / "a" / "samples.npz") as found:
        images, labels = found["arr_0"], found["arr_1"]
    sampler = Sampler()
    expected = to_uint8(sampler(labels.tolist(), range(9))).permute(0, 2, 3, 1)
    assert np.array_equal(images, expected.numpy())
    second = generation_metrics(tmp_path / "a" / "samples.npz", dataset, tmp_path / "b", extractor=extractor)
    assert [f.value for f in second.figures] == [f.value for f in first.figures]


def test_statistics_of_a_file_are_inceptions(dataset: Path, extractor: Any, tmp_path: Path) -> None:
    """Other extractors use the file's images instead."""
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    np.savez(
        tmp_path / "reference.npz", arr_0=images, mu=np.zeros(6), sigma=np.eye(6), mu_s=np.zeros(4), sigma_s=np.eye(4)
    )
    other = generation_metrics(dataset, tmp_path / "reference.npz", tmp_path / "other", extractor=extractor)
    extractor.name = "inception"
    inception = generation_metrics(dataset, tmp_path / "reference.npz", tmp_path / "inception", extractor=extractor)
    assert other["fd_color"] != inception["fd_color"]
    assert other["sfd_color"] != inception["sfd_color"]
    assert other["precision_color"] == inception["precision_color"]
    assert "statistics" in inception.provenance["reference"]


def test_a_reference_of_statistics_alone(dataset: Path, extractor: Any, tmp_path: Path) -> None:
    stats = Statistics.of(torch.randn(50, 6))
    np.savez(tmp_path / "stats.npz", mu=stats.mu, sigma=stats.sigma)
    with pytest.raises(CodaError, match="use the extractor inception"):
        generation_metrics(dataset, tmp_path / "stats.npz", tmp_path / "a", extractor=extractor)
    extractor.name = "inception"
    report = generation_metrics(dataset, tmp_path / "stats.npz", tmp_path / "b", extractor=extractor)
    assert report["fd_color"] is not None
    assert report["kid_color"] is None and report["precision_color"] is None


def test_the_reference_is_cropped_to_the_samples(dataset: Path, extractor: Any, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=samples)
    report = generation_metrics(tmp_path / "samples.npz", dataset, tmp_path / "out", extractor=extractor)
    assert report.provenance["reference"]["pixels"] == "16x16"
    assert report.provenance["reference"]["crop"].startswith("center, 16x16")


@pytest.mark.parametrize("balance", ["uniform", "drawn"])
def test_classes(balance: str) -> None:
    found = choose_classes([3, 5, 9], 3000, balance, seed=0)
    assert found == choose_classes([3, 5, 9], 3000, balance, seed=0)
    counts = [found.count(label) for label in (3, 5, 9)]
    assert sum(counts) == 3000
    assert (counts == [1000] * 3) == (balance == "uniform")
    assert min(counts) > 850


def folders(root: Path, *names: str) -> Path:
    """Two images per class folder; of different colors, so that there is something to compare."""
    for i, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for j in range(2):
            Image.new("RGB", (32, 32), (40 * i, 30 * j, 99)).save(root / name / f"{j}.png")
    return root


def test_classes_are_those_of_the_reference_by_name(extractor: Any, tmp_path: Path) -> None:
    sampler, names = Sampler(), ["ant", "bee", "cat"]
    options: dict[str, Any] = {"num_images": 4, "class_names": names, "extractor": extractor}
    reference = folders(tmp_path / "reference", "bee", "cat")
    report = generation_metrics(sampler, reference, tmp_path / "out", **options)
    assert {label for label, _ in sampler.asked} == {1, 2}
    assert "bee is class 1" in report.provenance["samples"]["balance"]
    with pytest.raises(CodaError, match="does not know: dog"):
        generation_metrics(sampler, folders(tmp_path / "other", "bee", "dog"), tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()


def test_classes_that_only_one_side_has_are_reported(extractor: Any, tmp_path: Path) -> None:
    reference, samples = folders(tmp_path / "reference", "bee", "cat"), folders(tmp_path / "samples", "ant", "bee")
    names = {0: "ant", 1: "bee", 2: "cat"}
    existing = generation_metrics(samples, reference, tmp_path / "a", extractor=extractor)
    chosen = generation_metrics(
        Sampler(), reference, tmp_path / "b", classes=[0, 1], class_names=names, num_images=4, extractor=extractor
    )
    for report in (existing, chosen):
        assert "ant" in report.warnings[0] and "cat" in report.warnings[1]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"balance": "even"}, "uniform, drawn"),
        ({"num_images": 1}, "two samples"),
        ({"samples": "dataset", "num_images": 1}, "at least two"),
        ({"reference": "dataset/n02123045", "num_images": 4}, "no labels"),
        ({"samples": lambda classes, seeds: torch.zeros(1, 3, 8, 8), "num_images": 4}, "expected"),
    ],
)
def test_wrong_requests_are_one_line(
    wrong: dict[str, Any], message: str, dataset: Path, extractor: Any, tmp_path: Path
) -> None:
    options = {"samples": Sampler(), "reference": "dataset", "extractor": extractor} | wrong
    for side in ("samples", "reference"):
        if isinstance(options[side], str):
            options[side] = dataset.parent / options[side].replace("dataset", dataset.name)
    with pytest.raises(CodaError, match=message) as raised:
        generation_metrics(out=tmp_path / "out", **options)
    assert "\n" not in str(raised.value)
