"""A tokenizer, an extractor and a folder of photographs, all tiny and all real enough to be measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coda.benchmarks import Features, FigureNames
from coda.tokenizer import CodeLayout


class ColourExtractor:
    """Mean and spread of the colours: an extractor of one's own, and quick."""

    name = "colour"
    device = torch.device("cpu")
    figure_names = FigureNames(
        "fd_colour", "kid_colour", "precision_colour", "recall_colour", "score_colour", "sfd_colour"
    )
    description = "means and spreads of the channels"

    def __call__(self, images: torch.Tensor) -> Features:
        flat = images.float().flatten(2) / 255
        return Features(
            torch.cat([flat.mean(2), flat.std(2)], dim=1), logits=10 * flat.mean(2), spatial=flat.mean(1)[:, :4]
        )


class GreyTokenizer:
    """Every 4×4 block of a picture as one of 8 greys."""

    layout = CodeLayout([8], 8)
    size = (32, 32)
    fingerprint = "0" * 64

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        blocks = torch.nn.functional.avg_pool2d(images.mean(1, keepdim=True), 4)
        return ((blocks + 1) * 4).long().clamp(0, 7).flatten(1)

    def decode(self, codes: torch.Tensor, levels: int | None = None) -> torch.Tensor:
        grid = codes.view(-1, 1, 8, 8).float().add(0.5).div(4).sub(1)
        return torch.nn.functional.interpolate(grid, scale_factor=4).expand(-1, 3, -1, -1)


@pytest.fixture
def extractor() -> ColourExtractor:
    return ColourExtractor()


@pytest.fixture
def tokenizer() -> GreyTokenizer:
    return GreyTokenizer()


@pytest.fixture(scope="session")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 cuts of real photographs, 32×32, in the folders of three ImageNet classes."""
    data = pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("photographs")
    cuts = {"n02123045": data.chelsea(), "n10565667": data.astronaut(), "n07920052": data.coffee()}
    for name, picture in cuts.items():
        (folder / name).mkdir()
        for i in range(8):
            top, left = 30 * i, 40 * (i % 4)
            cut = np.ascontiguousarray(picture[top : top + 64, left : left + 64])
            Image.fromarray(cut).resize((32, 32)).save(folder / name / f"{i}.png")
    return folder
