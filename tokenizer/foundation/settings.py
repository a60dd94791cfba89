"""Settings: frozen dataclasses whose fields are declared once, with type, bounds, default and one line of help.

Everything else is made from the fields: the check of a value, the command line's flags, `--help`, `--config`,
`--dry-run`, what a run directory compares and what a model card prints. Imports no torch.

    @dataclass(frozen=True)
    class DenoiseSettings(Settings):
        steps: Count = setting(100, "Optimizer steps.")
        size: Size | None = setting(None, "Image size in pixels; by default that of the first image.")

A field's type is int, float, bool, str, Path, Literal, `tuple[X, ...]`, `X | None`, or `Annotated` with one of the
marks below.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import numbers
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self, Union, get_args, get_origin, get_type_hints

from .errors import CodaError


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included unless `open_low`."""

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` lies inside."""
        return (self.low < value if self.open_low else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        low = f"{'more than' if self.open_low else 'at least'} {self.low:g}" if self.low > -math.inf else ""
        high = f"at most {self.high:g}" if self.high < math.inf else ""
        return " and ".join(part for part in (low, high) if part)


@dataclass(frozen=True)
class Parsed:
    """A value with a notation of its own: `parse` takes text or a Python value, and raises ValueError."""

    parse: Callable[[Any], Any]
    what: str
    metavar: str


@dataclass(frozen=True)
class Choices:
    """One of a list of words, where the list is a constant of the library."""

    words: tuple[str, ...]


class Derived:
    """A setting that may be left at None: its class fills it in, and nobody else sees None."""


class Unsplit:
    """A list whose words may contain commas: the flag is repeated, its value is not split."""


@dataclass(frozen=True)
class Kind:
    """The values that one setting takes."""

    base: Any
    optional: bool = False
    many: bool = False
    split: bool = True
    choices: tuple[Any, ...] = ()
    range: Range | None = None
    parsed: Parsed | None = None

    @property
    def metavar(self) -> str:
        """How help shows a value."""
        if self.choices:
            return "|".join(map(str, self.choices)) + (",..." if self.many and self.split else "")
        names = {int: "INT", float: "NUMBER", Path: "PATH", str: "TEXT"}
        one = self.parsed.metavar if self.parsed else names[self.base]
        return one + (",..." if self.many and self.split else "")

    @property
    def what(self) -> str:
        """One value in words, for error messages."""
        if self.parsed:
            return self.parsed.what
        if self.choices:
            return "one of " + ", ".join(map(str, self.choices))
        words = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
        return words.get(self.base, "text") + (f", {self.range}" if self.range else "")

    def check(self, value: Any) -> Any:
        """A Python or JSON value, normalized (lists become tuples); ValueError if it is of another kind."""
        if value is None and self.optional:
            return None
        if self.many:
            return tuple(self.check_one(item) for item in (value if isinstance(value, list | tuple) else [value]))
        return self.check_one(value)

    def check_one(self, value: Any) -> Any:
        """One element, as `check`."""
        if self.parsed:
            return self.parsed.parse(value)
        if self.choices:
            right = value in self.choices
        elif self.base is bool:
            right = isinstance(value, bool)
        elif self.base in (int, float):
            number = numbers.Integral if self.base is int else numbers.Real
            right = isinstance(value, number) and not isinstance(value, bool) and self.in_range(value)
            value = self.base(value) if right else value
        else:
            right = isinstance(value, str | Path) and bool(str(value))
            value = self.base(value) if right else value
        if not right:
            raise ValueError
        return value

    def in_range(self, number: Any) -> bool:
        """Whether a number is finite and within the bounds."""
        return math.isfinite(number) and (self.range is None or self.range.holds(number))


def kind_of(hint: Any) -> Kind:
    """The kind that a type annotation stands for."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind = kind_of(parts[0])
        for mark in parts[1:]:
            if mark is Unsplit:
                kind = replace(kind, split=False)
            elif mark is Derived:
                kind = replace(kind, optional=True)
            elif isinstance(mark, Choices):
                kind = replace(kind, choices=mark.words)
            elif isinstance(mark, Range):
                kind = replace(kind, range=mark)
            elif isinstance(mark, Parsed):
                kind = replace(kind, parsed=mark)
        return kind
    if origin in (Union, types.UnionType):
        (rest,) = (part for part in parts if part is not types.NoneType)
        return replace(kind_of(rest), optional=True)
    if origin is tuple:
        assert parts[1:] == (...,), f"only tuple[X, ...] is a list, not {hint}"
        return replace(kind_of(parts[0]), many=True)
    if origin is Literal:
        return Kind(type(parts[0]), choices=parts)
    assert hint in (int, float, bool, str, Path, Any), f"{hint} is not a type of settings"
    return Kind(hint)


@dataclass(frozen=True)
class Setting:
    """One field of a settings class."""

    name: str
    kind: Kind
    default: Any
    help: str


def setting(default: Any, help: str) -> Any:
    """A field of a settings class: its default and one line of help; type and bounds are the annotation's."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Settings:
    """Base of settings classes: every value is checked against its field.

    Raises:
        CodaError: If a value is of another type or out of bounds.
    """

    def __post_init__(self) -> None:
        for entry in self.declared():
            value = getattr(self, entry.name)
            try:
                object.__setattr__(self, entry.name, entry.kind.check(value))
            except ValueError:
                raise CodaError(f"{entry.name} {value!r} is not {entry.kind.what}") from None

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """The settings found among `values`; the others keep their defaults."""
        return cls(**{entry.name: values[entry.name] for entry in cls.declared() if entry.name in values})

    @classmethod
    def declared(cls) -> list[Setting]:
        """The fields: the class's own in the order of their declaration, then those of its base classes."""
        hints, own = get_type_hints(cls, include_extras=True), inspect.get_annotations(cls)
        fields = sorted(dataclasses.fields(cls), key=lambda found: found.name not in own)
        return [Setting(f.name, kind_of(hints[f.name]), f.default, f.metadata["help"]) for f in fields]


def parse_side(value: Any) -> int | tuple[int, int]:
    """One level's side: 4, "4" or "2x4" (height x width), as a number or a pair."""
    parts = list(value) if isinstance(value, list | tuple) else str(value).split("x")
    if len(parts) not in (1, 2) or not all(re.fullmatch(r"[1-9]\d*", str(part)) for part in parts):
        raise ValueError
    height, width = int(parts[0]), int(parts[-1])
    return height if height == width else (height, width)


def parse_device(value: Any) -> str:
    """A device's name as torch spells it, or "auto"."""
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError
    return value


def parse_part(value: Any) -> str:
    """A share of a data set; "1/4" is the first of four."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", value) if isinstance(value, str) else None
    if not match or int(match[1]) > int(match[2]):
        raise ValueError
    return str(value)


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**62)]
Positive = Annotated[float, Range(0, open_low=True)]
Weight = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Side = Annotated[Any, Parsed(parse_side, "a side like 4 or 2x4", "SIDE")]
Size = Annotated[Any, Parsed(parse_side, "a number of pixels like 256, or 192x256 (height x width)", "PIXELS")]
Device = Annotated[str, Parsed(parse_device, "a device: auto, cpu, cuda, cuda:1 or mps", "DEVICE")]
Part = Annotated[str, Parsed(parse_part, "a part of the form i/n, such as 2/4", "I/N")]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
TrainingPrecision = Literal["auto", "float32", "bfloat16"]
OptimizerName = Literal["adamw", "muon"]
OPTIMIZER_HELP = "adamw, or muon for hidden matrices and convolutions with adamw for the rest."
