"""The command `coda`: finds the command, checks its arguments, calls it through Python Fire, and ends in one line.

Exit status: 0 done; 1 a failed run; 2 wrong usage; 130 interrupted; 143 terminated. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from coda.tokenizer.foundation.errors import CodaError, shown
from coda.tokenizer.foundation.launcher import is_main_process
from coda.tokenizer.foundation.settings import Settings

from ..commands import COMMANDS, GROUPS, load_command
from .arguments import COMMON, Argument, UsageError, arguments_of, convert, fire_words, nearest, parameters, resolve
from .arguments import to_json as settings_to_json
from .config_file import read_config
from .failures import Terminated, quiet_libraries, reason, reopen_closed_streams, signals_raise
from .help_text import command_page, overview

SUMMARY = "coda turns a continuous VAE into a discrete tokenizer, and trains a masked transformer over its codes."


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: The words after `coda`; those of the process if None.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in (words[: words.index("--")] if "--" in words else words)
    name = "coda"
    reopen_closed_streams()
    try:
        with signals_raise(), contextlib.nullcontext() if debug else quiet_libraries():
            name = _name(words)
            run_command(name, words[len(name.split()) - 1 :])
            sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # Whoever read the output went away. What is still buffered must not raise again when Python shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, Terminated) else signal.SIGINT
        word = "terminated" if isinstance(error, Terminated) else "interrupted"
        _say(f"{name}: {word}; run the same command to resume")
        return 128 + number
    except Exception as error:
        if debug:
            traceback.print_exc()
        usage = isinstance(error, UsageError)
        command = name.removeprefix("coda").strip()
        flags = [found.label for found in arguments_of(load_command(command))] if command in COMMANDS else []
        _say(f"{name}: {reason(error, flags)}" + (f" (see {name} --help)" if usage else ""))
        return 2 if usage else 1


def _name(words: Sequence[str]) -> str:
    """The command that the first words name: "coda sample", "coda benchmark rfid", a group, or "coda" alone.

    Raises:
        UsageError: If they do not name a command.
    """
    first_words = list(dict.fromkeys(name.split()[0] for name in COMMANDS))
    if not words:
        raise UsageError("which command? " + ", ".join(first_words))
    first, second = words[0], (words[1] if len(words) > 1 else "")
    if first in ("--help", "-h", "--version"):
        return "coda"
    if first.startswith("-"):
        raise UsageError(f"{first} comes before the command: write coda COMMAND {first}")
    if first in GROUPS:
        members = [name.split()[1] for name in COMMANDS if name.startswith(f"{first} ")]
        if second in ("--help", "-h"):
            return f"coda {first}"
        if second not in members:
            what = f'no "{first} {second}"' + nearest(second, members) if second else f"{first} needs a second word"
            raise UsageError(f"{what}; choose from {', '.join(members)}")
        return f"coda {first} {second}"
    if first not in COMMANDS:
        raise UsageError(f'no command "{first}"' + (nearest(first, first_words) or ": see coda --help"))
    return f"coda {first}"


def run_command(name: str, words: list[str]) -> None:
    """Answer --help and --version, or let Fire parse `words` and call the command `name`.

    Args:
        name: "coda" and the command's name.
        words: The words after it.
    """
    command = name.removeprefix("coda").strip()
    if words[:1] == ["--version"]:
        print(f"coda {metadata.version('coda')}")
    elif command not in COMMANDS:
        members = [known for known in COMMANDS if known.startswith(command)]
        pages = {member.removeprefix(command).strip(): load_command(member) for member in members}
        print(overview(name, GROUPS.get(command, SUMMARY), pages))
    elif {"--help", "-h"} & set(words[: words.index("--")] if "--" in words else words):
        print(command_page(command, load_command(command)))
    else:
        call_through_fire(command, load_command(command), words)


def call_through_fire(name: str, command: Callable[..., str | None], words: Sequence[str]) -> None:
    """Check the words, then let Fire find the command, parse every value with `convert`, and print what it returns.

    Args:
        name: The command's name, such as "benchmark rfid".
        command: Its function.
        words: The words after the name.

    Raises:
        UsageError: If the arguments are wrong; before the command is called.
    """
    arguments = arguments_of(command)
    known = [*arguments, *COMMON]
    checked = fire_words(words, known)
    import fire
    from fire.decorators import SetParseFns

    @SetParseFns(**{argument.name: partial(convert, argument) for argument in known})
    def called(
        config: Path | None = None, dry_run: bool = False, debug: bool = False, help: bool = False, **given: Any
    ) -> str | None:
        if help:
            return command_page(name, command)
        values = resolve(given, arguments, read_config(config) if config else {})
        chosen = parameters(values, arguments)
        if dry_run:
            for group in chosen.values():
                values |= vars(group) if isinstance(group, Settings) else {}
            return json.dumps(settings_to_json(values, arguments), indent=2, ensure_ascii=False)
        _check_earlier_stage(arguments, values)
        line = command(**chosen)
        return "\n".join(map(shown, line.split("\n"))) if line and is_main_process() else None

    tree: Any = called
    for word in reversed(name.split()):
        tree = {word: tree}
    fire.Fire(tree, command=[*name.split(), *checked], name="coda")


def _check_earlier_stage(arguments: Sequence[Argument], values: Mapping[str, Any]) -> None:
    """Check that the inputs that were left at their defaults, which earlier commands make, are there.

    Raises:
        CodaError: If one is missing; the message names the command that makes it.
    """
    for argument in arguments:
        place = str(argument.default)
        by_default = values[argument.name] == argument.default
        if by_default and argument.name != "out" and place.startswith("runs/") and not Path(place).exists():
            outs = {name: [a for a in arguments_of(load_command(name)) if a.name == "out"] for name in COMMANDS}
            makers = (name for name, out in outs.items() if out and str(out[0].default) == place)
            raise CodaError(f"there is no {place} yet: coda {next(makers)} makes it, or give another {argument.label}")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(shown(" ".join(line.split())), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
