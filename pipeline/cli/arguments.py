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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from coda.tokenizer.foundation.settings import (  # noqa: F401
    Count,
    Device,
    Fraction,
    Kind,
    Natural,
    Parsed,
    Part,
    Positive,
    Precision,
    Range,
    Seed,
    Side,
    Size,
    TrainingPrecision,
    Unsplit,
    Weight,
    kind_of,
)

EMPTY = inspect.Parameter.empty
COMMON_FLAGS = ("config", "dry-run", "debug", "help")


class UsageError(Exception):
    """Wrong usage: one line that says what was wrong and what would be right; exit status 2."""


class FailedRun(Exception):
    """What a `CodaError` is, for those who must not import torch; exit status 1."""


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


Box = Annotated[Any, Parsed(parse_box, "a box like 64,64,192,192: left,top,right,bottom", "L,T,R,B")]
Region = Annotated[
    Any, Parsed(parse_region, "a box like 64,64,192,192 (left,top,right,bottom) or a mask image", "L,T,R,B|PATH")
]
Extractor = Literal["auto", "inception", "efficientnet_lite0"]


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
        Argument(p.name, kind_of(hints[p.name]), p.default, positional=p.kind is not inspect.Parameter.KEYWORD_ONLY)
        for p in inspect.signature(function).parameters.values()
    ]


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
    try:
        return argument.kind.check(value)
    except ValueError:
        raise UsageError(f"{argument.word} = {value!r} is not {argument.kind.what}") from None


def _within(number: Any, kind: Kind) -> Any:
    return number if kind.in_range(number) else _no()


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
