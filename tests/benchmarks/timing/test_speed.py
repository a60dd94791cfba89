from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from coda.benchmarks import Report, speed
from coda.benchmarks.settings import SpeedSettings
from coda.benchmarks.timing import quantizer
from coda.benchmarks.timing.measure import measure
from coda.benchmarks.timing.quantizer import QuantizerShape
from coda.tokenizer import CodaError
from coda.tokenizer.settings import RunOptions

CPU = RunOptions(device="cpu")
TINY = QuantizerShape("tiny", latent_channels=4, codebook_size=64, sides=(1, 2, 4), attention_dim=8)


def test_quantizer_over_codebook_sizes(tmp_path: Path) -> None:
    report = speed(None, None, tmp_path / "speed", [TINY], SpeedSettings(codebook_sizes=(32, 128), repeats=1), CPU)
    (table,) = report.tables
    assert sorted({row[0] for row in table.rows}) == [32, 64, 128]  # its own is always timed
    works = {"tiled step", "tiled encode", "tiled step, 4 × the batch", "dense step", "dense forward"}
    if find_spec("vector_quantize_pytorch"):
        works |= {"ResidualVQ step", "ResidualVQ encode"}
        assert (report["tiny: tiled step, times faster than ResidualVQ"] or 0) > 0
    assert {row[1] for row in table.rows} == works
    for name in ("step, times faster than dense", "encode, times faster than dense forward"):
        assert (report[f"tiny: tiled {name}"] or 0) > 0
    assert 0 < (report["tiny: tiled step, share of the matrix product's rate"] or 0) < 100
    assert {plot.name for plot in report.plots} == {"tiny-seconds", "tiny-peak"}
    saved = {path.name for path in (tmp_path / "speed").iterdir()}
    assert {"report.json", "report.md", "tiny-seconds.png", "tiny-peak.png"} <= saved
    assert report.provenance["codebook_sizes"] == [32, 128]
    assert report.provenance["hardware"]["device"] == "cpu"
    assert Report.load(tmp_path / "speed").to_json() == report.to_json()


def test_generators_on_a_quantizers_codes(tmp_path: Path) -> None:
    settings = SpeedSettings(generators=("pocket",), batch_size=2, repeats=1)
    report = speed(None, None, tmp_path / "speed", [TINY], settings, CPU)
    assert 0 < (report["pocket: training, share of the matrix product's rate"] or 0) < 100
    _, training, sampling = report.tables
    assert [row[:2] for row in training.rows] == [["pocket", 2]]
    assert [row[:4] for row in sampling.rows] == [
        ["pocket", images, steps, guidance] for images in (1, 2) for steps in (3, 12) for guidance in (1.0, 3.0)
    ]


def test_peers_of_the_size_of_a_generator(tmp_path: Path) -> None:
    settings = SpeedSettings(generators=("pocket",), peers=("ours", "flattened", "amused"), batch_size=2, repeats=1)
    report = speed(None, None, tmp_path / "speed", [TINY], settings, CPU)
    table = report.tables[-1]
    assert table.title == "Peers of the size of pocket, tiny, 2 images"
    ours, flattened, amused = table.rows
    assert [ours[0], flattened[0], amused[0]] == [
        "ours, level by level", "ours, flattened", "UVit2DModel, AmusedScheduler",
    ]  # fmt: skip
    assert ours[1] == flattened[1]  # parameters
    for row in table.rows:
        _, _, training, trained, _, steps, sampling, samples = row
        assert steps == 12 and trained == pytest.approx(2 / training) and samples == pytest.approx(2 / sampling)


def test_peers_need_a_generator() -> None:
    with pytest.raises(CodaError, match="generators"):
        SpeedSettings(peers=("ours",))


def test_tokenizer_and_sampler(tokenizer: Any, tmp_path: Path) -> None:
    asked = []

    def sample(labels: list[int], seeds: list[int]) -> torch.Tensor:
        asked.append((list(labels), list(seeds)))
        return torch.zeros(len(labels), 3, 8, 8)

    report = speed(tokenizer, sample, tmp_path / "speed", (), SpeedSettings(batch_size=3, repeats=2), CPU)
    assert [figure.name for figure in report.figures] == ["encode rate", "decode rate", "sampling rate"]
    assert all((figure.value or 0) > 0 for figure in report.figures)
    assert set(map(str, asked)) == {"([0, 0, 0], [0, 1, 2])"}


def test_dense_is_left_out_where_it_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer, "available_bytes", lambda device: 1000)
    report = speed(None, None, tmp_path / "speed", [TINY], SpeedSettings(repeats=1), CPU)
    assert report["tiny: tiled step, times faster than dense"] is None
    assert any("would not fit" in figure.note for figure in report.figures)
    assert not [row for row in report.tables[0].rows if "dense" in str(row[1])]


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"shapes": []}, "nothing to time"),
        ({"shapes": [TINY], "run": RunOptions(device="cuda:77")}, "cuda:77"),
        ({"tokenizer": object(), "shapes": []}, "give size"),
    ],
)
def test_wrong_requests(request_: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CodaError, match=message):
        speed(out=tmp_path / "speed", **request_)
    assert not list(tmp_path.iterdir())


def test_memory_of_a_known_allocation() -> None:
    found = measure(lambda: torch.ones(64 * 2**18), torch.device("cpu"), repeats=1)
    if found.peak_mib is None:
        pytest.skip("this system does not tell a process its peak of memory")
    assert 60 < found.peak_mib < 200
