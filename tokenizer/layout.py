"""The layout of an image's codes: level by level, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch

from .foundation.bounds import check_integer
from .foundation.errors import CodaError, shown

Grid = tuple[int, int]

_MOST_LEVELS = 256
_LARGEST_SIDE = 4096
_LARGEST_CODEBOOK = 1 << 24

# The published sides (paper, Section 4.1) for latents of 16×16 and 32×32.
_PUBLISHED_SIDES = {16: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), 32: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32)}


@dataclass(frozen=True)
class CodeLayout:
    """Sides of the levels and size of the codebook, which determine the order of the codes.

    An image's codes are one row of `num_tokens` integers: all of level 0, then all of level 1, …, each level row by
    row. The last level's side is the grid of the latent.

    Args:
        sides: (h_l, w_l) per level; an integer stands for a square.
        codebook_size: K; codes are in [0, K).

    Raises:
        CodaError: If sides or codebook size are not numbers within reason.
    """

    sides: tuple[Grid, ...]
    codebook_size: int

    def __init__(self, sides: Sequence[int | Sequence[int]], codebook_size: int) -> None:
        if not isinstance(sides, Sequence) or isinstance(sides, str) or not 1 <= len(sides) <= _MOST_LEVELS:
            raise CodaError(f"a layout needs at least one level and at most {_MOST_LEVELS}, for example sides 1 2 4")
        pairs = tuple(_pair(side) for side in sides)
        if any(h > pairs[-1][0] or w > pairs[-1][1] for h, w in pairs):
            raise CodaError(f"sides {_spelled(pairs)}: the last level must be the largest, it is the latent's grid")
        object.__setattr__(self, "sides", pairs)
        object.__setattr__(self, "codebook_size", check_integer("codebook size", codebook_size, 2, _LARGEST_CODEBOOK))

    @property
    def num_levels(self) -> int:
        """Number of levels L."""
        return len(self.sides)

    @property
    def num_tokens(self) -> int:
        """T, codes per image in all levels together."""
        return sum(h * w for h, w in self.sides)

    @property
    def grid(self) -> Grid:
        """(h, w) of the latent."""
        return self.sides[-1]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Index of each level's first code, and `num_tokens`: L + 1 numbers."""
        return tuple(accumulate((h * w for h, w in self.sides), initial=0))

    @property
    def dtype_on_disk(self) -> torch.dtype:
        """Narrowest unsigned integer type that holds every code."""
        if self.codebook_size <= 1 << 8:
            return torch.uint8
        return torch.uint16 if self.codebook_size <= 1 << 16 else torch.uint32

    def scaled(self, grid: Grid) -> CodeLayout:
        """Layout for a latent of another grid: the same number of levels, each scaled along both axes.

        A cell of a level covers the same fraction of the latent as before; each level has at least one cell.
        """
        height, width = self.grid
        sides = [(_scaled(h, height, grid[0]), _scaled(w, width, grid[1])) for h, w in self.sides]
        return CodeLayout(sides, self.codebook_size)

    def split(self, codes: torch.Tensor) -> list[torch.Tensor]:
        """Split codes (B, T) into one grid per level, [(B, h_l, w_l)]."""
        if codes.ndim != 2 or codes.shape[1] != self.num_tokens:
            expected = f"(B, {self.num_tokens}) for sides {_spelled(self.sides)}"
            raise CodaError(f"codes have shape {tuple(codes.shape)}, expected {expected}")
        flat = codes.split([h * w for h, w in self.sides], dim=1)
        return [part.reshape(-1, h, w) for part, (h, w) in zip(flat, self.sides, strict=True)]

    def join(self, levels: Sequence[torch.Tensor]) -> torch.Tensor:
        """Inverse of `split`: join grids [(B, h_l, w_l)] into codes (B, T)."""
        shapes = tuple(tuple(level.shape[1:]) for level in levels)
        if shapes != self.sides:
            raise CodaError(f"levels have sides {_spelled(shapes)}, expected {_spelled(self.sides)}")
        return torch.cat([level.flatten(1) for level in levels], dim=1)

    def to_json(self) -> dict[str, Any]:
        """JSON description for `from_json`."""
        sides = [list(side) for side in self.sides]
        return {"sides": sides, "codebook_size": self.codebook_size, "order": "level by level, row by row"}

    @classmethod
    def from_json(cls, description: dict[str, Any]) -> CodeLayout:
        """Read a description that `to_json` wrote.

        Raises:
            CodaError: If it is damaged.
        """
        if not isinstance(description, dict) or not {"sides", "codebook_size"} <= description.keys():
            raise CodaError("the layout is damaged: expected an object with sides and codebook_size")
        return cls(description["sides"], description["codebook_size"])

    def __str__(self) -> str:
        return f"sides {_spelled(self.sides)}, K {self.codebook_size}, {self.num_tokens} codes per image"


def default_sides(height: int, width: int) -> tuple[Grid, ...]:
    """Sides for a latent of height × width: the published ones at 16 and 32, otherwise rescaled from these.

    Both axes follow the published list that is nearest in size; equal levels are kept once.
    """
    longest = max(height, width)
    published = _PUBLISHED_SIDES[16 if longest < 24 else 32]
    scaled = [(_scaled(s, published[-1], height), _scaled(s, published[-1], width)) for s in published]
    return tuple(dict.fromkeys(scaled))


def _scaled(side: int, published_grid: int, grid: int) -> int:
    return max(1, round(side * grid / published_grid))


def _pair(side: int | Sequence[int]) -> Grid:
    pair = side if isinstance(side, list | tuple) else (side, side)
    if len(pair) != 2:
        raise CodaError(f"side {shown(repr(side))[:60]}: expected a number or a pair (h, w)")
    h, w = (check_integer(f"side {_spelled([pair])}", length, 1, _LARGEST_SIDE) for length in pair)
    return h, w


def _spelled(sides: Sequence[Sequence[int]]) -> str:
    """Sides as on the command line: 1 2 4, or 2x3 if a level is not square."""
    return " ".join(str(s[0]) if len(s) == 2 and s[0] == s[1] else "x".join(map(str, s)) for s in sides)
