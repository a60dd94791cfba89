"""Plain help for a terminal, made from a command's signature and its Google-style docstring."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .arguments import Argument, arguments_of

COMMON = {
    "--config FILE": "Defaults for the flags above, in JSON or TOML; flags given here win.",
    "--dry-run": "Print the settings as JSON and do nothing; the output is a valid --config.",
    "--debug": "Show the traceback of an error.",
    "--help": "Show this page.",
}


def overview(program: str, summary: str, commands: Mapping[str, Callable[..., Any]]) -> str:
    """The page of `coda --help` or of a group such as `coda benchmark --help`."""
    rows = {name: _sections(command)[0] for name, command in commands.items()}
    return "\n".join(
        [
            summary,
            "",
            f"Usage: {program} COMMAND [--flag VALUE ...]",
            "",
            "Commands:",
            _table(rows),
            "",
            f"{program} COMMAND --help explains a command." + (" coda --version." if program == "coda" else ""),
        ]
    )


def command_page(name: str, command: Callable[..., Any]) -> str:
    """The page of one command."""
    summary, body, described, examples = _sections(command)
    arguments = arguments_of(command)
    words = " ".join(a.label + ("..." if a.kind.many else "") for a in arguments if a.positional)
    required = " ".join(f"{a.label} {a.kind.metavar}" for a in arguments if a.required and not a.positional)
    usage = " ".join(part for part in ("coda", name, words, required, "[--flag VALUE ...]") if part)
    parts = [f"coda {name}: {summary}", f"Usage: {usage}"]
    parts += [_fill(paragraph) for paragraph in body]
    for title, chosen in (
        ("Arguments", [a for a in arguments if a.positional]),
        ("Required", [a for a in arguments if a.required and not a.positional]),
        ("Flags", [a for a in arguments if not a.required and not a.positional]),
    ):
        if chosen:
            parts.append(f"{title}:\n" + _table({_left(a): _right(a, described[a.name]) for a in chosen}))
    parts.append("Every command:\n" + _table(COMMON))
    if examples:
        parts.append("Examples:\n" + textwrap.indent(examples, "  "))
    return "\n\n".join(parts)


def _left(argument: Argument) -> str:
    if argument.positional:
        return argument.label + ("..." if argument.kind.many else "")
    if argument.kind.base is bool:
        return f"--no-{argument.word}" if argument.default is True else argument.label
    return f"{argument.label} {argument.kind.metavar}"


def _right(argument: Argument, text: str) -> str:
    default = argument.default
    if argument.required or default is None or argument.kind.base is bool:
        return text
    shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
    return f"{text} [default: {shown}]" if shown else text


def _sections(command: Callable[..., Any]) -> tuple[str, list[str], dict[str, str], str]:
    """Summary, further paragraphs, text per argument and examples of a Google-style docstring."""
    doc = inspect.getdoc(command) or ""
    head, *sections = re.split(r"^(Args|Returns|Raises|Examples):\n", doc, flags=re.MULTILINE)
    found = dict(zip(sections[::2], sections[1::2], strict=True))
    summary, *body = [paragraph.strip() for paragraph in head.split("\n\n") if paragraph.strip()]
    described = {
        match[1]: " ".join(match[2].split())
        for match in re.finditer(r"^    (\w+): (.*(?:\n        .*)*)", found.get("Args", ""), flags=re.MULTILINE)
    }
    return " ".join(summary.split()), body, described, textwrap.dedent(found.get("Examples", "")).strip()


def _width() -> int:
    return min(shutil.get_terminal_size().columns, 110)


def _fill(paragraph: str) -> str:
    return textwrap.fill(" ".join(paragraph.split()), _width(), break_long_words=False, break_on_hyphens=False)


def _table(rows: Mapping[str, str]) -> str:
    """Two columns; a left side that is too long stands on a line of its own."""
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
