"""The command line from outside: help, wrong usage, exit statuses, and that nothing runs before all is checked."""

from __future__ import annotations

import functools
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from coda.pipeline.cli.cli import main
from coda.pipeline.cli.failures import reason
from coda.pipeline.commands import COMMANDS, GROUPS, load_command

pytestmark = pytest.mark.usefixtures("elsewhere")

PROGRAM = [sys.executable, "-m", "coda.pipeline"]


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of one command line."""
    status = main(words)
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "coda: which command? train-vae, adapt"),
        (["smaple"], 'coda: no command "smaple"; did you mean sample?'),
        (["--help=1"], "coda: --help=1 comes before the command"),
        (["--seed", "sample"], "coda: --seed comes before the command"),
        (
            ["benchmark"],
            "coda: benchmark needs a second word; choose from rfid, gfid, judge, ablation, peers, speed",
        ),
        (["benchmark", "rfd"], 'coda: no "benchmark rfd"; did you mean rfid?'),
        (["edit", "photo.jpg"], 'coda: no "edit photo.jpg"'),
        (["sample", "--stpes", "3"], "coda sample: unknown flag --stpes; did you mean --steps?"),
        (["sample", "--class"], "coda sample: --class needs a value"),
        (
            ["sample", "--guidance", "1e300"],
            'coda sample: --guidance "1e300" is not a number, at least 0 and at most 1000',
        ),
        (["sample", "--num", "many"], 'coda sample: --num "many" is not a whole number'),
        (["sample", "207"], 'coda sample: unexpected "207"'),
        (["sample", "--class", "207", "--help-me"], "coda sample: unknown flag --help-me"),
        (["adapt"], "coda adapt: --data is missing"),
        (["train-vae", "--data"], "coda train-vae: --data needs a value"),
        (["tokenize-dataset", "--data", "d", "--part", "0/4"], "is not a part of the form i/n"),
        (["merge-cache"], "coda merge-cache: PARTS is missing"),
        (["inspect"], "coda inspect: PATH is missing"),
        (["reconstruct", "--out", "x"], "coda reconstruct: IMAGES is missing"),
        (["edit", "inpaint", "photo.jpg"], "coda edit inpaint: --region is missing"),
        (["benchmark", "gfid"], "coda benchmark gfid: --reference is missing"),
        (["benchmark", "speed-tokenize"], "coda benchmark speed-tokenize: --data is missing"),
        (["benchmark", "speed-sample", "--tokenizer", "t", "--steps", "8"], "--model is missing"),
        (["sample", "--config"], "coda sample: --config needs a value"),
        (["sample", "--config", "a.yaml"], "expected a name that ends in .json or .toml"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(
    words: list[str], complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1\n")
    status, out, err = said(capsys, *words)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert complaint in err
    assert "--help)" in err  # where to read more


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_rejects_an_unknown_flag_before_it_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, *name.split(), "--nonsense", "1")
    assert (status, out) == (2, "")
    assert err.startswith(f"coda {name}: unknown flag --nonsense")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_all_of_its_flags(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from coda.pipeline.cli.arguments import arguments_of

    status, out, err = said(capsys, *name.split(), "--help")
    assert (status, err) == (0, "")
    assert out.startswith(f"coda {name}: ")
    for argument in arguments_of(load_command(name)):
        shown = argument.label if argument.positional or argument.default is not True else f"--no-{argument.word}"
        assert f"  {shown}" in out
    for flag in ("--config", "--dry-run", "--debug", "--help"):
        assert f"  {flag}" in out


def test_help_wins_over_complete_arguments(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, _ = said(capsys, "sample", "--class", "207", "--model", str(tmp_path), "--help")
    assert status == 0 and "Usage: coda sample" in out


def test_help_with_a_value_is_help_or_refused(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = said(capsys, "train-maskgit", "--help=true")
    assert status == 0 and "Usage: coda train-maskgit" in out
    status, out, err = said(capsys, "train-maskgit", "--help=1")
    assert (status, out) == (2, "") and '--help "1" is not true or false' in err


@pytest.mark.parametrize("words", [["--help"], ["-h"], *([group, "--help"] for group in GROUPS)])
def test_overviews_name_the_commands(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, *words)
    group = words[0] if words[0] in GROUPS else ""
    assert (status, err) == (0, "")
    for name in COMMANDS:
        if name.startswith(group):
            assert name.removeprefix(group).strip() in out


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert said(capsys, "--version") == (0, f"coda {version('coda')}\n", "")


@pytest.mark.parametrize("words", [["--help"], ["sample", "--help"], ["benchmark", "rfid", "--help"], ["--version"]])
def test_help_is_quick_and_imports_no_torch(words: list[str]) -> None:
    code = (
        "import sys, time; begun = time.process_time()\n"
        "from coda.pipeline.cli.cli import main; status = main(sys.argv[1:])\n"
        "heavy = [m for m in ('torch', 'diffusers', 'numpy', 'PIL', 'fire') if m in sys.modules]\n"
        "print(status, heavy, time.process_time() < 1, file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert result.stderr == "0 [] True\n"


def test_wrong_usage_imports_no_torch() -> None:
    code = "import sys; from coda.pipeline.cli.cli import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    words = ["sample", "--class", "207", "--nmu", "3"]
    result = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    assert result.stdout == "2 False\n"


def test_a_dry_run_prints_the_settings_and_makes_nothing(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    status, out, err = said(capsys, "sample", "--class", "007", "--out", "1e3", "--steps", "1,2", "--dry-run")
    assert (status, err) == (0, "")
    settings = json.loads(out)
    assert settings["class"] == ["007"] and settings["out"] == "1e3" and settings["steps"] == [1, 2]
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_is_a_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _, first, _ = said(capsys, "edit", "inpaint", "a.jpg", "--region", "0,0,8,8", "--no-composite", "--dry-run")
    (tmp_path / "settings.json").write_text(first)
    _, second, err = said(capsys, "edit", "inpaint", "--config", "settings.json", "--dry-run")
    assert (second, err) == (first, "")


def test_flags_override_a_configuration(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('num = 9\nseed = 5\nclass = ["golden retriever"]\n')
    _, out, _ = said(capsys, "sample", "--seed=6", "--config=c.toml", "--dry-run")
    settings = json.loads(out)
    assert (settings["num"], settings["seed"], settings["class"]) == (9, 6, ["golden retriever"])


@pytest.mark.parametrize(
    ("name", "text", "status", "complaint"),
    [
        ("c.json", '{"nmu": 3}', 2, "unknown key 'nmu' in the configuration; did you mean num?"),
        ("c.json", '{"num": "3"}', 2, "num = '3' is not a whole number"),
        ("c.json", '{"num": 3, "num": 4}', 2, "'num' is given twice"),
        ("c.json", "[1]", 2, "expected keys and values"),
        ("c.json", '{"num": ', 2, "cannot be read"),
        ("c.toml", "num = = 3", 2, "cannot be read"),
        ("missing.json", None, 1, "missing.json: no such file or directory"),
    ],
)
def test_a_bad_configuration_is_one_line(
    name: str, text: str | None, status: int, complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    found, out, err = said(capsys, "sample", "--config", name)
    assert (found, out, err.count("\n")) == (status, "", 1)
    assert complaint in err


def test_a_failed_run_is_one_line_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = said(capsys, "inspect", "nowhere/at/all")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith("coda inspect: ") and "nowhere/at/all" in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["adapt", "--data", "d"],
            "coda adapt: there is no runs/vae yet: coda train-vae makes it, or give another --vae",
        ),
        (
            ["tokenize-dataset", "--data", "d"],
            "coda tokenize-dataset: there is no runs/tokenizer yet: coda adapt makes it",
        ),
        (["train-maskgit"], "coda train-maskgit: there is no runs/cache yet: coda tokenize-dataset makes it"),
    ],
)
def test_a_stage_that_was_left_out_is_named(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    status, out, err = said(capsys, *words)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.startswith(line)
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback_above_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = said(capsys, "inspect", "nowhere/at/all", "--debug")
    assert status == 1 and "Traceback (most recent call last)" in err
    assert err.splitlines()[-1].startswith("coda inspect: ")


def test_a_broken_pipe_is_silent() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([*PROGRAM, "--help"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert result.stderr == ""
    assert result.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_closed_stdout_is_no_failure(closed: str) -> None:
    command = f"{shlex.join(PROGRAM)} --version {closed}"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, "")
    assert result.stderr.startswith("" if "2" in closed else "coda ") and result.stderr.count("\n") <= 1


def test_a_file_name_is_shown_escaped(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    name = "caf\udce9\x1b[2J\nb.json"  # not UTF-8, and it clears the terminal
    status, out, err = said(capsys, "sample", "--config", name)
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert r"caf\udce9\x1b[2J" in err
    status, out, _ = said(capsys, "sample", "--out", name, "--dry-run")
    assert status == 0 and "\x1b" not in out


@pytest.mark.parametrize(
    ("number", "status", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "terminated")],
)
def test_a_signal_ends_a_run_with_one_line(number: signal.Signals, status: int, word: str, tmp_path: Path) -> None:
    fifo = tmp_path / "settings.json"
    os.mkfifo(fifo)  # reading the configuration waits until somebody writes
    words = [*PROGRAM, "sample", "--config", str(fifo)]
    # Tests that a shell runs in the background inherit that SIGINT is ignored; this command is to hear it.
    heard = functools.partial(signal.signal, number, signal.SIG_DFL)
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    with open(fifo, "w"):  # returns when the command has opened the other end
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == status
    assert err.count("\n") == 1 and f"coda sample: {word}" in err


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "x.bin"), "no space left on the disk for x.bin: free some"),
        (
            RuntimeError("SafetensorError: I/O error: No space left on device (os error 28)"),
            "no space left on the disk",
        ),
        (MemoryError(), "not enough memory: a smaller --batch-size or --size needs less"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes. Error code 12"),
            "not enough memory (99 bytes more were needed): a smaller --batch-size",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 78 GiB"),
            "not enough memory (2.00 GiB more were needed)",
        ),
        (FileNotFoundError(2, "No such file or directory", "a.jpg"), "a.jpg: no such file or directory"),
        (PermissionError(13, "Permission denied", "runs"), "runs: permission denied"),
        (ValueError("two\nlines"), "ValueError: two lines (--debug shows where)"),
    ],
)
def test_reasons_are_plain(error: Exception, line: str) -> None:
    assert reason(error, ["--batch-size", "--size"]).startswith(line)
    assert "--batch-size" not in reason(error, ["--size"])  # a flag that the command does not have
    assert "--size" not in reason(error, ["--batch-size", "--size", "--tokenizer"])  # which has a size of its own
