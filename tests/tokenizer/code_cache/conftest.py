from __future__ import annotations

from typing import Any

from coda.tokenizer.layout import CodeLayout


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
