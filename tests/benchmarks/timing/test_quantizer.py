from __future__ import annotations

import json
from pathlib import Path

import pytest

from coda.benchmarks.timing import quantizer as quantizing
from coda.benchmarks.timing.quantizer import QuantizerShape, quantizer_speed
from coda.tokenizer import CodaError

TINY = QuantizerShape("tiny", latent_channels=4, codebook_size=64, sides=(1, 2, 4), attention_dim=8)


def test_report_over_codebook_sizes(tmp_path: Path) -> None:
    report = quantizer_speed(tmp_path / "speed", [TINY], codebook_sizes=(32, 128), repeats=1, device="cpu")
    table = report.tables[0]
    assert sorted({row[0] for row in table.rows}) == [32, 64, 128]  # its own besides
    assert {row[1] for row in table.rows} == {
        "tiled step", "tiled encode", "tiled step, 4 × the batch", "dense step", "dense forward",
    }  # fmt: skip
    for name in ("step, times faster than dense", "encode, times faster than dense forward"):
        assert (report[f"tiny: tiled {name}"] or 0) > 0
    assert 0 < (report["tiny: tiled step, share of the matrix product's rate"] or 0) < 100
    assert {plot.name for plot in report.plots} == {"tiny-seconds", "tiny-peak"}
    saved = {path.name for path in (tmp_path / "speed").iterdir()}
    assert {"report.json", "report.md", "tiny-seconds.png", "tiny-peak.png"} <= saved
    assert json.loads((tmp_path / "speed" / "report.json").read_text())["provenance"]["codebook_sizes"] == [32, 128]


def test_dense_is_left_out_where_it_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "available_bytes", lambda device: 1000)
    report = quantizer_speed(tmp_path / "speed", [TINY], codebook_sizes=(64,), repeats=1, device="cpu")
    assert report["tiny: tiled step, times faster than dense"] is None
    assert not [row for row in report.tables[0].rows if "dense" in str(row[1])]


def test_nothing_to_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CodaError, match="at least one of each"):
        quantizer_speed(tmp_path / "speed", [], device="cpu")
