"""Checks of numbers that a model's config gives, before anything is allocated for them."""

from __future__ import annotations

import math
import numbers

from .errors import CodaError, shown


def check_integer(name: str, value: object, low: int, high: int) -> int:
    """`value` as an int.

    Raises:
        CodaError: If it is not an integer in [low, high].
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool) and low <= int(value) <= high:
        return int(value)
    raise CodaError(f"{name} is {_short(value)}; expected an integer from {low:,} to {high:,}")


def check_number(name: str, value: object, low: float = -math.inf, positive: bool = False) -> float:
    """`value` as a float.

    Raises:
        CodaError: If it is not a finite number, is below `low`, or is not positive although it must be.
    """
    number = float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else math.nan
    if math.isfinite(number) and number >= low and (number > 0 or not positive):
        return number
    bound = " above 0" if positive else f" of at least {low:g}" if low > -math.inf else ""
    raise CodaError(f"{name} is {_short(value)}; expected a finite number{bound}")


def _short(value: object) -> str:
    text = shown(repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
