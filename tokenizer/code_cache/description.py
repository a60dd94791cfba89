"""What a code cache is, told before the first code is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from ..tokenizer import CodaTokenizer
from .format import FORMAT, FORMAT_VERSION


class DescribedSource(Protocol):
    """Where codes come from: images, or codes that others have made; the attributes are those of an `ImageSource`."""

    kind: str
    num_classes: int
    class_names: list[str] | None

    @property
    def fingerprint(self) -> str:
        """What tells the source from any other."""

    def __len__(self) -> int:
        """Number of items."""


def manifest_header(
    tokenizer: CodaTokenizer,
    source: DescribedSource,
    variants: Sequence[str],
    preprocessing: Mapping[str, Any],
    shard_size: int,
    part: tuple[int, int] | None,
) -> dict[str, Any]:
    """All that decides which bytes a cache holds: the first half of its manifest.

    Args:
        tokenizer: The one that can decode the codes.
        source: Images or codes.
        variants: Names of what was encoded of each image.
        preprocessing: How images became pixels of the tokenizer's size.
        shard_size: Items per shard.
        part: (i, n) for the i-th of n parts; None for all.
    """
    described = tokenizer.describe()
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "tokenizer_fingerprint": tokenizer.fingerprint,
        "tokenizer": {name: described[name] for name in described if name not in ("fingerprint", "layout", "size")},
        "layout": tokenizer.layout.to_json(),
        "codes": str(tokenizer.layout.dtype_on_disk).split(".")[-1],
        "variants": list(variants),
        "preprocessing": dict(preprocessing),
        "source": {"kind": source.kind, "items": len(source), "fingerprint": source.fingerprint},
        "num_classes": source.num_classes,
        "class_names": source.class_names,
        "shard_size": shard_size,
        "part": None if part is None else list(part),
    }
