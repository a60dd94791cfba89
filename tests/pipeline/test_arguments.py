"""Words of a command line become typed values, or one clear complaint."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from coda.pipeline.cli.arguments import Help, Presets, UsageError, Without
from coda.pipeline.cli.cli import call_through_fire
from coda.pipeline.cli.help_text import command_page
from coda.pipeline.commands.edit import Box, Region
from coda.tokenizer import CodaError
from coda.tokenizer.foundation.settings import (
    Count,
    Device,
    Fraction,
    Part,
    Positive,
    Settings,
    Side,
    Unsplit,
    setting,
)
from coda.tokenizer.training.run_directory import RunDirectory

CALLS: list[dict[str, Any]] = []


@dataclass(frozen=True)
class Numbers(Settings):
    """A settings class whose fields are flags."""

    batch_size: Count = setting(4, "Images per batch.")
    offset: int = setting(0, "An offset.")
    guidance: float | None = setting(None, "Guidance.")
    dropout: Fraction = setting(0.1, "Dropout.")
    rate: Positive = setting(1.0, "A rate.")
    steps: tuple[Count, ...] | None = setting(None, "Steps.")
    sides: tuple[Side, ...] | None = setting(None, "Sides.")
    norm: Literal["rms", "layer"] = setting("rms", "A norm.")
    device: Device = setting("auto", "A device.")
    part: Part | None = setting(None, "A part.")
    low: Count = setting(1, "At most --high.")
    high: Count = setting(9, "At least --low.")
    hidden: int = setting(7, "A field that the command does not offer.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise CodaError("low is above high")


def command(
    image: Annotated[Path, Help("An image.")],
    more: Annotated[tuple[Path, ...], Unsplit, Help("More images.")] = (),
    *,
    data: Annotated[str, Help("Data.")],
    out: Annotated[Path, Help("Output.")] = Path("runs/x"),
    class_: Annotated[tuple[str, ...], Unsplit, Help("Classes.")] = (),
    numbers: Annotated[Numbers, Without("hidden")],
    box: Annotated[Box, Help("A box.")] = (0.0, 0.0, 1.0, 1.0),
    region: Annotated[Region | None, Help("A region.")] = None,
    composite: Annotated[bool, Help("Composite.")] = True,
    overwrite: Annotated[bool, Help("Overwrite.")] = False,
) -> None:
    """A command with one argument of each kind."""
    found = dict(locals())
    CALLS.append({**found, **asdict(found.pop("numbers"))})


NAMED = Presets({"small": {"batch_size": 8, "norm": "layer", "rate": 2.0}, "large": {"batch_size": 64}})


def tuned(*, preset: Annotated[str | None, NAMED, Help("Named values.")] = None, numbers: Numbers) -> None:
    """A command with presets."""
    CALLS.append({"preset": preset, **asdict(numbers)})


def values(*words: str) -> dict[str, Any]:
    call_through_fire("group command", command, words)
    return CALLS.pop()


def of(*words: str) -> dict[str, Any]:
    return values("photo.jpg", "--data", "d", *words)


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
        (["b,1.jpg", "c.jpg"], "more", (Path("b,1.jpg"), Path("c.jpg"))),
        (["--", "--odd.jpg"], "more", (Path("--odd.jpg"),)),
        ([], "steps", None),
    ],
)
def test_values_have_the_type_of_the_signature(words: list[str], name: str, value: object) -> None:
    found = of(*words)[name]
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
        (["--steps", "1,,2"], '--steps "" is not a whole number, at least 1 (several: comma-separated)'),
        (["--steps", "1,x"], '--steps "x" is not'),
        (["--sides", "2x"], "not a side like 4 or 2x4"),
        (["--norm", "batch"], '--norm "batch" is not one of rms, layer'),
        (["--device", "gpu"], "not a device: auto, cpu"),
        (["--part", "5/4"], '"5/4" is not a part of the form i/n, such as 2/4'),
        (["--box", "1,2,3"], "not a box like"),
        (["--region", "1,2,3"], "not a box like"),
        (["--overwrite=yes"], '--overwrite "yes" is not true or false'),
        (["--offset", "1", "--offset", "2"], "--offset is given twice"),
        (["--overwrite", "--no-overwrite"], "--overwrite is given twice"),
        (["--overwrite", "false"], "--overwrite takes no value: write --overwrite or --no-overwrite"),
        (["--composite", "True"], "--composite takes no value"),
        (["--help=1"], '--help "1" is not true or false'),
        (["--debug", "--debug"], "--debug is given twice"),
        (["--low", "3", "--high", "2"], "low is above high"),
    ],
)
def test_what_is_wrong_is_said(words: list[str], complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        of(*words)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value) and not CALLS


def test_missing_arguments_are_named() -> None:
    with pytest.raises(UsageError, match="IMAGE is missing: a path"):
        values("--data", "d")
    with pytest.raises(UsageError, match="--data is missing"):
        values("photo.jpg")


def test_a_configuration_gives_defaults_and_flags_win(tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    config.write_text(
        json.dumps({"batch-size": 16, "offset": 5, "class": ["tench, Tinca tinca"], "guidance": 3, "steps": 8})
    )
    found = of("--offset", "7", "--config", str(config))
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
def test_a_wrong_configuration_is_said(config: dict[str, Any], complaint: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(json.dumps(config))
    with pytest.raises(UsageError) as caught:
        of("--config", str(tmp_path / "c.json"))
    assert complaint in str(caught.value)


def test_a_dry_run_reads_back_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("--sides", "1,2x3", "--steps", "1,2", "--region", "0,0,1,2", "--no-composite", "--class", "a,b")
    call_through_fire("try", command, ["photo.jpg", "--data", "d", *words, "--dry-run"])
    (tmp_path / "c.json").write_text(capsys.readouterr().out)
    assert values("--config", str(tmp_path / "c.json")) == of(*words)


@dataclass(frozen=True)
class Denoise(Settings):
    """One settings class."""

    strength: Fraction = setting(0.5, "How much noise is removed.")


def test_a_field_is_all_that_a_setting_needs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = []

    def denoise(*, settings: Denoise) -> str:
        """Remove noise."""
        made.append(RunDirectory(tmp_path / f"run-{settings.strength}", "denoise", asdict(settings)))
        return "done"

    denoise.__annotations__["settings"] = Denoise
    page = " ".join(command_page("denoise", denoise).split())
    assert "--strength NUMBER How much noise is removed. [default: 0.5]" in page  # in help
    call_through_fire("denoise", denoise, ["--strength", "0.25", "--dry-run"])
    text = capsys.readouterr().out
    assert json.loads(text) == {"strength": 0.25} and not made  # in --dry-run
    (tmp_path / "c.json").write_text(text)
    call_through_fire("denoise", denoise, ["--config", str(tmp_path / "c.json")])  # in a configuration
    call_through_fire("denoise", denoise, ["--strength=1"])  # as a flag
    assert capsys.readouterr().out == "done\ndone\n"
    assert [run.settings for run in made] == [{"strength": 0.25}, {"strength": 1.0}]  # in the run's record
    assert json.loads((tmp_path / "run-0.25" / "run.json").read_text())["settings"] == {"strength": 0.25}
    with pytest.raises(UsageError, match="at most 1"):  # checked
        call_through_fire("denoise", denoise, ["--strength", "2"])
    with pytest.raises(CodaError, match="at most 1"):
        Denoise(strength=2)


def test_a_preset_gives_way_to_the_configuration_and_to_flags(tmp_path: Path, capsys: Any) -> None:
    def found(*words: str) -> tuple[Any, ...]:
        call_through_fire("tuned", tuned, words)
        call = CALLS.pop()
        return call["batch_size"], call["norm"], call["rate"]

    config = tmp_path / "config.json"
    config.write_text('{"rate": 3.0, "preset": "small"}')
    assert found() == (4, "rms", 1.0)
    assert found("--preset", "small") == (8, "layer", 2.0)
    assert found("--preset", "small", "--batch-size", "4") == (4, "layer", 2.0)
    assert found("--config", str(config), "--norm", "rms") == (8, "rms", 3.0)
    assert found("--config", str(config), "--preset", "large") == (64, "rms", 3.0)
    with pytest.raises(UsageError, match=r"--preset .* is not one of small, large"):
        found("--preset", "medium")
    call_through_fire("tuned", tuned, ["--preset", "small", "--dry-run"])
    printed = json.loads(capsys.readouterr().out)
    assert (printed["preset"], printed["batch-size"], printed["hidden"]) == ("small", 8, 7)
