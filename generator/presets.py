"""Named sizes of the transformer.

Parameters in millions, counted with 1,000 classes, C 16 and the KL16 sides. `large` is the size of the paper's
MaskGIT-L (195 M; Section 4.2).

| preset | width | depth | heads | K 4,096 | K 16,384 | for |
| --- | --- | --- | --- | --- | --- | --- |
| pocket | 64 | 2 | 2 | 0.4 | 1.2 | tests |
| tiny | 192 | 6 | 3 | 3.9 | 6.2 | an hour on a CPU |
| small | 256 | 8 | 4 | 8.1 | 11.2 | a night on a CPU, 64-pixel images |
| medium | 512 | 12 | 8 | 43.3 | 49.6 | one GPU |
| large | 768 | 24 | 12 | 186.5 | 195.9 | ImageNet at 256 pixels |
"""

from __future__ import annotations

from dataclasses import dataclass

from coda.tokenizer.foundation.errors import CodaError


@dataclass(frozen=True)
class Preset:
    """Size of a `MaskGitTransformer`."""

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
    """A preset with single numbers replaced.

    If only the width is replaced, the heads keep the preset's width per head, as nearly as it divides.

    Raises:
        CodaError: If there is no such preset, or the width is not a multiple of the number of heads.
    """
    if preset not in PRESETS:
        raise CodaError(f"preset {preset!r} is not one of {', '.join(PRESETS)}")
    named = PRESETS[preset]
    width = hidden_size or named.hidden_size
    if num_heads is None:
        wanted = max(1, round(width * named.num_heads / named.hidden_size))
        num_heads = max(n for n in range(1, wanted + 1) if width % n == 0)
    if width % num_heads:
        raise CodaError(f"hidden size {width} is not a multiple of {num_heads} heads")
    return Preset(width, depth or named.depth, num_heads)
