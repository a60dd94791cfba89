"""The command `coda`: finds the command, checks its arguments, calls it through Python Fire, and ends in one line.

Exit status: 0 done; 1 a failed run; 2 wrong usage; 130 interrupted; 143 terminated. Nothing here imports torch.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import logging
import os
import re
import signal
import sys
import threading
import traceback
import types
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, NoReturn

from .arguments import Argument, FailedRun, UsageError, arguments_of, nearest, parse, resolve, to_json
from .config_file import read_config

SUMMARY = "coda turns a continuous VAE into a discrete tokenizer, and trains a masked transformer over its codes."

# In the order in which one uses them. "group word": "module:function" of coda.pipeline.commands.
COMMANDS = {
    "train-vae": "train_vae:train_vae",
    "adapt": "adapt:adapt",
    "import-official": "import_official:import_official",
    "export-onnx": "export_onnx:export_onnx",
    "tokenize-dataset": "tokenize_dataset:tokenize_dataset",
    "merge-cache": "merge_cache:merge_cache",
    "cache export": "cache:export_cache",
    "cache import": "cache:import_cache",
    "inspect": "inspect:inspect",
    "train-maskgit": "train_maskgit:train_maskgit",
    "sample": "sample:sample",
    "edit inpaint": "edit:inpaint",
    "edit outpaint": "edit:outpaint",
    "edit vary": "edit:vary",
    "edit change-class": "edit:change_class",
    "reconstruct": "reconstruct:reconstruct",
    "benchmark rfid": "benchmark_rfid:rfid",
    "benchmark gfid": "benchmark_gfid:gfid",
    "benchmark ablation": "benchmark_ablation:ablation",
    "benchmark speed": "benchmark_speed:speed",
    "benchmark speed-tokenize": "benchmark_speed_tokenize:speed_tokenize",
    "benchmark speed-sample": "benchmark_speed_sample:speed_sample",
}
GROUPS = {
    "cache": "coda cache exchanges code caches with programs that know nothing of coda.",
    "edit": "coda edit samples part of a photograph's codes anew.",
    "benchmark": "coda benchmark measures what the other commands made: JSON, a Markdown table and plots.",
}


class Terminated(KeyboardInterrupt):
    """SIGTERM, raised where the program stands so that nothing is left half written."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: The words after `coda`; those of the process if None.

    Returns:
        The exit status.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    flags = words[: words.index("--")] if "--" in words else words
    debug = "--debug" in flags
    name = "coda"
    try:
        with _sigterm_raises(), _quiet(debug):
            name = _name(words)
            _dispatch(name, words[len(name.split()) - 1 :], flags)
            sys.stdout.flush()
        return 0
    except BrokenPipeError:
        # Who read our output went away. What is still buffered must not raise again when Python shuts down.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt as error:
        status = 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
        word = "terminated" if isinstance(error, Terminated) else "interrupted"
        _say(f"{name}: {word}; a command that is given again goes on from its last checkpoint, where it keeps any")
        return status
    except Exception as error:
        if debug:
            traceback.print_exc()
        usage = isinstance(error, UsageError)
        _say(f"{name}: {_reason(error)}" + (f" (see {name} --help)" if usage else ""))
        return 2 if usage else 1


def load_command(name: str) -> Callable[..., str]:
    """The function of a command by its name, such as "train-vae" or "benchmark rfid"."""
    module, _, function = COMMANDS[name].partition(":")
    return getattr(import_module(f"coda.pipeline.commands.{module}"), function)


def _name(words: Sequence[str]) -> str:
    """What the first words call: "coda" alone, or with the command's name.

    Raises:
        UsageError: They name no command.
    """
    if not words:
        raise UsageError("which command? " + ", ".join(_first_words()))
    first = words[0]
    if first.startswith("-"):
        if first in ("--help", "-h", "--version"):
            return "coda"
        raise UsageError(f"{first} stands before the command: write coda COMMAND {first}")
    if first in GROUPS:
        second = words[1] if len(words) > 1 else ""
        members = [name.split()[1] for name in COMMANDS if name.startswith(f"{first} ")]
        if second in ("--help", "-h"):
            return f"coda {first}"
        if second not in members:
            what = f'no "{first} {second}"' + nearest(second, members) if second else f"{first} needs a second word"
            raise UsageError(f"{what}; there are {', '.join(members)}")
        return f"coda {first} {second}"
    if first not in COMMANDS:
        raise UsageError(f'no command "{first}"' + (nearest(first, _first_words()) or ": see coda --help"))
    return f"coda {first}"


def _first_words() -> list[str]:
    return list(dict.fromkeys(name.split()[0] for name in COMMANDS))


def _dispatch(name: str, words: list[str], flags: Sequence[str]) -> None:
    """Answer --help, --version and --dry-run, or run the command `name` with `words`."""
    command = name.removeprefix("coda").strip()
    if command not in COMMANDS:
        if words[:1] == ["--version"]:
            print(f"coda {metadata.version('coda')}")
        else:
            _print_overview(name, command)
        return
    if "--help" in flags or "-h" in flags:
        from .help_text import command_page

        print(command_page(command, load_command(command)))
        return
    function = load_command(command)
    arguments = arguments_of(function)
    words, config, dry_run = _take_common(words)
    given = parse(words, arguments)
    values = resolve(given, arguments, read_config(config) if config else None)
    if dry_run:
        print(json.dumps(to_json(values, arguments), indent=2, ensure_ascii=False))
        return
    _check_defaults(arguments, values)
    _fire(command, function, values)


