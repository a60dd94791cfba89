"""A whole pipeline, small enough to be made and sampled in a moment."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import coda.tokenizer  # noqa: F401  isort: skip  before diffusers

from diffusers import AutoencoderKL

from coda.pipeline.coda_pipeline import CodaPipeline
from coda.tokenizer import ContinuousVAE, ResidualQuantizer

SIDES = (1, 2, 4, 8)
NAMES = ["cats", "dogs", "golden fish", "birds"]


def make_tokenizer_parts(seed: int = 0) -> tuple[ContinuousVAE, ResidualQuantizer]:
    """16×16 pixels, 2× smaller latents, 4 channels, 85 codes of 32."""
    torch.manual_seed(seed)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
    )
    vae = ContinuousVAE(autoencoder, shift=[0.0], scale=[1.0]).eval().requires_grad_(False)
    return vae, ResidualQuantizer(4, 32, SIDES, attention_dim=8, norm="rms_norm").eval().requires_grad_(False)


def make_pipeline(seed: int = 0) -> CodaPipeline:
    """Random weights; classes 0, 1 and 2 of 4 were seen."""
    from coda.generator import MaskGitScheduler, MaskGitTransformer

    vae, quantizer = make_tokenizer_parts(seed)
    transformer = MaskGitTransformer(
        SIDES, 32, 4, num_classes=4, hidden_size=32, depth=2, num_heads=2, class_labels=[0, 1, 2], class_names=NAMES
    )
    with torch.no_grad():
        for parameter in transformer.parameters():  # a fresh transformer ignores the class: its modulation is zero
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    transformer.set_value_table(quantizer.value_table())
    pipeline = CodaPipeline(vae, quantizer, transformer.eval(), MaskGitScheduler(num_inference_steps=8))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="session")
def pipeline() -> CodaPipeline:
    """Shared by all tests: none may change it."""
    return make_pipeline()


@pytest.fixture(scope="session")
def saved(pipeline: CodaPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pipeline/, and the same as generator/ and tokenizer/."""
    folder = tmp_path_factory.mktemp("saved")
    pipeline.save_pretrained(folder / "pipeline")
    pipeline.tokenizer.save_pretrained(folder / "tokenizer")
    pipeline.transformer.save_pretrained(folder / "generator")
    pipeline.scheduler.save_pretrained(folder / "generator" / "scheduler")
    return folder


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty folder: they see nothing of a checkout's own runs/."""
    monkeypatch.chdir(tmp_path)
