"""Named settings of `train_maskgit`: `coda train-maskgit --preset NAME`. Values that are given win. Imports no torch.

Parameters in millions, counted with 1,000 classes, C 16 and the KL16 sides. All presets but `paper` take 10,000 steps
of 64 images.

| preset | width | depth | heads | K 4,096 | K 16,384 | lr | for |
| --- | --- | --- | --- | --- | --- | --- | --- |
| pocket | 64 | 2 | 2 | 0.4 | 1.2 | 5e-4 | tests |
| tiny | 192 | 6 | 3 | 3.9 | 6.2 | 5e-4 | an hour on a CPU |
| small | 256 | 8 | 4 | 8.1 | 11.2 | 5e-4 | a night on a CPU, 64-pixel images |
| compact | 384 | 8 | 6 | 17.2 | 22.0 | 5e-4 | 64-pixel images on one GPU |
| base | 448 | 10 | 7 | 28.2 | 33.7 | 4e-4 | 64-pixel images of many classes on one GPU |
| medium | 512 | 12 | 8 | 43.3 | 49.6 | 3e-4 | one GPU |
| large | 768 | 24 | 12 | 186.5 | 195.9 | 2e-4 | ImageNet at 256 pixels |
| paper | 768 | 24 | 12 | 186.5 | 195.9 | 4e-4 | the paper's MaskGIT-L: 500,000 steps of 2,048 |

The paper (Section 4.2) gives the size of its MaskGIT-L, 195 M, and no schedule: steps, batch size and rate of `paper`
are those of the same laboratory's ImprovedNAT, which has that size.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from coda.tokenizer.foundation.errors import CodaError

_COMMON: dict[str, Any] = {"steps": 10_000, "batch_size": 64, "lr": 5e-4, "ema_decay": 0.9995}
_LARGE: dict[str, Any] = {**_COMMON, "hidden_size": 768, "depth": 24, "num_heads": 12, "lr": 2e-4}

PRESETS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "pocket": {**_COMMON, "hidden_size": 64, "depth": 2, "num_heads": 2},
        "tiny": {**_COMMON, "hidden_size": 192, "depth": 6, "num_heads": 3},
        "small": {**_COMMON, "hidden_size": 256, "depth": 8, "num_heads": 4},
        "compact": {**_COMMON, "hidden_size": 384, "depth": 8, "num_heads": 6},
        "base": {**_COMMON, "hidden_size": 448, "depth": 10, "num_heads": 7, "lr": 4e-4},
        "medium": {**_COMMON, "hidden_size": 512, "depth": 12, "num_heads": 8, "lr": 3e-4},
        "large": _LARGE,
        "paper": {**_LARGE, "steps": 500_000, "batch_size": 2048, "lr": 4e-4, "ema_decay": 0.9999},
    }
)


def resolve_preset(preset: str, **given: Any) -> dict[str, Any]:
    """The values of a preset, with those of `given` that are not None in their place.

    If only the width is replaced, the heads keep the preset's width per head, as nearly as it divides.

    Raises:
        CodaError: If there is no such preset, or the width is not a multiple of the number of heads.
    """
    if preset not in PRESETS:
        raise CodaError(f"preset {preset!r} is not one of {', '.join(PRESETS)}")
    named = PRESETS[preset]
    values = {**named, **{name: value for name, value in given.items() if value is not None}}
    width, heads = values["hidden_size"], values["num_heads"]
    if given.get("num_heads") is None:
        wanted = max(1, round(width * heads / named["hidden_size"]))
        heads = max(n for n in range(1, wanted + 1) if width % n == 0)
    if width % heads:
        raise CodaError(f"hidden size {width} is not a multiple of {heads} heads")
    return {**values, "num_heads": heads}
