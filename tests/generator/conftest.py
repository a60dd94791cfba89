"""Small code caches, made without any image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coda.tokenizer.code_cache import FORMAT_VERSION, CacheWriter, ShardRows
from coda.tokenizer.layout import CodeLayout

SIDES, CODES, CLASSES = (1, 2, 4), 16, 3


@pytest.fixture(scope="session")
def layout() -> CodeLayout:
    return CodeLayout(SIDES, CODES)


@pytest.fixture(scope="session")
def prototypes(layout: CodeLayout) -> torch.Tensor:
    """The codes of a typical image of each class: (classes, T)."""
    return torch.randint(0, CODES, (CLASSES, layout.num_tokens), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="session")
def make_cache(
    tmp_path_factory: pytest.TempPathFactory, layout: CodeLayout, prototypes: torch.Tensor
) -> Callable[..., Path]:
    """Makes a cache of images that are their class's prototype with one code in twenty replaced."""

    def make(labelled: bool = True, images: int = 96, tokenizer: str = "f") -> Path:
        generator = torch.Generator().manual_seed(4)
        labels = torch.arange(images) % CLASSES
        codes = prototypes[labels]
        noise = torch.randint(0, CODES, codes.shape, generator=generator)
        codes = torch.where(torch.rand(codes.shape, generator=generator) < 0.05, noise, codes)
        if not labelled:
            labels = torch.full_like(labels, -1)
        head = {
            "format": "coda code cache",
            "format_version": FORMAT_VERSION,
            "layout": layout.to_json(),
            "tokenizer_fingerprint": tokenizer * 64,
            "variants": ["original"],
            "source": {"items": images},
            "num_classes": CLASSES + 2 if labelled else 0,  # two classes are not seen
            "class_names": ["ant", "bee", "cat", "dog", "eel"] if labelled else None,
            "shard_size": images,
            "part": None,
        }
        path = tmp_path_factory.mktemp("cache") / "cache"
        writer = CacheWriter(path, head, torch.randn(CODES, 3, generator=generator))
        rows = ShardRows(codes[:, None], labels, torch.arange(images), [str(i) for i in range(images)])
        writer.append(rows, [], images)
        writer.finish()
        writer.close()
        return path

    return make


@pytest.fixture(scope="session")
def cache(make_cache: Callable[..., Path]) -> Path:
    """The usual cache, to be read only."""
    return make_cache()
