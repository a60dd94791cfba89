"""Command-line words, checked and turned into typed values against a function's signature before anything runs.

Python Fire guesses a value's type from how it looks and finds unknown flags only after the command ran. Here the
signature decides: parameters before `*` are positional words, those after it flags, and the annotation says what a
value may be: int, float, bool, str, Path, Literal, `tuple[X, ...]` (comma-separated or repeated), `X | None`, and
`Annotated` with one of the marks below. Strings stay strings: `--class 007` and `--out 1e3` are no numbers.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

EMPTY = inspect.Parameter.empty
COMMON_FLAGS = ("config", "dry-run", "debug", "help")


class UsageError(Exception):
    """Wrong usage: one line that says what was wrong and what would be right; exit status 2."""


class FailedRun(Exception):
    """What a `CodaError` is, for those who must not import torch; exit status 1."""


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
    """A value with a notation of its own: `parse` takes text (or a configuration's value) and raises ValueError."""

    parse: Callable[[Any], Any]
    what: str
    metavar: str


class Unsplit:
    """A list whose words may hold commas: repeated, but not split here."""


def parse_side(value: Any) -> int | tuple[int, int]:
    """One level's side: 4, "4" or "2x4" (height x width), as a number or a pair."""
    numbers = list(value) if isinstance(value, list | tuple) else str(value).split("x")
    if len(numbers) not in (1, 2) or not all(re.fullmatch(r"[1-9]\d*", str(number)) for number in numbers):
        raise ValueError
    height, width = (int(number) for number in (numbers[0], numbers[-1]))
    return height if height == width else (height, width)


def parse_device(value: Any) -> str:
    """A device's name as torch spells it, or "auto"."""
    if not isinstance(value, str) or not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
        raise ValueError
    return value


def parse_part(value: Any) -> str:
    """A share of a data set, "1/4" being the first of four."""
    match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", value) if isinstance(value, str) else None
    if not match or int(match[1]) > int(match[2]):
        raise ValueError
    return str(value)


def parse_box(value: Any) -> tuple[float, ...]:
    """Four numbers: left, top, right, bottom."""
    parts = list(value) if isinstance(value, list | tuple) else str(value).split(",")
    numbers = tuple(float(part) for part in parts if not isinstance(part, bool))
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError
    return numbers


def parse_region(value: Any) -> tuple[float, ...] | str:
    """A box, or the path of a mask image."""
    if not isinstance(value, str) or re.fullmatch(r"[-+0-9.,eE\s]+", value):
        return parse_box(value)
    return value


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, 2**62)]
Positive = Annotated[float, Range(0, open_low=True)]
Weight = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
Side = Annotated[Any, Parsed(parse_side, "a side like 4 or 2x4", "SIDE")]
Size = Annotated[Any, Parsed(parse_side, "a number of pixels like 256, or 192x256 (height x width)", "PIXELS")]
Device = Annotated[str, Parsed(parse_device, "a device: auto, cpu, cuda, cuda:1 or mps", "DEVICE")]
Box = Annotated[Any, Parsed(parse_box, "a box like 64,64,192,192: left,top,right,bottom", "L,T,R,B")]
Region = Annotated[
    Any, Parsed(parse_region, "a box like 64,64,192,192 (left,top,right,bottom) or a mask image", "L,T,R,B|PATH")
]
Part = Annotated[str, Parsed(parse_part, "a part like 1/4", "I/N")]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
TrainingPrecision = Literal["auto", "float32", "bfloat16"]
Extractor = Literal["auto", "inception", "efficientnet_lite0"]


@dataclass(frozen=True)
class Kind:
    """What one parameter takes."""

    base: Any
    optional: bool = False
    many: bool = False
    split: bool = True
    choices: tuple[Any, ...] = ()
    range: Range | None = None
    parsed: Parsed | None = None

    @property
    def metavar(self) -> str:
        """How help names a value."""
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


