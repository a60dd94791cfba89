"""A tiny tokenizer, an extractor and a folder of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from coda.benchmarks import Features, FigureNames
from coda.tokenizer import CodeLayout
from coda.tokenizer.code_cache import FORMAT_VERSION, CacheWriter, ShardRows


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


class LevelTokenizer:
    """Decodes codes of three levels to 16×16 images: the sum of their grays."""

    layout = CodeLayout([1, 2, 4], 8)
    size = (16, 16)
    fingerprint = "1" * 64

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        grays = [(level[:, None].float() - 3.5) / (6 * 2**i) for i, level in enumerate(self.layout.split(codes))]
        enlarged = [torch.nn.functional.interpolate(gray, size=self.size) for gray in grays]
        return torch.stack(enlarged).sum(0).clamp(-1, 1).expand(-1, 3, -1, -1)


@pytest.fixture(scope="session")
def level_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Codes of `LevelTokenizer`: 96 images of the dataset's three classes, each near its class's typical codes."""
    generator, layout = torch.Generator().manual_seed(4), LevelTokenizer.layout
    labels = torch.arange(96) % 3
    codes = torch.randint(0, 8, (3, layout.num_tokens), generator=generator)[labels]
    noise = torch.randint(0, 8, codes.shape, generator=generator)
    codes = torch.where(torch.rand(codes.shape, generator=generator) < 0.1, noise, codes)
    head = {
        "format": "coda code cache",
        "format_version": FORMAT_VERSION,
        "layout": layout.to_json(),
        "tokenizer_fingerprint": LevelTokenizer.fingerprint,
        "variants": ["original"],
        "source": {"items": 96},
        "num_classes": 3,
        "class_names": ["n02123045", "n07920052", "n10565667"],
        "shard_size": 96,
        "part": None,
    }
    path = tmp_path_factory.mktemp("cache") / "cache"
    writer = CacheWriter(path, head, torch.randn(8, 3, generator=generator))
    writer.append(ShardRows(codes[:, None], labels, torch.arange(96), [str(i) for i in range(96)]), [], 96)
    writer.finish()
    writer.close()
    return path
