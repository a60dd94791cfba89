"""Arguments of a command: found in its signature, checked against it, and turned into typed values.

Parameters before `*` are positional words, those after it flags. A parameter whose annotation is a `Settings` class
stands for that class's fields: each of them is a flag, and the command gets the object. Python Fire splits the words
and calls the command; what is here is what Fire cannot do: find unknown flags and missing values before anything runs,
name the nearest flag, and hold values to their types and bounds. Strings stay strings: `--class 007` is not a number.
"""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.settings import Kind, Settings, kind_of

EMPTY = inspect.Parameter.empty
_NUMBERS = {int: r"[+-]?[0-9]+", float: r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"}
_TRUTHS = {"true": True, "false": False}


class UsageError(Exception):
    """Wrong usage: one line that says what was wrong and what would be right; exit status 2."""


@dataclass(frozen=True)
class Help:
    """A line of help for a parameter that is not a settings class: `Annotated[Path, Help("Output directory.")]`."""

    text: str


class Without:
    """Fields of a settings class that a command does not offer: `Annotated[RunOptions, Without("strict")]`."""

    def __init__(self, *names: str) -> None:
        self.names = names


class Presets:
    """Words that stand for values of other flags: `Annotated[str | None, Presets({"small": {"width": 8}}), Help(…)]`.

    The configuration and the flags on the command line win over them.
    """

    def __init__(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        self.values = values


@dataclass(frozen=True)
class Argument:
    """One argument of a command: a parameter, or a field of the settings class `group[1]` of the parameter `group[0]`.

    The name with hyphens is the flag: `class_` is --class, `batch_size` is --batch-size.
    """

    name: str
    kind: Kind
    default: Any
    help: str
    positional: bool = False
    group: tuple[str, type[Settings]] | None = None
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def word(self) -> str:
        """The name with hyphens."""
        return self.name.rstrip("_").replace("_", "-")

    @property
    def label(self) -> str:
        """How messages and help name it: "--batch-size", or "IMAGE" for a positional word."""
        return self.word.upper() if self.positional else f"--{self.word}"

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        return self.default is EMPTY


def _common(name: str, hint: Any, help: str) -> Argument:
    return Argument(name, kind_of(hint), None if hint is not bool else False, help)


# Flags of every command.
COMMON = (
    _common("config", Path, "Defaults for the flags above, in JSON or TOML; flags on the command line win."),
    _common("dry_run", bool, "Print the settings as JSON and do nothing; the output is a valid --config."),
    _common("debug", bool, "Show the traceback of an error."),
    _common("help", bool, "Show this page."),
)


def arguments_of(command: Callable[..., Any]) -> list[Argument]:
    """The arguments of a command, in the order of its signature."""
    hints = get_type_hints(command, include_extras=True)
    found: list[Argument] = []
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        base, *marks = get_args(hint) if get_origin(hint) is Annotated else [hint]
        if isinstance(base, type) and issubclass(base, Settings):
            left_out = {name for mark in marks if isinstance(mark, Without) for name in mark.names}
            group = (parameter.name, base)
            found += [
                Argument(entry.name, entry.kind, entry.default, entry.help, group=group)
                for entry in base.declared()
                if entry.name not in left_out
            ]
        else:
            (text,) = (mark.text for mark in marks if isinstance(mark, Help))
            positional = parameter.kind is not inspect.Parameter.KEYWORD_ONLY
            presets = next((mark.values for mark in marks if isinstance(mark, Presets)), {})
            kind = replace(kind_of(hint), choices=tuple(presets)) if presets else kind_of(hint)
            found.append(Argument(parameter.name, kind, parameter.default, text, positional, presets=presets))
    return found


def fire_words(words: Sequence[str], arguments: Sequence[Argument]) -> list[str]:
    """Check the words of a command line, and spell them as `--name=text`, which Fire cannot misread.

    The text of a list is a JSON list of its elements; `convert` takes it apart.

    Raises:
        UsageError: An unknown flag, a missing value, a flag given twice, or a word too many.
    """
    flags = {f"--{argument.word}": argument for argument in arguments}
    texts: dict[str, list[str]] = {}
    rest, only_words = list(words), False
    while rest:
        text = rest.pop(0)
        if text == "--" and not only_words:
            only_words = True
            continue
        argument: Argument | None
        if not only_words and _looks_like_flag(text):
            argument, text = _read_flag(text, rest, flags)
        else:
            places = (a for a in arguments if a.positional and (a.kind.many or a.name not in texts))
            argument = next(places, None)
        if argument is None:
            raise UsageError(f'unexpected "{text}": flags are written --flag VALUE')
        if argument.name in texts and not argument.kind.many:
            raise UsageError(f"{argument.label} is given twice")
        split = argument.kind.many and argument.kind.split
        texts.setdefault(argument.name, []).extend(map(str.strip, text.split(",")) if split else [text])
    many = {argument.name for argument in arguments if argument.kind.many}
    return [f"--{name}={json.dumps(found) if name in many else found[0]}" for name, found in texts.items()]


def _read_flag(word: str, rest: list[str], flags: Mapping[str, Argument]) -> tuple[Argument, str]:
    """The flag that `word` begins, and the text of its value, which is taken from `rest` if it is not in `word`."""
    name, equals, text = word.partition("=")
    switches = {f"--no-{argument.word}": argument for argument in flags.values() if argument.kind.base is bool}
    if name in switches and name not in flags and not equals:
        return switches[name], "false"
    if name not in flags:
        raise UsageError(f"unknown flag {name}" + nearest(name, [*flags, *switches]))
    argument = flags[name]
    if equals:
        return argument, text
    if argument.kind.base is bool:
        if rest and rest[0].lower() in (*_TRUTHS, "yes", "no", "on", "off"):
            raise UsageError(f"{name} takes no value: write {name} or --no-{argument.word}, not {name} {rest[0]}")
        return argument, "true"
    if not rest or rest[0] == "--" or _looks_like_flag(rest[0]):
        raise UsageError(f"{name} needs a value: {argument.kind.what}")
    return argument, rest.pop(0)


def _looks_like_flag(word: str) -> bool:
    """Whether a word begins with a hyphen and is neither a number ("-5", "-.5") nor "-" alone."""
    return word.startswith("-") and word != "-" and not re.match(r"-\.?[0-9]", word)


def nearest(word: str, known: Sequence[str]) -> str:
    """The end of a message, "; did you mean X?", if a known word is like `word`; otherwise nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f"; did you mean {found[0]}?" if found else ""


def convert(argument: Argument, text: str) -> Any:
    """The value of one of `fire_words`; Fire calls this to parse the text of `argument`.

    Raises:
        UsageError: If the text does not fit the argument's type and bounds.
    """
    kind = argument.kind
    texts = json.loads(text) if kind.many else [text]
    if kind.optional and texts == ["none"] and (kind.base not in (str, Path) or kind.choices or kind.parsed):
        return None
    values = tuple(_convert_one(argument, one) for one in texts)
    return values if kind.many else values[0]


def _convert_one(argument: Argument, text: str) -> Any:
    kind = argument.kind
    try:
        value: Any = text or None
        if kind.choices:
            value = next((choice for choice in kind.choices if str(choice) == text), None)
        elif kind.base is bool:
            value = _TRUTHS.get(text)
        elif kind.base in _NUMBERS and not kind.parsed:
            value = kind.base(text) if re.fullmatch(_NUMBERS[kind.base], text) else None
        if value is not None:
            return kind.check_one(value)
    except ValueError:
        pass
    several = " (several: comma-separated)" if kind.many and kind.split else ""
    raise UsageError(f'{argument.label} "{text}" is not {kind.what}{several}')


def resolve(given: Mapping[str, Any], arguments: Iterable[Argument], config: Mapping[str, Any]) -> dict[str, Any]:
    """Every argument's value by name: the one given, else the configuration's, the preset's, or the default.

    Args:
        given: Values from the command line, by name.
        arguments: The command's.
        config: Contents of a configuration file; names with hyphens or underscores.

    Raises:
        UsageError: A required value is missing; the configuration has an unknown key or a value of another type.
    """
    by_word = {argument.word: argument for argument in arguments}
    configured: dict[str, Any] = {}
    for key, value in config.items():
        argument = by_word.get(key.rstrip("_").replace("_", "-"))
        if argument is None:
            raise UsageError(f"unknown key {key!r} in the configuration" + nearest(key, list(by_word)))
        if argument.name in configured:
            raise UsageError(f"{argument.word} is given twice in the configuration")
        try:
            configured[argument.name] = argument.kind.check(value)
        except ValueError:
            raise UsageError(f"{argument.word} = {value!r} is not {argument.kind.what}") from None
    values = {argument.name: argument.default for argument in by_word.values()} | configured | dict(given)
    chosen = (argument.presets.get(values[argument.name], {}) for argument in by_word.values() if argument.presets)
    values |= {name: value for preset in chosen for name, value in preset.items() if name not in {*configured, *given}}
    for argument in by_word.values():
        if values[argument.name] is EMPTY:
            raise UsageError(f"{argument.label} is missing: {argument.kind.what}")
    return values


def to_json(values: Mapping[str, Any], arguments: Iterable[Argument]) -> dict[str, Any]:
    """Resolved values as a configuration file holds them, by flag name."""
    return json.loads(json.dumps({argument.word: values[argument.name] for argument in arguments}, default=str))


def parameters(values: Mapping[str, Any], arguments: Iterable[Argument]) -> dict[str, Any]:
    """Resolved values as the command's parameters: fields of a settings class are gathered in an object of it.

    Raises:
        UsageError: If two settings do not go together.
    """
    found: dict[str, Any] = {}
    fields: dict[tuple[str, type[Settings]], dict[str, Any]] = {}
    for argument in arguments:
        if argument.group is None:
            found[argument.name] = values[argument.name]
        else:
            fields.setdefault(argument.group, {})[argument.name] = values[argument.name]
    try:
        return found | {name: settings(**chosen) for (name, settings), chosen in fields.items()}
    except CodaError as error:
        raise UsageError(str(error)) from error