@dataclass(frozen=True)
class Argument:
    """One parameter of a command, seen from the command line."""

    name: str
    kind: Kind
    default: Any
    positional: bool

    @property
    def word(self) -> str:
        """The name with hyphens: `class_` is "class", `batch_size` is "batch-size"."""
        return self.name.rstrip("_").replace("_", "-")

    @property
    def label(self) -> str:
        """How messages and help name it: "--batch-size", or "IMAGE" for a positional word."""
        return self.word.upper() if self.positional else f"--{self.word}"

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is EMPTY


def arguments_of(function: Callable[..., Any]) -> list[Argument]:
    """The arguments of a command function, in the order of its signature."""
    hints = get_type_hints(function, include_extras=True)
    return [
        Argument(p.name, _kind(hints[p.name]), p.default, positional=p.kind is not inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(function).parameters.values()
    ]


def _kind(hint: Any) -> Kind:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        kind = _kind(parts[0])
        for mark in parts[1:]:
            if mark is Unsplit:
                kind = Kind(**{**vars(kind), "split": False})
            else:
                kind = Kind(**{**vars(kind), "range" if isinstance(mark, Range) else "parsed": mark})
        return kind
    if origin in (Union, types.UnionType):
        (rest,) = (part for part in parts if part is not types.NoneType)
        return Kind(**{**vars(_kind(rest)), "optional": True})
    if origin is tuple:
        assert parts[1:] == (...,), f"only tuple[X, ...] is a list flag, not {hint}"
        return Kind(**{**vars(_kind(parts[0])), "many": True})
    if origin is Literal:
        return Kind(type(parts[0]), choices=parts)
    assert hint in (int, float, bool, str, Path, Any), f"no command-line notation for {hint}"
    return Kind(hint)


def convert(text: str, argument: Argument) -> Any:
    """One word of the command line as a value; UsageError where it is none."""
    kind = argument.kind
    if kind.optional and text == "none" and (kind.base not in (str, Path) or kind.choices or kind.parsed):
        return None
    try:
        if kind.many:
            words = text.split(",") if kind.split else [text]
            return tuple(_one(word.strip() if kind.split else word, kind) for word in words)
        return _one(text, kind)
    except ValueError:
        several = " (several: comma-separated)" if kind.many and kind.split else ""
        raise UsageError(f'{argument.label} "{text}" is not {kind.what}{several}') from None


def _one(text: str, kind: Kind) -> Any:
    """One element; ValueError where the text is none."""
    if not text:
        raise ValueError
    if kind.parsed:
        return kind.parsed.parse(text)
    if kind.choices:
        return (
            next(choice for choice in kind.choices if str(choice) == text) if text in map(str, kind.choices) else _no()
        )
    if kind.base is bool:
        return {"true": True, "false": False}[text] if text in ("true", "false") else _no()
    if kind.base is int:
        return _within(int(text), kind) if re.fullmatch(r"[+-]?[0-9]+", text) else _no()
    if kind.base is float:
        number = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", text)
        return _within(float(text), kind) if number else _no()
    return Path(text) if kind.base is Path else text


def convert_config(value: Any, argument: Argument) -> Any:
    """A value of a configuration file (already of a JSON or TOML type); UsageError where it is of another type."""
    kind = argument.kind
    if value is None and kind.optional:
        return None
    try:
        if kind.many:
            return tuple(_typed(item, kind) for item in (value if isinstance(value, list) else [value]))
        return _typed(value, kind)
    except ValueError:
        raise UsageError(f"{argument.word} = {value!r} is not {kind.what}") from None


def _typed(value: Any, kind: Kind) -> Any:
    if kind.parsed:
        return kind.parsed.parse(value)
    if kind.choices:
        return value if value in kind.choices else _no()
    if kind.base is bool:
        return value if isinstance(value, bool) else _no()
    if kind.base in (int, float):
        right = isinstance(value, int if kind.base is int else int | float) and not isinstance(value, bool)
        return _within(kind.base(value), kind) if right else _no()
    return kind.base(value) if isinstance(value, str) and value else _no()


def _within(number: Any, kind: Kind) -> Any:
    return number if math.isfinite(number) and (kind.range is None or kind.range.holds(number)) else _no()


def _no() -> Any:
    raise ValueError


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a message, "; did you mean X?", where a known word is like `word`; else nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def parse(words: Sequence[str], arguments: Sequence[Argument]) -> dict[str, Any]:
    """What the words give: typed values by parameter name, without those that were not given.

    `--config`, `--dry-run` and `--debug` are the caller's: they must have been taken out before.

    Raises:
        UsageError: An unknown flag, a missing or ill-typed value, a flag given twice, a word too many.
    """
    flags = {f"--{argument.word}": argument for argument in arguments}
    places = [argument for argument in arguments if argument.positional]
    given: dict[str, Any] = {}
    rest = list(words)
    only_words = False
    while rest:
        word = rest.pop(0)
        if word == "--" and not only_words:
            only_words = True
        elif only_words or not _looks_like_flag(word):
            argument = next((place for place in places if place.name not in given or place.kind.many), None)
            if argument is None:
                raise UsageError(f'unexpected "{word}"' + (": flags take their value as --flag VALUE" if given else ""))
            _add(given, argument, word)
        else:
            name, equals, text = word.partition("=")
            argument = flags.get(name)
            if argument is None and not equals and name.startswith("--no-"):
                argument = flags.get(f"--{name.removeprefix('--no-')}")
                if argument is not None and argument.kind.base is bool:
                    _add(given, argument, "false")
                    continue
                argument = None
            if argument is None:
                known = [*flags, *(f"--no-{a.word}" for a in arguments if a.kind.base is bool)]
                raise UsageError(f"unknown flag {name}" + nearest(name, [*known, *(f"--{f}" for f in COMMON_FLAGS)]))
            if argument.kind.base is bool and not equals:
                text = "true"
            elif not equals:
                if not rest or rest[0] == "--" or _looks_like_flag(rest[0]):
                    raise UsageError(f"{name} needs a value: {argument.kind.what}")
                text = rest.pop(0)
            _add(given, argument, text)
    return given


def _add(given: dict[str, Any], argument: Argument, text: str) -> None:
    value = convert(text, argument)
    if argument.kind.many and value is not None and given.get(argument.name) is not None:
        value = given[argument.name] + value
    elif argument.name in given:
        raise UsageError(f"{argument.label} is given twice")
    given[argument.name] = value


def _looks_like_flag(word: str) -> bool:
    """Whether a word begins with a hyphen and is neither a number ("-5", "-.5") nor "-" alone."""
    return word.startswith("-") and word != "-" and not re.match(r"-\.?[0-9]", word)


def resolve(
    given: Mapping[str, Any], arguments: Sequence[Argument], config: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Every parameter's value: what was given, else the configuration's, else the default.

    Args:
        given: What `parse` returned.
        arguments: The command's.
        config: A configuration file's contents; names with hyphens or underscores.

    Raises:
        UsageError: A required value is missing; the configuration has an unknown key or an ill-typed value.
    """
    by_word = {argument.word: argument for argument in arguments}
    configured: dict[str, Any] = {}
    for key, value in (config or {}).items():
        argument = by_word.get(key.rstrip("_").replace("_", "-"))
        if argument is None:
            raise UsageError(f"unknown key {key!r} in the configuration" + nearest(key, list(by_word)))
        if argument.name in configured:
            raise UsageError(f"{argument.word} is given twice in the configuration")
        configured[argument.name] = convert_config(value, argument)
    values = {}
    for argument in arguments:
        values[argument.name] = {**configured, **given}.get(argument.name, argument.default)
        if values[argument.name] is EMPTY:
            raise UsageError(f"{argument.label} is missing: {argument.kind.what}")
    return values


def to_json(values: Mapping[str, Any], arguments: Sequence[Argument]) -> dict[str, Any]:
    """Resolved values as a configuration file holds them, by flag name."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return {argument.word: plain(values[argument.name]) for argument in arguments}
