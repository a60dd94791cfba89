from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from coda.benchmarks import Report, compare_peers
from coda.benchmarks.peers import muse, training
from coda.benchmarks.settings import PEERS, PeersSettings
from coda.tokenizer import CodaError
from coda.tokenizer.settings import RunOptions

from .conftest import ColorExtractor, LevelTokenizer

pytest.importorskip("torch_fidelity")
MODULE = import_module("coda.benchmarks.compare_peers")  # the name of the package is its function


def small(**more: Any) -> PeersSettings:
    settings: dict[str, Any] = {"width": 32, "depth": 2, "heads": 2, "batch_size": 16, "steps": 4, "num_images": 18}
    settings |= {"sampling_steps": 4, "flow_steps": 2, "validation_share": 0.1, "extractor": ColorExtractor()}
    return PeersSettings(**settings | more)


def compare(cache: Path, dataset: Path, out: Path, **more: Any) -> Report:
    return compare_peers(cache, LevelTokenizer(), dataset, None, out, small(**more), RunOptions(device="cpu"))


@pytest.fixture
def without_muse(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the extra were not installed, whether it is or not."""
    monkeypatch.setitem(sys.modules, "muse_maskgit_pytorch", None)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the peers that are made, as long as the test runs."""
    names: list[str] = []
    make = training.make_peer

    def remember(name: str, setup: Any) -> Any:
        names.append(name)
        return make(name, setup)

    monkeypatch.setattr(MODULE, "make_peer", remember)
    return names


@pytest.mark.usefixtures("without_muse")
def test_one_row_per_peer_and_a_missing_extra_is_said(
    level_cache: Path, dataset: Path, tmp_path: Path, made: list[str]
) -> None:
    report = compare(level_cache, dataset, tmp_path)
    names = [name for name in PEERS if name != "muse"]
    assert made == names
    table = report.tables[0]
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [row["model"] for row in rows] == [
        "ours, level by level",
        "ours, flattened",
        "UVit2DModel, AmusedScheduler",
        "UNet2DModel, flow matching on pixels",
    ]
    assert all(row["steps"] == 4 and row["images seen"] == 64 for row in rows)
    assert all(row["seconds per step"] > 0 and row["seconds per image"] > 0 for row in rows)
    assert rows[0]["parameters"] == rows[1]["parameters"] and rows[3]["parameters"] > 0
    assert [row["fd_color"] for row in rows] == [report[name] for name in names]
    bounds = [row["held-out codes, nats per code (upper bound)"] for row in rows]
    assert bounds[3] is None and all(0 < bound < 5 for bound in bounds[:3])
    assert any("pip install 'coda[peers]'" in warning for warning in report.warnings)
    assert any("images of the reference" in warning for warning in report.warnings)
    assert {"versions", "hardware", "date", "command", "tokenizer", "reference", "seed"} <= report.provenance.keys()
    for name in names:
        Image.open(tmp_path / f"samples-{name}.png").verify()
    assert compare(level_cache, dataset, tmp_path).to_json() == report.to_json()
    assert made == names  # a complete one is only read


@pytest.mark.usefixtures("without_muse")
def test_an_interrupted_run_keeps_what_is_done(
    level_cache: Path, dataset: Path, tmp_path: Path, made: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    peers, (whole, killed) = ("ours", "flattened"), (tmp_path / "whole", tmp_path / "killed")
    report = compare(level_cache, dataset, whole, peers=peers)
    made.clear()
    step, sample = training.OptimizerWithEMA.step, training._sample
    calls = {"sample": 0, "step": 0}

    def dies_in_the_second(*given: Any) -> Any:
        calls["sample"] += 1
        if calls["sample"] == 2:
            raise KeyboardInterrupt
        return sample(*given)

    def counted(*given: Any) -> Any:
        calls["step"] += 1
        return step(*given)

    monkeypatch.setattr(training, "_sample", dies_in_the_second)
    monkeypatch.setattr(training.OptimizerWithEMA, "step", counted)
    with pytest.raises(KeyboardInterrupt):
        compare(level_cache, dataset, killed, peers=peers)
    assert calls["step"] == 8 and made == ["ours", "flattened"]
    resumed = compare(level_cache, dataset, killed, peers=peers)
    assert calls["step"] == 8 and made == ["ours", "flattened", "flattened"]  # sampled again, not trained again
    for name in peers:
        assert resumed[name] == report[name]


def test_a_training_goes_on_at_its_checkpoint(
    level_cache: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = compare(level_cache, dataset, tmp_path / "whole", peers=("unet",))
    monkeypatch.setattr(training, "_CHECKPOINT_SECONDS", 0.0)
    loss, steps = training.FlowUNetPeer.loss, []

    def dies_once(peer: Any, batch: Any, labels: Any, step: int) -> Any:
        steps.append(step)
        if steps == [0, 1, 2]:
            raise KeyboardInterrupt
        return loss(peer, batch, labels, step)

    monkeypatch.setattr(training.FlowUNetPeer, "loss", dies_once)
    with pytest.raises(KeyboardInterrupt):
        compare(level_cache, dataset, tmp_path / "killed", peers=("unet",))
    resumed = compare(level_cache, dataset, tmp_path / "killed", peers=("unet",))
    assert steps == [0, 1, 2, 2, 3]
    assert resumed["unet"] == whole["unet"]


def test_time_ends_the_training(level_cache: Path, dataset: Path, tmp_path: Path) -> None:
    compare(level_cache, dataset, tmp_path, peers=("ours",), steps=None, minutes=0.01)
    figures = json.loads((tmp_path / "models" / "ours" / "figures.json").read_text())
    assert figures["steps"] > 1 and 0.6 <= figures["training_seconds"] < 6


def test_muse_has_a_row_where_it_is_installed(level_cache: Path, dataset: Path, tmp_path: Path) -> None:
    if (problem := muse.muse_problem()) is not None:
        pytest.skip(problem)
    report = compare(level_cache, dataset, tmp_path, peers=("muse",))
    assert report.tables[0].rows[0][0] == "muse-maskgit-pytorch"


def test_what_does_not_fit_is_refused(
    level_cache: Path, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "muse_maskgit_pytorch", None)
        with pytest.raises(CodaError, match=r"pip install 'coda\[peers\]'"):
            compare(level_cache, dataset, tmp_path, peers=("muse",))
    with monkeypatch.context() as patch:
        patch.setattr(LevelTokenizer, "fingerprint", "2" * 64)
        with pytest.raises(CodaError, match="holds codes of the tokenizer 1111"):
            compare(level_cache, dataset, tmp_path)
    few = tmp_path / "few"
    few.mkdir()
    (few / "n02123045").symlink_to(dataset / "n02123045")
    with pytest.raises(CodaError, match="few has no image of class 1 espresso"):
        compare(level_cache, few, tmp_path / "out", peers=("ours",))
    assert not (tmp_path / "out").exists()
