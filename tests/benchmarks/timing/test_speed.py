from __future__ import annotations

from pathlib import Path

import pytest
import torch

from coda.benchmarks.reports.report import Report
from coda.benchmarks.timing import quantizer as quantizing
from coda.benchmarks.timing.measure import measure
from coda.benchmarks.timing.quantizer import QuantizerShape
from coda.benchmarks.timing.speed import speed
from coda.tokenizer import CodaError

SMALL = QuantizerShape("tiny", latent_channels=4, codebook_size=32, sides=(1, 2, 4), attention_dim=8, batch_size=2)


def test_report_of_quantizer_tokenizer_and_sampler(tmp_path: Path) -> None:
    class Halves:
        size = (8, 8)

        def encode(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(1).flatten(1).gt(0).long()

        def decode(self, codes: torch.Tensor) -> torch.Tensor:
            return codes.float().mul(2).sub(1).view(-1, 1, 8, 8).expand(-1, 3, -1, -1)

    asked = []

    def sample(labels: list[int], seeds: list[int]) -> torch.Tensor:
        asked.append((list(labels), list(seeds)))
        return torch.zeros(len(labels), 3, 8, 8)

    report = speed(Halves(), sample, tmp_path / "speed", shapes=[SMALL], batch_size=3, repeats=2, device="cpu")
    for name in ("forward", "forward and backward", "encode"):
        ratio = report[f"tiny: quantizer {name}, times faster than dense"]
        assert ratio is not None and ratio > 0
    for name in ("encode rate", "decode rate", "sampling rate"):
        assert (report[name] or 0) > 0
    assert set(map(str, asked)) == {"([0, 0, 0], [0, 1, 2])"}
    assert report.provenance["hardware"]["device"] == "cpu"
    assert Report.load(tmp_path / "speed").to_json() == report.to_json()


def test_dense_is_left_out_where_it_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizing, "available_bytes", lambda device: 1000)
    report = speed(out=tmp_path / "speed", shapes=[SMALL], repeats=1, device="cpu")
    assert report["tiny: quantizer forward, times faster than dense"] is None
    assert "would not fit" in report.figures[0].note


def test_wrong_requests(tmp_path: Path) -> None:
    with pytest.raises(CodaError, match="repeats"):
        speed(out=tmp_path / "a", shapes=[], repeats=0)
    with pytest.raises(CodaError, match="device 'tpu'"):
        speed(out=tmp_path / "b", shapes=[], device="tpu")
    with pytest.raises(CodaError, match="give size"):
        speed(tokenizer=object(), out=tmp_path / "c", shapes=[])


def test_memory_of_a_known_allocation() -> None:
    found = measure(lambda: torch.ones(64 * 2**18), torch.device("cpu"), repeats=1)
    if found.peak_mib is None:
        pytest.skip("this system does not tell a process its peak of memory")
    assert 60 < found.peak_mib < 200
