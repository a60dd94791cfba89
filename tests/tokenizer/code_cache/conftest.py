from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from coda.tokenizer import CodaTokenizer, ResidualQuantizer
from coda.tokenizer.layout import CodeLayout
from coda.tokenizer.vae.continuous_vae import ContinuousVAE


@pytest.fixture
def tokenizer(small_vae: ContinuousVAE) -> CodaTokenizer:
    """16 × 16 pixels, 74 codes of 300."""
    return CodaTokenizer(small_vae, ResidualQuantizer(4, 300, [1, 3, 8])).eval()


def make_header(layout: CodeLayout, items: int, shard_size: int, **other: Any) -> dict[str, Any]:
    """What is known of a cache before its first image."""
    known = {
        "format": "coda code cache",
        "format_version": 1,
        "tokenizer_fingerprint": "a" * 64,
        "layout": layout.to_json(),
        "variants": ["original"],
        "preprocessing": {"size": [16, 16]},
        "source": {"items": items, "fingerprint": "b" * 64},
        "num_classes": 4,
        "class_names": None,
        "shard_size": shard_size,
        "part": None,
    }
    return known | other


def content(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
