"""Plain help for a terminal, made from a command's arguments and its docstring."""

from __future__ import annotations

import inspect
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .arguments import COMMON, Argument, arguments_of


def overview(program: str, summary: str, commands: Mapping[str, Callable[..., Any]]) -> str:
    """The page of `coda --help` or of a group such as `coda benchmark --help`."""
    version = " coda --version shows the version." if program == "coda" else ""
    return "\n\n".join(
        [
            summary,
            f"Usage: {program} COMMAND [--flag VALUE ...]",
            "Commands:\n" + _table({name: _sections(command)[0] for name, command in commands.items()}),
            f"{program} COMMAND --help explains a command.{version}",
        ]
    )


def command_page(name: str, command: Callable[..., Any]) -> str:
    """The page of one command."""
    summary, body, _ = _sections(command)
    arguments = arguments_of(command)
    words = [argument for argument in arguments if argument.positional]
    required = [argument for argument in arguments if argument.required and not argument.positional]
    flags = [argument for argument in arguments if not argument.required and not argument.positional]
    usage = " ".join(["coda", name, *map(_left, words), *map(_left, required), "[--flag VALUE ...]"])
    parts = [f"coda {name}: {summary}", f"Usage: {usage}", *map(_fill, body)]
    for title, chosen in (("Arguments", words), ("Required", required), ("Flags", flags), ("Every command", COMMON)):
        if chosen:
            parts.append(f"{title}:\n" + _table({_left(argument): _right(argument) for argument in chosen}))
    if found := examples(command):
        parts.append("Examples:\n" + textwrap.indent("\n".join(found), "  "))
    return "\n\n".join(parts)


def examples(command: Callable[..., Any]) -> list[str]:
    """The command lines that a command's help gives as examples."""
    return _sections(command)[2]


def _left(argument: Argument) -> str:
    if argument.positional:
        return argument.label + ("..." if argument.kind.many else "")
    if argument.kind.base is bool:
        return f"--no-{argument.word}" if argument.default is True else argument.label
    return f"{argument.label} {argument.kind.metavar}"


def _right(argument: Argument) -> str:
    default = argument.default
    if argument.required or default in (None, ()) or argument.kind.base is bool:
        return argument.help
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"{argument.help} [default: {shown}]"


def _sections(command: Callable[..., Any]) -> tuple[str, list[str], list[str]]:
    """Summary, further paragraphs and examples of a docstring."""
    head, _, tail = (inspect.getdoc(command) or "").partition("\n\nExamples:\n")
    summary, *body = head.split("\n\n")
    return " ".join(summary.split()), body, [line.strip() for line in tail.splitlines()]


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 110)


def _fill(paragraph: str) -> str:
    return textwrap.fill(" ".join(paragraph.split()), _width(), break_long_words=False, break_on_hyphens=False)


def _table(rows: Mapping[str, str]) -> str:
    """Two columns; a left side that is too long has a line of its own."""
    column = min(max(map(len, rows)) + 4, 34)
    lines: list[str] = []
    for left, right in rows.items():
        room = max(_width() - column, 24)
        wrapped: Sequence[str] = textwrap.wrap(right, room, break_long_words=False, break_on_hyphens=False) or [""]
        if len(left) + 4 > column:
            lines.append("  " + left)
        else:
            lines.append(("  " + left).ljust(column) + wrapped[0])
            wrapped = wrapped[1:]
        lines += [" " * column + line for line in wrapped]
    return "\n".join(line.rstrip() for line in lines)
