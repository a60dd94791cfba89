from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from coda.benchmarks import Report, ablation
from coda.benchmarks.rungs.rung import ladder, level_sweep, starts
from coda.benchmarks.settings import AblationSettings
from coda.tokenizer import CodaError, CodaTokenizer, ContinuousVAE
from coda.tokenizer.settings import RunOptions

pytest.importorskip("torch_fidelity")
SIDES = [(1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8)]


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random VAE of factor 4, for images of 16 pixels."""
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
    )
    folder = tmp_path_factory.mktemp("vae")
    ContinuousVAE(autoencoder, shift=[0.0], scale=[1.0]).save_pretrained(folder)
    return folder


def small(extractor: Any, **more: Any) -> AblationSettings:
    settings = {"size": 16, "sides": [2, 4], "codebook_size": 8, "levels": [1], "steps": 4, "measurements": 1}
    settings |= {"batch_size": 4, "lora_rank": 2, "limit": 12, "kmeans_images": 6, "perceptual_weight": 0.0}
    return AblationSettings(**settings | more, extractor=extractor)


def test_each_rung_adds_one_idea() -> None:
    direct, residual, attention, lora = ladder(SIDES, lora_rank=2).values()
    assert (direct.quantizer, direct.sides, direct.lora_rank) == ("vq", (SIDES[-1],), 0)
    assert (residual.quantizer, residual.sides, residual.lora_rank) == ("vq", tuple(SIDES), 0)
    assert (attention.quantizer, attention.sides, attention.lora_rank) == ("attention", tuple(SIDES), 0)
    assert (lora.quantizer, lora.sides, lora.lora_rank) == ("attention", tuple(SIDES), 2)
    assert {rung.start for rung in starts(SIDES, 2).values()} == {"random"}


def test_the_sweep_ends_on_the_latents_grid() -> None:
    sweep = level_sweep(SIDES)
    assert list(sweep) == ["1", "2", "4", "6"]
    assert all(rung.sides[-1] == (8, 8) and len(rung.sides) == int(name) for name, rung in sweep.items())
    assert all(list(rung.sides) == sorted(set(rung.sides)) for rung in sweep.values())
    assert list(level_sweep(SIDES[:1])) == ["1"]
    assert level_sweep(SIDES, []) == {}
    with pytest.raises(CodaError, match="1 to 6"):
        level_sweep(SIDES, [7])


def test_report_with_every_rung(vae: Path, dataset: Path, extractor: Any, tmp_path: Path) -> None:
    def run() -> Report:
        return ablation(
            vae, f"{dataset}[:12]", f"{dataset}[12:]", tmp_path / "out", small(extractor, seeds=2), RunOptions()
        )

    report = run()
    ideas, levels, random, rivals, usage = report.tables
    columns = list(ideas.columns)
    assert [row[0] for row in ideas.rows] == [*ladder([(1, 1)], 1), "the VAE itself"]
    assert [row[columns.index("levels")] for row in ideas.rows] == [1, 2, 2, 2, None]
    assert [row[columns.index("bits per image")] for row in ideas.rows] == [16 * 3, 20 * 3, 20 * 3, 20 * 3, None]
    assert {row[columns.index("images seen")] for row in ideas.rows[:-1]} == {6 + 4 * 4}
    assert {row[columns.index("images seen")] for row in random.rows[:-1]} == {4 * 4 + 8}  # whole batches
    assert [row[0] for row in levels.rows] == ["1", "the VAE itself"]
    assert ideas.rows[0][1:] == levels.rows[0][1:]  # direct VQ is the first of the sweep, and trained once
    bits = {row[0]: row[columns.index("bits per image")] for row in rivals.rows}
    assert bits["scalar (TokenBridge), 16 bins"] == bits["iFSQ, 16 bins"] == 4 * 16 * 4
    assert bits["Gaussian codebook (GQ), 4 channels per code"] == 16 * 3
    assert usage.rows[0] == ["tokens per code", 12 * 4 / 8, 12 * 16 / 8]
    assert [row[0] for row in usage.rows[1:]] == [row[0] for table in (ideas, random) for row in table.rows[:-1]]
    assert usage.rows[1][1] is None and all(0 < row[2] <= 100 for row in usage.rows[1:])  # direct VQ has one level
    assert "±" in str(ideas.rows[0][columns.index("PSNR dB")])
    assert all(figure.value is not None and figure.spread is not None for figure in report.figures)
    assert not any("adapted on" in warning for warning in report.warnings)
    rungs = tmp_path / "out" / "rungs"
    found = json.loads((rungs / "attention-levels-02-data-lora-2-seed-1" / "figures-00000004.json").read_text())
    assert found["perturbed"] is not None and len(found["confidences"]) == 8
    tokenizer = CodaTokenizer.from_pretrained(rungs / "attention-levels-02-data-lora-2-seed-0" / "tokenizer")
    assert tokenizer.layout.codebook_size == 8
    if (tmp_path / "out" / "ideas.png").exists():  # matplotlib is an extra
        names = {"ideas", "levels", "confidence", "bits-psnr", "bits-distance", "images-seen-psnr"}
        assert names <= {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert run().to_json() == report.to_json()  # with the date: nothing was measured again


def test_a_model_from_scratch_sees_as_many_images_or_six_times(
    vae: Path, dataset: Path, extractor: Any, tmp_path: Path
) -> None:
    report = ablation(vae, dataset, None, tmp_path, small(extractor, tables=["scratch"], measurements=0))
    (table,) = report.tables
    assert [row[list(table.columns).index("images seen")] for row in table.rows] == [24, 6 * 24, None]
    assert all(row[list(table.columns).index("usage %")] for row in table.rows[:-1])


def test_an_interrupted_rung_is_resumed(vae: Path, dataset: Path, extractor: Any, tmp_path: Path) -> None:
    class Interrupting(type(extractor)):  # type: ignore[misc]
        calls = 0

        def __call__(self, images: torch.Tensor) -> Any:
            self.calls += 1
            if self.calls in (9, 40, 60):
                raise KeyboardInterrupt
            return super().__call__(images)

    def run(out: str, extractor: Any) -> list[list[Any]]:
        report = ablation(vae, dataset, None, tmp_path / out, small(extractor, tables=["ladder", "variants"]))
        return [list(row[:-1]) for table in report.tables for row in table.rows]  # without the seconds

    whole, interrupting = run("whole", extractor), Interrupting()
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            run("interrupted", interrupting)
    assert run("interrupted", interrupting) == whole


def test_wrong_requests_are_one_line(vae: Path, dataset: Path, extractor: Any, tmp_path: Path) -> None:
    for wrong, message in (
        ({"size": 18}, "not a multiple of the VAE's factor 4"),
        ({"levels": [9]}, "levels 9"),
        ({"sides": [2, 3]}, "the last side"),
    ):
        with pytest.raises(CodaError, match=message):
            ablation(vae, dataset, out=tmp_path / "out", settings=small(extractor, **wrong))
