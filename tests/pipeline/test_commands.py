"""The commands fit together, and what their help says is true."""

from __future__ import annotations

import shlex
from typing import Any

import pytest

from coda.pipeline.cli.arguments import Argument, arguments_of
from coda.pipeline.cli.cli import main
from coda.pipeline.cli.help_text import examples
from coda.pipeline.commands import COMMANDS, load_command

EXAMPLES = [(name, example) for name in COMMANDS for example in examples(load_command(name))]


def argument(name: str, flag: str) -> Argument:
    (found,) = [argument for argument in arguments_of(load_command(name)) if argument.name == flag]
    return found


def test_every_command_has_an_example() -> None:
    assert {name for name, _ in EXAMPLES} == set(COMMANDS)


@pytest.mark.parametrize(("name", "example"), EXAMPLES)
def test_every_example_is_a_right_command(name: str, example: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(example)
    words = words[words.index("coda") + 1 :]
    assert " ".join(words).startswith(name)
    status = main([*words, "--dry-run"])
    assert (status, capsys.readouterr().err) == (0, "")


def test_each_command_takes_what_the_one_before_it_made() -> None:
    def default(name: str, flag: str) -> str:
        return str(argument(name, flag).default)

    assert default("adapt", "vae") == default("train-vae", "out") == "runs/vae"
    made = default("adapt", "out"), default("import-official", "out")
    assert {*made, default("tokenize-dataset", "tokenizer")} == {"runs/tokenizer"}
    assert default("train-maskgit", "cache") == default("tokenize-dataset", "out") == "runs/cache"
    assert default("merge-cache", "out") == "runs/cache"
    assert default("train-maskgit", "out") == "runs/generator"
    assert default("sample", "out") == "runs/samples"


def test_a_flag_means_the_same_everywhere() -> None:
    kinds: dict[str, set[Any]] = {}
    for name in COMMANDS:
        for found in arguments_of(load_command(name)):
            if not found.positional:
                kinds.setdefault(found.word, set()).add(found.kind.base)
    # Some commands take two different sides: --size 192x256.
    assert {word for word, found in kinds.items() if len(found) > 1} == {"size"}


@pytest.mark.parametrize("name", COMMANDS)
def test_flags_that_messages_about_images_name_are_there(name: str) -> None:
    words = {found.word for found in arguments_of(load_command(name))}
    assert not words & {"data", "reference"} or words >= {"max-pixels", "num-classes"}
    assert not words & {"image", "images"} or "max-pixels" in words


def test_choices_are_those_of_the_library() -> None:
    from coda.benchmarks.timing.quantizer import QUANTIZER_SHAPES
    from coda.tokenizer.code_cache.export_formats import EXPORT_FORMATS

    assert argument("benchmark speed", "shapes").kind.choices == tuple(shape.name for shape in QUANTIZER_SHAPES)
    assert argument("cache export", "to").kind.choices == tuple(EXPORT_FORMATS)
