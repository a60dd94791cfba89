"""A tiny tokenizer, an extractor and a folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coda.benchmarks import Features, FigureNames
from coda.tokenizer import CodeLayout


class ColorExtractor:
    """Mean and standard deviation of the channels: a quick extractor."""

    name = "color"
    device = torch.device("cpu")
    figure_names = FigureNames("fd_color", "kid_color", "precision_color", "recall_color", "score_color", "sfd_color")
    description = "mean and standard deviation of the channels"

    def __call__(self, images: torch.Tensor) -> Features:
        flat = images.float().flatten(2) / 255
        return Features(
            torch.cat([flat.mean(2), flat.std(2)], dim=1), logits=10 * flat.mean(2), spatial=flat.mean(1)[:, :4]
        )


class GrayTokenizer:
    """Encodes every 4×4 block as one of 8 grays."""

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
def extractor() -> ColorExtractor:
    return ColorExtractor()


@pytest.fixture
def tokenizer() -> GrayTokenizer:
    return GrayTokenizer()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 cuts of photos, 32×32, in the folders of three ImageNet classes."""
    data = pytest.importorskip("skimage.data")
    folder = tmp_path_factory.mktemp("dataset")
    cuts = {"n02123045": data.chelsea(), "n10565667": data.astronaut(), "n07920052": data.coffee()}
    for name, image in cuts.items():
        (folder / name).mkdir()
        for i in range(8):
            top, left = 30 * i, 40 * (i % 4)
            cut = np.ascontiguousarray(image[top : top + 64, left : left + 64])
            Image.fromarray(cut).resize((32, 32)).save(folder / name / f"{i}.png")
    return folder
