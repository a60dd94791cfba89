"""Words of a command line become typed values, or one clear complaint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from coda.pipeline.cli.arguments import (
    Box,
    Count,
    Device,
    Fraction,
    Part,
    Positive,
    Region,
    Side,
    Unsplit,
    UsageError,
    arguments_of,
    parse,
    resolve,
    to_json,
)


def command(
    image: Path,
    more: tuple[Path, ...] = (),
    *,
    data: str,
    out: Path = Path("runs/x"),
    class_: Annotated[tuple[str, ...], Unsplit] = (),
    batch_size: Count = 4,
    offset: int = 0,
    guidance: float | None = None,
    dropout: Fraction = 0.1,
    rate: Positive = 1.0,
    steps: tuple[Count, ...] | None = None,
    sides: tuple[Side, ...] | None = None,
    norm: Literal["rms", "layer"] = "rms",
    device: Device = "auto",
    part: Part | None = None,
    box: Box = (0.0, 0.0, 1.0, 1.0),
    region: Region | None = None,
    composite: bool = True,
    overwrite: bool = False,
) -> str:
    """A command with one argument of each kind."""
    raise AssertionError("parsing must not run anything")


ARGUMENTS = arguments_of(command)


def values(*words: str) -> dict[str, Any]:
    return resolve(parse(["photo.jpg", "--data", "d", *words], ARGUMENTS), ARGUMENTS)


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["--out", "1e3"], "out", Path("1e3")),
        (["--out=a=b"], "out", Path("a=b")),
        (["--class", "007"], "class_", ("007",)),
        (["--class", "tench, Tinca tinca", "--class=88"], "class_", ("tench, Tinca tinca", "88")),
        (["--batch-size", "8"], "batch_size", 8),
        (["--batch-size=8"], "batch_size", 8),
        (["--offset", "-3"], "offset", -3),
        (["--guidance", "3"], "guidance", 3.0),
        (["--guidance", "1e-2"], "guidance", 0.01),
        (["--guidance", "none"], "guidance", None),
        (["--steps", "1,1,2,4"], "steps", (1, 1, 2, 4)),
        (["--steps", "1", "--steps", "2,3"], "steps", (1, 2, 3)),
        (["--steps", "8"], "steps", (8,)),
        (["--sides", "1,2x3, 4x4"], "sides", (1, (2, 3), 4)),
        (["--norm", "layer"], "norm", "layer"),
        (["--device", "cuda:1"], "device", "cuda:1"),
        (["--part", "2/4"], "part", "2/4"),
        (["--region", "0,0,32,64"], "region", (0, 0, 32, 64)),
        (["--region", "mask.png"], "region", "mask.png"),
        (["--overwrite"], "overwrite", True),
        (["--overwrite=true"], "overwrite", True),
        (["--no-composite"], "composite", False),
        (["--composite=false"], "composite", False),
        (["b.jpg", "c.jpg"], "more", (Path("b.jpg"), Path("c.jpg"))),
        (["--", "--odd.jpg"], "more", (Path("--odd.jpg"),)),
        ([], "steps", None),
    ],
)
def test_values_have_the_type_of_the_signature(words: list[str], name: str, value: object) -> None:
    found = values(*words)[name]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--batch-sizes", "8"], "unknown flag --batch-sizes; did you mean --batch-size?"),
        (["--batch_size", "8"], "unknown flag --batch_size; did you mean --batch-size?"),
        (["--overwrit"], "unknown flag --overwrit; did you mean --overwrite?"),
        (["--no-overwrit"], "unknown flag --no-overwrit; did you mean --no-overwrite?"),
        (["--no-data"], "unknown flag --no-data"),
        (["--dry-ru"], "unknown flag --dry-ru; did you mean --dry-run?"),
        (["-x"], "unknown flag -x"),
        (["--class_", "3"], "unknown flag --class_; did you mean --class?"),
        (["--out"], "--out needs a value: a path"),
        (["--out", "--overwrite"], "--out needs a value: a path"),
        (["--out="], '--out "" is not a path'),
        (["--batch-size", "abc"], '--batch-size "abc" is not a whole number, at least 1'),
        (["--batch-size", "1e3"], '--batch-size "1e3" is not a whole number'),
        (["--batch-size", "1_0"], '--batch-size "1_0" is not a whole number'),
        (["--batch-size", "0"], '--batch-size "0" is not a whole number, at least 1'),
        (["--guidance", "nan"], '--guidance "nan" is not a number'),
        (["--guidance", "inf"], '--guidance "inf" is not a number'),
        (["--dropout", "1.1"], "at least 0 and at most 1"),
        (["--rate", "0"], "more than 0"),
        (["--steps", "1,,2"], '--steps "1,,2" is not a whole number, at least 1 (several: comma-separated)'),
        (["--steps", "1,x"], '--steps "1,x" is not'),
        (["--sides", "2x"], "not a side like 4 or 2x4"),
        (["--norm", "batch"], '--norm "batch" is not one of rms, layer'),
        (["--device", "gpu"], "not a device: auto, cpu"),
        (["--part", "5/4"], "not a part like 1/4"),
        (["--box", "1,2,3"], "not a box like"),
        (["--region", "1,2,3"], "not a box like"),
        (["--overwrite=yes"], '--overwrite "yes" is not true or false'),
        (["--offset", "1", "--offset", "2"], "--offset is given twice"),
        (["--overwrite", "--no-overwrite"], "--overwrite is given twice"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        values(*words)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_after_a_bare_boolean_is_a_word_too_many() -> None:
    def only_flags(*, overwrite: bool = False) -> None: ...

    with pytest.raises(UsageError, match='unexpected "false"'):
        parse(["--overwrite", "false"], arguments_of(only_flags))


def test_missing_arguments_are_named() -> None:
    with pytest.raises(UsageError, match="IMAGE is missing: a path"):
        resolve(parse(["--data", "d"], ARGUMENTS), ARGUMENTS)
    with pytest.raises(UsageError, match="--data is missing"):
        resolve(parse(["photo.jpg"], ARGUMENTS), ARGUMENTS)


def test_a_configuration_gives_defaults_and_flags_win() -> None:
    config = {"batch-size": 16, "offset": 5, "class": ["tench, Tinca tinca"], "guidance": 3, "steps": 8}
    given = parse(["photo.jpg", "--data", "d", "--offset", "7"], ARGUMENTS)
    found = resolve(given, ARGUMENTS, config)
    assert (found["batch_size"], found["offset"], found["class_"]) == (16, 7, ("tench, Tinca tinca",))
    assert found["steps"] == (8,)
    assert found["guidance"] == 3.0 and isinstance(found["guidance"], float)


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"batchsize": 3}, "unknown key 'batchsize' in the configuration; did you mean batch-size?"),
        ({"batch-size": "3"}, "batch-size = '3' is not a whole number"),
        ({"batch-size": True}, "batch-size = True is not a whole number"),
        ({"batch-size": 0}, "at least 1"),
        ({"batch-size": None}, "batch-size = None is not"),
        ({"batch-size": 1.0}, "batch-size = 1.0 is not a whole number"),
        ({"data": 3}, "data = 3 is not text"),
        ({"overwrite": 1}, "overwrite = 1 is not true or false"),
        ({"norm": "batch"}, "is not one of rms, layer"),
        ({"steps": [1, "2"]}, "steps = [1, '2'] is not"),
        ({"batch-size": 1, "batch_size": 2}, "batch-size is given twice in the configuration"),
    ],
)
def test_a_configuration_is_as_strict(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve({"image": Path("i"), "data": "d"}, ARGUMENTS, config)
    assert complaint in str(caught.value)


def test_resolved_settings_read_back_the_same() -> None:
    before = values("--sides", "1,2x3", "--steps", "1,2", "--region", "0,0,1,2", "--no-composite", "--class", "a,b")
    assert resolve({}, ARGUMENTS, to_json(before, ARGUMENTS)) == before
