from __future__ import annotations

from pathlib import Path

import pytest
from diffusers import AutoencoderKL

from coda.benchmarks import Report, tokenizing_speed
from coda.benchmarks.settings import TokenizingSpeedSettings
from coda.benchmarks.timing.tokenizing import allowed_rate
from coda.tokenizer import CodaError, CodaTokenizer, ContinuousVAE, ResidualQuantizer
from coda.tokenizer.settings import RunOptions


@pytest.fixture
def small_tokenizer() -> CodaTokenizer:
    """16 × 16 pixels."""
    autoencoder = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=4)
    return CodaTokenizer(ContinuousVAE(autoencoder, [0.0], [1.0]).eval(), ResidualQuantizer(4, 32, [1, 4, 16])).eval()


@pytest.mark.parametrize("workers", [0, 1])
def test_report_of_tokenizing(small_tokenizer: CodaTokenizer, dataset: Path, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "speed"
    settings, run = (
        TokenizingSpeedSettings(limit=20, batch_size=4, repeats=1),
        RunOptions(workers=workers, device="cpu"),
    )
    report = tokenizing_speed(small_tokenizer, dataset, out, settings, run)
    names = ("decode", "encode", "tokenize-dataset", "plain loop", "read")
    rates = {name: report[f"{name} rate"] or 0 for name in names}
    assert all(rate > 0 for rate in rates.values())
    bound = report["rate that the machine would allow"] or 0
    assert 0 < bound < min(rates["decode"], rates["encode"]) * 1.001
    assert report["share of what the machine would allow"] == pytest.approx(100 * rates["tokenize-dataset"] / bound)
    faster = report["times faster than the plain loop"]
    assert faster == pytest.approx(rates["tokenize-dataset"] / rates["plain loop"])
    assert [row[1] for row in report.tables[0].rows] == [20, 20, 20, 5, 20, 20]
    assert Report.load(out).to_json() == report.to_json()
    assert not [path for path in out.rglob("*") if path.suffix in (".npy", ".safetensors")]  # the caches are removed


def test_upper_bound_of_the_rate() -> None:
    assert allowed_rate(300, 100, workers=0, threads=1, cores=2) == pytest.approx(75)
    assert allowed_rate(300, 100, workers=1, threads=1, cores=2) == pytest.approx(100)  # the slower one decides
    assert allowed_rate(80, 100, workers=1, threads=1, cores=2) == pytest.approx(80)
    assert allowed_rate(100, 100, workers=2, threads=2, cores=2) == pytest.approx(50)  # both need both cores
    assert allowed_rate(100, 100, workers=2, threads=0, cores=2) == pytest.approx(100)  # an accelerator encodes


def test_wrong_requests(small_tokenizer: CodaTokenizer, dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(CodaError, match="at least four"):
        tokenizing_speed(small_tokenizer, dataset, tmp_path / "a", TokenizingSpeedSettings(limit=3))
    assert not list(tmp_path.iterdir())
