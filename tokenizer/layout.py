"""How the codes of one picture are laid out: level by level, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from .foundation.errors import CodaError

Side = tuple[int, int]

# The published sides (paper, Section 4.1) for latents of 16×16 and 32×32.
_PUBLISHED_SIDES = {16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}


@dataclass(frozen=True)
class CodeLayout:
    """Sides of the levels, size of the codebook and, with them, the order of the codes.

    A picture's codes are one row of `num_tokens` integers: all of level 0, then all of level 1, …, each level row by
    row. The last level's side is the latent's own grid.

    Args:
        sides: (h_l, w_l) per level; a bare integer stands for a square.
        codebook_size: K; codes are in [0, K).
    """

    sides: tuple[Side, ...]
    codebook_size: int

    def __init__(self, sides: Sequence[int | Sequence[int]], codebook_size: int) -> None:
        pairs = tuple(_pair(side) for side in sides)
        if not pairs:
            raise CodaError("a layout needs at least one level, for example sides 1 2 4")
        if any(h > pairs[-1][0] or w > pairs[-1][1] for h, w in pairs):
            raise CodaError(f"sides {_spelled(pairs)}: the last level must be the largest, it is the latent's grid")
        if codebook_size < 2:
            raise CodaError(f"a codebook of {codebook_size} codes says nothing; 2 is the least")
        object.__setattr__(self, "sides", pairs)
        object.__setattr__(self, "codebook_size", int(codebook_size))

    @property
    def num_levels(self) -> int:
        """Number of levels L."""
        return len(self.sides)

    @property
    def num_tokens(self) -> int:
        """Codes per picture T, all levels together."""
        return sum(h * w for h, w in self.sides)

    @property
    def grid(self) -> Side:
        """(h, w) of the latent."""
        return self.sides[-1]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each level begins in a picture's codes; L + 1 numbers, the last being `num_tokens`."""
        return tuple(accumulate((h * w for h, w in self.sides), initial=0))

    @property
    def dtype_on_disk(self) -> torch.dtype:
        """Narrowest unsigned type that holds every code."""
        if self.codebook_size <= 1 << 8:
            return torch.uint8
        return torch.uint16 if self.codebook_size <= 1 << 16 else torch.uint32

    def scaled(self, grid: Side) -> CodeLayout:
        """The layout for a latent of another grid: as many levels, each side scaled along its axis.

        A level keeps the share of the latent that one of its cells covers; there is at least one cell each way.
        """
        height, width = self.grid
        sides = [(_scaled(h, height, grid[0]), _scaled(w, width, grid[1])) for h, w in self.sides]
        return CodeLayout(sides, self.codebook_size)

    def split(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """Codes (B, T) as one grid per level, [(B, h_l, w_l)]."""
        if codes.ndim != 2 or codes.shape[1] != self.num_tokens:
            expected = f"(B, {self.num_tokens}) for sides {_spelled(self.sides)}"
            raise CodaError(f"codes have shape {tuple(codes.shape)}, expected {expected}")
        flat = codes.split([h * w for h, w in self.sides], dim=1)
        return [part.reshape(-1, h, w) for part, (h, w) in zip(flat, self.sides, strict=True)]

    def join(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """The inverse of `split`: grids [(B, h_l, w_l)] as codes (B, T)."""
        shapes = tuple(tuple(level.shape[1:]) for level in levels)
        if shapes != self.sides:
            raise CodaError(f"levels have sides {_spelled(shapes)}, expected {_spelled(self.sides)}")
        return torch.cat([level.flatten(1) for level in levels], dim=1)

    def to_json(self) -> dict[str, Any]:
        """A JSON description that `from_json` reads."""
        sides = [list(side) for side in self.sides]
        return {"sides": sides, "codebook_size": self.codebook_size, "order": "level by level, row by row"}

    @classmethod
    def from_json(cls, description: dict[str, Any]) -> CodeLayout:
        """Read what `to_json` wrote."""
        return cls(description["sides"], description["codebook_size"])

    def __str__(self) -> str:
        return f"sides {_spelled(self.sides)}, K {self.codebook_size}, {self.num_tokens} codes per picture"


class SizedCodes(torch.Tensor):
    """Codes (B, T) of pictures of another size than the tokenizer's own, with the layout to decode them by.

    What is done to them keeps the layout as long as they remain codes of such pictures: on another device, a part of
    the batch, concatenated. All else gives a plain tensor.

    Attributes:
        code_layout: Their layout (a tensor's own `layout` is where its memory is).
    """

    code_layout: CodeLayout

    @classmethod
    def of(cls, codes: torch.Tensor, layout: CodeLayout) -> SizedCodes:
        """Codes (B, T) with their layout."""
        sized = codes.as_subclass(cls)
        sized.code_layout = layout
        return sized

    def __deepcopy__(self, memo: Any) -> SizedCodes:
        """A copy of codes and layout; torch's own asks more of a subclass."""
        return SizedCodes.of(self.as_subclass(torch.Tensor).clone(), self.code_layout)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Hand the layout on."""
        result = super().__torch_function__(func, types, args, kwargs or {})
        if not isinstance(result, cls):
            return result
        operands = [item for arg in args for item in (arg if isinstance(arg, list | tuple) else [arg])]
        layouts = {operand.code_layout for operand in operands if isinstance(operand, cls)}
        layout = layouts.pop() if len(layouts) == 1 else None
        if layout is None or result.ndim != 2 or result.shape[1] != layout.num_tokens or result.is_floating_point():
            return result.as_subclass(torch.Tensor)
        result.code_layout = layout
        return result


def default_sides(height: int, width: int) -> tuple[Side, ...]:
    """Sides for a latent of (height, width): the published ones at 16 and 32, else the published curve, rescaled.

    Each axis follows the published list nearest in size; levels that fall together are kept once.
    """
    longest = max(height, width)
    published = _PUBLISHED_SIDES[16 if longest < 24 else 32]
    scaled = [(_scaled(s, published[-1], height), _scaled(s, published[-1], width)) for s in published]
    return tuple(dict.fromkeys(scaled))


def _scaled(side: int, published_grid: int, grid: int) -> int:
    return max(1, round(side * grid / published_grid))


def _pair(side: int | Sequence[int]) -> Side:
    h, w = (side, side) if isinstance(side, int) else side
    if h < 1 or w < 1:
        raise CodaError(f"side {h}x{w}: a level has at least one cell each way")
    return int(h), int(w)


def _spelled(sides: Sequence[Sequence[int]]) -> str:
    """Sides as a user writes them: 1 2 4, or 2x3 where a level is not square."""
    return " ".join(str(s[0]) if len(s) == 2 and s[0] == s[1] else "x".join(map(str, s)) for s in sides)
