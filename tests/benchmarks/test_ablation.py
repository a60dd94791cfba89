from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL

from coda.benchmarks import Report, ablation
from coda.benchmarks.ablation import ladder, level_sweep
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


def test_each_rung_adds_one_idea() -> None:
    direct, residual, attention, lora = ladder(SIDES, steps=7, lora_rank=2).values()
    assert (direct.sides, direct.steps, direct.lora_rank) == ((SIDES[-1],), 0, 0)
    assert (residual.sides, residual.steps, residual.lora_rank) == (tuple(SIDES), 0, 0)
    assert (attention.sides, attention.steps, attention.lora_rank) == (tuple(SIDES), 7, 0)
    assert (lora.sides, lora.steps, lora.lora_rank) == (tuple(SIDES), 7, 2)


def test_the_sweep_ends_on_the_latents_grid() -> None:
    sweep = level_sweep(SIDES)
    assert list(sweep) == ["1", "2", "4", "6"]
    assert all(recipe.sides[-1] == (8, 8) and len(recipe.sides) == int(name) for name, recipe in sweep.items())
    assert all(list(recipe.sides) == sorted(set(recipe.sides)) for recipe in sweep.values())
    assert list(level_sweep(SIDES[:1])) == ["1"]
    assert level_sweep(SIDES, []) == {}
    with pytest.raises(CodaError, match="1 to 6"):
        level_sweep(SIDES, [7])


def test_report_with_every_rung(vae: Path, dataset: Path, extractor: Any, tmp_path: Path) -> None:
    def run() -> Report:
        small: dict[str, Any] = {"size": 16, "sides": [2, 4], "codebook_size": 8, "levels": [1], "steps": 1}
        settings = AblationSettings(**small, batch_size=4, lora_rank=2, limit=12, extractor=extractor)
        return ablation(vae, f"{dataset}[:12]", f"{dataset}[12:]", tmp_path / "out", settings, RunOptions(device="cpu"))

    report = run()
    ideas, levels = report.tables
    assert [row[0] for row in ideas.rows] == [*ladder([(1, 1)], 1, 1), "continuous VAE"]
    assert [row[1] for row in ideas.rows] == [1, 2, 2, 2, None]
    assert [row[2] for row in ideas.rows] == [16 * 3, 20 * 3, 20 * 3, 20 * 3, None]
    assert [row[0] for row in levels.rows] == ["1", "continuous VAE"]
    assert ideas.rows[0][5:] == levels.rows[0][5:]  # direct VQ is the first of the sweep, and measured once
    assert all(figure.value is not None for figure in report.figures)
    assert not any("adapted on" in warning for warning in report.warnings)
    rungs = sorted((tmp_path / "out" / "rungs").iterdir())
    assert len(rungs) == 4
    assert CodaTokenizer.from_pretrained(rungs[0] / "tokenizer").layout.codebook_size == 8
    assert run().to_json() == report.to_json()  # with the date: nothing was measured again


def test_wrong_requests_are_one_line(vae: Path, dataset: Path, extractor: Any, tmp_path: Path) -> None:
    with pytest.raises(CodaError, match="not a multiple of the VAE's factor 4"):
        ablation(vae, dataset, out=tmp_path / "a", settings=AblationSettings(size=18, extractor=extractor))
    with pytest.raises(CodaError, match="levels 9"):
        settings = AblationSettings(size=16, levels=(9,), extractor=extractor)
        ablation(vae, dataset, out=tmp_path / "b", settings=settings)
