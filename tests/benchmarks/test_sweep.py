"""The search for sampling settings, on samplers whose best settings are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from coda.benchmarks import Report, sweep
from coda.benchmarks.image_sets.image_set import open_image_set
from coda.benchmarks.settings import SweepSettings
from coda.benchmarks.sweep import GRID

pytest.importorskip("torch_fidelity")

START = {"guidance_scale": 2.0, "confidence_noise": 4.5, "temperature": 1.0, "num_inference_steps": 12}
BEST = {"guidance_scale": 4.0, "confidence_noise": 4.5, "temperature": 0.9, "num_inference_steps": 12}


class Samplers:
    """Gray images that are the brighter the further the settings are from `BEST`; can be interrupted."""

    def __init__(self, stop_after: int = 1_000, best: dict[str, Any] = BEST) -> None:
        self.choices: list[dict[str, Any]] = []
        self.stop_after, self.best = stop_after, best

    def __call__(self, choice: dict[str, Any]) -> Any:
        if len(self.choices) == self.stop_after:
            raise KeyboardInterrupt
        self.choices.append(choice)
        places = [[GRID[name].index(found[name]) for name in START] for found in (choice, self.best)]
        distance = sum(abs(a - b) for a, b in zip(*places, strict=True))

        def sample(labels: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
            noise = [torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            return (torch.stack(noise) / 3 + 0.1 * distance).clamp(-1, 1)

        return sample


def run(samplers: Samplers, dataset: Path, extractor: Any, out: Path, **given: Any) -> Report:
    settings = SweepSettings(num_images=16, extractor=extractor, **given)
    return sweep(samplers, open_image_set(dataset), [3, 5], START, out, settings, least_steps=8)


@pytest.fixture(scope="module")
def swept(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Samplers]:
    from .conftest import ColorExtractor

    samplers = Samplers()
    return run(samplers, dataset, ColorExtractor(), tmp_path_factory.mktemp("sweep") / "out"), samplers


def test_it_climbs_to_the_best_settings(swept: tuple[Report, Samplers]) -> None:
    report, samplers = swept
    assert report.provenance["winner"] == BEST and report.provenance["start"] == START
    before, after = report["fd_color before"], report["fd_color after"]
    assert before is not None and after is not None and after < before
    table = report.tables[0]
    assert len(table.rows) == len(samplers.choices) and len(samplers.choices) < 20
    assert list(table.rows[0][:4]) == list(BEST.values()) and [row[5] for row in table.rows[-2:]] == ["other"] * 2


def test_an_interrupted_search_goes_on(
    swept: tuple[Report, Samplers], dataset: Path, extractor: Any, tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(Samplers(stop_after=5), dataset, extractor, tmp_path / "out")
    assert len(json.loads((tmp_path / "out" / "tried.json").read_text())["tried"]) == 5
    rest = Samplers()
    report = run(rest, dataset, extractor, tmp_path / "out")
    assert rest.choices == swept[1].choices[5:]
    assert report.provenance["winner"] == BEST
    assert (
        run(Samplers(stop_after=0), dataset, extractor, tmp_path / "out")["fd_color after"] == report["fd_color after"]
    )


def test_the_time_limit_ends_the_search(dataset: Path, extractor: Any, tmp_path: Path) -> None:
    samplers = Samplers()
    report = run(samplers, dataset, extractor, tmp_path / "out", minutes=1e-9)
    assert samplers.choices == [START] * 2 and report.provenance["winner"] == START