def _check_defaults(arguments: Sequence[Argument], values: Mapping[str, Any]) -> None:
    """What the command before this one should have made, and nothing else was asked for, must be there.

    Raises:
        FailedRun: It is not; the message names the command that makes it.
    """
    for argument in arguments:
        place = str(argument.default)
        by_default = values[argument.name] == argument.default
        if by_default and argument.name != "out" and place.startswith("runs/") and not Path(place).exists():
            outs = {name: [a for a in arguments_of(load_command(name)) if a.name == "out"] for name in COMMANDS}
            makers = (name for name, out in outs.items() if out and str(out[0].default) == place)
            raise FailedRun(f"there is no {place} yet: coda {next(makers)} makes it, or give another {argument.label}")


def _print_overview(name: str, group: str) -> None:
    from .help_text import overview

    members = {known.removeprefix(group).strip(): load_command(known) for known in COMMANDS if known.startswith(group)}
    print(overview(name, GROUPS.get(group, SUMMARY), members))


def _take_common(words: Sequence[str]) -> tuple[list[str], Path | None, bool]:
    """Take --config, --dry-run and --debug out of the words, up to a bare "--"."""
    end = words.index("--") if "--" in words else len(words)
    rest: list[str] = []
    config: Path | None = None
    dry_run = False
    pending = list(words[:end])
    while pending:
        word = pending.pop(0)
        key, equals, text = word.partition("=")
        if key == "--config":
            if not equals and pending and not pending[0].startswith("--"):
                text = pending.pop(0)
            if not text:
                raise UsageError("--config needs a value: a JSON or TOML file")
            if config is not None:
                raise UsageError("--config is given twice")
            config = Path(text)
        elif word == "--dry-run":
            dry_run = True
        elif word != "--debug":
            rest.append(word)
    return [*rest, *words[end:]], config, dry_run


def _fire(command: str, function: Callable[..., str], values: Mapping[str, Any]) -> None:
    """Let Fire walk to the command and call it, with every value already of its type.

    Fire's words carry only the parameters' names; its parse function looks the typed value up by that name.
    """
    import fire
    from fire.decorators import SetParseFn

    from coda.tokenizer.foundation.launcher import is_main_process

    @SetParseFn(values.__getitem__)
    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any) -> str | None:
        line = function(*args, **kwargs)
        return line if is_main_process() else None

    component: Any = checked
    for word in reversed(command.split()):
        component = {word: component}
    try:
        fire.Fire(component, command=[*command.split(), *(f"--{key}={key}" for key in values)], name="coda")
    except SystemExit as stop:  # Fire refused what our own check let through
        raise RuntimeError(f"Fire ended with status {stop.code}") from stop


def _reason(error: Exception) -> str:
    """One line for what went wrong."""
    kind = type(error)
    ours = kind.__module__.startswith("coda.")
    text = " ".join(str(error).split())
    if ours:
        return text
    if re.search("no space left|disk quota|ENOSPC", text, re.IGNORECASE) or getattr(error, "errno", None) in (
        errno.ENOSPC,
        errno.EDQUOT,
    ):
        at = getattr(error, "filename", None)
        return "no space left on the disk" + (f" for {at}" if at else "") + ": free some and give the command again"
    if isinstance(error, MemoryError) or kind.__name__ == "OutOfMemoryError" or _OUT_OF_MEMORY.search(text):
        amount = re.search(r"[Tt]ried to allocate (\d[\d.]*) ?([KMG]iB|bytes)", text)
        tried = f" ({amount[1]} {amount[2]} more were wanted)" if amount else ""
        return f"not enough memory{tried}: a smaller --batch-size or --size needs less"
    if isinstance(error, OSError) and error.errno is not None and error.strerror:
        return (f"{error.filename}: " if error.filename else "") + error.strerror.lower()
    if isinstance(error, ImportError) and error.name:
        return f"{text}: install it with pip"
    return f"{kind.__name__}: {text or 'no more is known'} (--debug shows where)"


_OUT_OF_MEMORY = re.compile(
    "out of memory|can't allocate memory|not enough memory|cannot allocate memory", re.IGNORECASE
)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(" ".join(line.split()), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """SIGTERM ends the program as Ctrl-C does, so that what is open is closed and removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: types.FrameType | None) -> NoReturn:
        raise Terminated

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _quiet(debug: bool) -> Iterator[None]:
    """Keep the libraries' warnings off stderr, which is for progress and for the one line of an error."""
    if debug:
        yield
        return
    chatty = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        os.environ.setdefault(f"{logger.name.upper()}_VERBOSITY", "error")  # read when it is imported
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)


if __name__ == "__main__":
    sys.exit(main())
