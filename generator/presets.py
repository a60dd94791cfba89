"""Sizes of the transformer that have names.

Parameters in millions, counted with 1,000 classes, C 16 and the KL16 sides. `large` is the size of the paper's
MaskGIT-L (195 M; Section 4.2).

| preset | width | depth | heads | K 4,096 | K 16,384 | for |
| --- | --- | --- | --- | --- | --- | --- |
| pocket | 64 | 2 | 2 | 0.4 | 1.2 | tests, a first look |
| tiny | 192 | 6 | 3 | 3.9 | 6.2 | an hour of a CPU |
| small | 256 | 8 | 4 | 8.1 | 11.2 | a night of a CPU, 64-pixel pictures |
| medium | 512 | 12 | 8 | 43.3 | 49.6 | one GPU |
| large | 768 | 24 | 12 | 186.5 | 195.9 | ImageNet at 256 pixels |
"""

from __future__ import annotations

from dataclasses import dataclass

from coda.tokenizer.foundation.errors import CodaError


@dataclass(frozen=True)
class Preset:
    """Size of a `MaskGitTransformer`; see there for what the numbers mean."""

    hidden_size: int
    depth: int
    num_heads: int


PRESETS = {
    "pocket": Preset(hidden_size=64, depth=2, num_heads=2),
    "tiny": Preset(hidden_size=192, depth=6, num_heads=3),
    "small": Preset(hidden_size=256, depth=8, num_heads=4),
    "medium": Preset(hidden_size=512, depth=12, num_heads=8),
    "large": Preset(hidden_size=768, depth=24, num_heads=12),
}


def resolve_preset(
    preset: str, hidden_size: int | None = None, depth: int | None = None, num_heads: int | None = None
) -> Preset:
    """A preset by name, with single numbers replaced by those given.

    A width without a number of heads gets heads of the preset's own width, as near as divides it.

    Raises:
        CodaError: No preset has this name, or the width is no multiple of the heads.
    """
    if preset not in PRESETS:
        raise CodaError(f"preset {preset!r} is none of {', '.join(PRESETS)}")
    named = PRESETS[preset]
    width = hidden_size or named.hidden_size
    if num_heads is None:
        wanted = max(1, round(width * named.num_heads / named.hidden_size))
        num_heads = max(n for n in range(1, wanted + 1) if width % n == 0)
    if width % num_heads:
        raise CodaError(f"hidden size {width} is no multiple of {num_heads} heads")
    return Preset(width, depth or named.depth, num_heads)
