"""Every flag does something: it is read, and handed to a parameter that the library really has."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import pytest

from coda.pipeline.cli.arguments import arguments_of
from coda.pipeline.cli.cli import COMMANDS, load_command

# Command -> (where the function is that does the work, its name).
LIBRARY = {
    "train-vae": ("coda.tokenizer", "train_vae"),
    "adapt": ("coda.tokenizer", "adapt"),
    "tokenize-dataset": ("coda.tokenizer", "tokenize_dataset"),
    "cache export": ("coda.tokenizer", "export_cache"),
    "cache import": ("coda.tokenizer", "import_npy"),
    "merge-cache": ("coda.tokenizer.code_cache", "merge_caches"),
    "train-maskgit": ("coda.generator", "train_maskgit"),
    "benchmark rfid": ("coda.benchmarks", "reconstruction_metrics"),
    "benchmark gfid": ("coda.benchmarks", "generation_metrics"),
    "benchmark ablation": ("coda.benchmarks", "ablation"),
    "benchmark speed-tokenize": ("coda.benchmarks", "tokenizing_speed"),
}
# Flags whose default differs from the parameter of that name, and why.
OWN_DEFAULTS = {
    ("benchmark rfid", "out"),  # named after the command
    ("benchmark gfid", "out"),
    ("benchmark speed-tokenize", "out"),
}


def body_of(function: Callable[..., Any]) -> ast.FunctionDef:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    assert isinstance(tree.body[0], ast.FunctionDef)
    return tree.body[0]


def names_read(function: Callable[..., Any]) -> set[str]:
    """Names that the body reads (defaults and annotations do not count)."""
    return {
        node.id
        for statement in body_of(function).body
        for node in ast.walk(statement)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
    }


def imported(function: Callable[..., Any]) -> dict[str, Any]:
    """What the body imports from this project, by its local name."""
    found = {}
    package = "coda.pipeline.commands"
    for node in ast.walk(body_of(function)):
        if isinstance(node, ast.ImportFrom):
            parent = ".".join(package.split(".")[: 4 - node.level])
            module = ".".join(filter(None, [parent, node.module])) if node.level else str(node.module)
            if module.startswith("coda"):
                for alias in node.names:
                    owner = importlib.import_module(module)
                    value = getattr(owner, alias.name, None) or importlib.import_module(f"{module}.{alias.name}")
                    found[alias.asname or alias.name] = value
    return found


def calls(function: Callable[..., Any]) -> list[tuple[Any, ast.Call]]:
    """Calls of imported functions, and of methods of imported classes and modules."""
    known = imported(function)
    found = []
    for node in ast.walk(body_of(function)):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in known:
            found.append((known[node.func.id], node))
        elif isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name):
            owner = known.get(node.func.value.id)
            if isinstance(owner, type | ModuleType):
                found.append((getattr(owner, node.func.attr), node))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_read(name: str) -> None:
    command = load_command(name)
    read = names_read(command)
    unread = {argument.name for argument in arguments_of(command)} - read
    assert not unread or "locals" in read  # settings are built from all arguments at once


@pytest.mark.parametrize("name", COMMANDS)
def test_every_call_fits_what_it_calls(name: str) -> None:
    command = load_command(name)
    found = calls(command)
    module = importlib.import_module(command.__module__)
    helpers = [value for value in vars(module).values() if inspect.isfunction(value) and value.__name__.startswith("_")]
    for helper in helpers:
        if helper.__module__ == command.__module__:
            found += calls(helper)
    for target, call in found:
        if isinstance(target, type) and issubclass(target, Exception):
            continue
        positional = [None] * len(call.args)
        keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        if any(isinstance(argument, ast.Starred) for argument in call.args) or len(keywords) < len(call.keywords):
            continue  # what a * or ** hands over is checked where it comes from
        inspect.signature(target).bind(*positional, **keywords)


@pytest.mark.parametrize("name", LIBRARY)
def test_commands_hand_over_every_parameter(name: str) -> None:
    module, function = LIBRARY[name]
    library = getattr(importlib.import_module(module), function)
    (call,) = [call for target, call in calls(load_command(name)) if target is library]
    parameters = list(inspect.signature(library).parameters)
    handed = {*parameters[: len(call.args)], *(keyword.arg for keyword in call.keywords)}
    assert handed == set(parameters)


@pytest.mark.parametrize("name", LIBRARY)
def test_defaults_are_those_of_the_library(name: str) -> None:
    module, function = LIBRARY[name]
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    for argument in arguments_of(load_command(name)):
        theirs = parameters.get(argument.name)
        if theirs is None or theirs.default is inspect.Parameter.empty or (name, argument.name) in OWN_DEFAULTS:
            continue
        ours = str(argument.default) if isinstance(argument.default, Path) else argument.default
        assert ours == theirs.default, argument.name


@pytest.mark.parametrize("kind", ["inpaint", "outpaint", "vary", "change_class"])
def test_editing_takes_what_its_commands_hand_over(kind: str) -> None:
    from coda.pipeline import editing
    from coda.pipeline.commands import edit

    function = getattr(editing, kind)
    own, settings = inspect.signature(function).parameters, inspect.signature(editing.resample).parameters
    statement = body_of(getattr(edit, kind)).body[-1]
    assert isinstance(statement, ast.Return) and isinstance(statement.value, ast.Call)
    call = statement.value
    for_edit = inspect.signature(edit._edit).parameters
    how = {keyword.arg for keyword in call.keywords} - set(for_edit)
    (made,) = [
        node
        for node in ast.walk(body_of(edit._edit))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Call)  # getattr(editing, kind)(…)
    ]
    handed = how | {str(keyword.arg) for keyword in made.keywords if keyword.arg}
    assert handed <= set(own) | set(settings)
    assert ast.literal_eval(call.args[0]) == kind
    for argument in arguments_of(getattr(edit, kind)):
        theirs = own.get(argument.name) or settings.get(argument.name)
        if argument.name in how and theirs is not None and theirs.default is not inspect.Parameter.empty:
            assert argument.default == theirs.default, argument.name


def choices(name: str, flag: str) -> tuple[object, ...]:
    (found,) = [argument.kind.choices for argument in arguments_of(load_command(name)) if argument.name == flag]
    return found


def test_choices_are_those_of_the_library() -> None:
    from coda.benchmarks.timing.quantizer import QUANTIZER_SHAPES
    from coda.generator.presets import PRESETS
    from coda.generator.schedules import MASK_SCHEDULES
    from coda.pipeline.cli.arguments import Precision

    assert choices("train-maskgit", "preset") == tuple(PRESETS)
    assert choices("train-maskgit", "mask_law") == MASK_SCHEDULES
    assert choices("benchmark speed", "shapes") == tuple(shape.name for shape in QUANTIZER_SHAPES)
    assert choices("sample", "dtype") == get_args(Precision)


def test_each_command_takes_what_the_one_before_it_made() -> None:
    def default(name: str, flag: str) -> str:
        return str(inspect.signature(load_command(name)).parameters[flag].default)

    assert default("adapt", "vae") == default("train-vae", "out") == "runs/vae"
    made = default("adapt", "out"), default("import-official", "out")
    assert {*made, default("tokenize-dataset", "tokenizer"), default("reconstruct", "tokenizer")} == {"runs/tokenizer"}
    assert default("train-maskgit", "cache") == default("tokenize-dataset", "out") == "runs/cache"
    assert default("merge-cache", "out") == "runs/cache"
    assert default("train-maskgit", "out") == "runs/generator"
    assert default("sample", "out") == "runs/samples"


def test_a_flag_means_the_same_everywhere() -> None:
    kinds: dict[str, set[str]] = {}
    for name in COMMANDS:
        for argument in arguments_of(load_command(name)):
            if not argument.positional:
                kinds.setdefault(argument.word, set()).add(f"{argument.kind.base}")
    # Only adapt makes something that may have two different sides: --size 192x256.
    assert {word for word, found in kinds.items() if len(found) > 1} == {"size"}
