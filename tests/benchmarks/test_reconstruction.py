from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from coda.benchmarks import Report, reconstruction_metrics
from coda.benchmarks.settings import ReconstructionSettings
from coda.tokenizer import CodaError
from coda.tokenizer.settings import RunOptions

pytest.importorskip("torch_fidelity")


def test_report_of_a_tokenizer(tokenizer: Any, dataset: Path, extractor: Any, tmp_path: Path) -> None:
    report = reconstruction_metrics(
        tokenizer, dataset, tmp_path / "out", ReconstructionSettings(extractor=extractor, batch_size=10)
    )
    assert 8 < (report["psnr"] or 0) < 40
    assert 0 < (report["ssim"] or 0) < 1
    assert (report["fd_color"] or 0) > 1e-3
    assert report["usage"] is not None and report["perplexity"] is not None
    (table,) = report.tables
    assert [row[1] for row in table.rows] == ["8x8", "all"]
    assert (table.columns[-1], table.rows[0][-1]) == ("tokens per code", 24 * 64 / 8)
    assert report.provenance["reference"]["n"] == 24
    assert report.provenance["reference"]["class_balance"] == "uniform: 8 each of 3 classes"
    assert report.provenance["reference"]["pixels"] == "32x32"
    assert len(report.provenance["reference"]["hash"]) == 64
    for key in ("extractor", "rounding", "seed", "versions", "hardware", "date", "command", "codes"):
        assert report.provenance[key] is not None, key
    assert json.loads((tmp_path / "out" / "report.json").read_text())["title"] == "Reconstruction"


def test_a_perfect_reconstruction(dataset: Path, extractor: Any, tmp_path: Path) -> None:
    report = reconstruction_metrics(lambda x: x, dataset, tmp_path / "out", ReconstructionSettings(extractor=extractor))
    assert report["psnr"] == 100
    assert report["ssim"] == pytest.approx(1)
    assert report["fd_color"] == pytest.approx(0, abs=1e-6)
    assert abs(float(report.provenance["self_check"].split()[0])) < 1e-6
    assert report.tables == []


def test_the_continuous_vae_is_measured_beside_it(
    tokenizer: Any, dataset: Path, extractor: Any, tmp_path: Path
) -> None:
    def blur(images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)

    settings = ReconstructionSettings(extractor=extractor, limit=12)
    report = reconstruction_metrics(tokenizer, dataset, tmp_path / "out", settings, continuous=blur)
    assert (report["continuous_psnr"] or 0) > (report["psnr"] or 0)
    assert (report["continuous_fd_color"] or 9) < (report["fd_color"] or 0)
    assert report.provenance["reference"]["n"] == 12


def test_batch_size_changes_nothing(tokenizer: Any, dataset: Path, extractor: Any, tmp_path: Path) -> None:
    one, other = (
        reconstruction_metrics(
            tokenizer, dataset, tmp_path / str(n), ReconstructionSettings(extractor=extractor, batch_size=n, limit=11)
        )
        for n in (3, 11)
    )
    assert [f.value for f in one.figures] == pytest.approx([f.value for f in other.figures])


def test_limit_is_drawn_by_the_seed(tokenizer: Any, dataset: Path, extractor: Any, tmp_path: Path) -> None:
    first, again, other = (
        reconstruction_metrics(
            tokenizer, dataset, tmp_path / out, ReconstructionSettings(extractor=extractor, limit=5, seed=seed)
        )
        for out, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first["psnr"] == again["psnr"] != other["psnr"]


def test_few_images_give_a_warning(dataset: Path, extractor: Any, tmp_path: Path) -> None:
    settings = ReconstructionSettings(extractor=extractor, limit=5)
    report = reconstruction_metrics(lambda x: x, dataset, tmp_path / "out", settings)
    (warning,) = report.warnings
    assert "N = 5" in warning and "6 feature dimensions" in warning


def test_another_measurement_needs_overwrite(tokenizer: Any, dataset: Path, extractor: Any, tmp_path: Path) -> None:
    def measure(limit: int, **options: Any) -> Report:
        settings = ReconstructionSettings(extractor=extractor, limit=limit)
        return reconstruction_metrics(tokenizer, dataset, tmp_path / "out", settings, RunOptions(**options))

    first = measure(6)
    assert measure(6).to_json() == first.to_json()  # with the date: nothing was measured again
    with pytest.raises(CodaError, match="overwrite"):
        measure(7)
    assert measure(7, overwrite=True).provenance["reference"]["n"] == 7


def test_an_unreadable_image_is_reported(tokenizer: Any, dataset: Path, extractor: Any, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(sorted(dataset.rglob("*.png"))[:6]):
        (folder / f"{i}.png").write_bytes(image.read_bytes()[: 60 if i == 2 else None])
    report = reconstruction_metrics(tokenizer, folder, tmp_path / "out", ReconstructionSettings(extractor=extractor))
    assert report.provenance["reference"]["n"] == 5
    assert "1 unreadable: 2.png" in report.provenance["reference"]["skipped"]
    with pytest.raises(CodaError, match=r"2\.png"):
        settings = ReconstructionSettings(extractor=extractor)
        reconstruction_metrics(tokenizer, folder, tmp_path / "strict", settings, RunOptions(strict=True))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"data": "absent"}, "does not exist"),
        ({"extractor": "vgg"}, "extractor 'vgg'"),
        ({"limit": 0}, "limit 0"),
        ({"limit": 1}, "at least two"),
        ({"tokenizer": object()}, "not callable"),
        ({"tokenizer": lambda x: x[..., :-1]}, "differ in size"),
    ],
)
def test_wrong_requests_are_one_line(
    wrong: dict[str, Any], message: str, tokenizer: Any, dataset: Path, extractor: Any, tmp_path: Path
) -> None:
    given = {"tokenizer": tokenizer, "data": dataset, "extractor": extractor} | wrong
    with pytest.raises(CodaError, match=message) as raised:
        settings = ReconstructionSettings.from_mapping(given)
        reconstruction_metrics(given["tokenizer"], given["data"], tmp_path / "out", settings)
    assert "\n" not in str(raised.value)
