"""`coda doctor` and `coda completion`."""

from __future__ import annotations

import shlex
import subprocess
from importlib import metadata

import pytest
import torch

from coda.pipeline.cli.cli import main


def test_doctor_says_what_is_missing_and_what_to_type(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = metadata.version

    def version(name: str) -> str:
        if name in ("xformers", "torchvision", "matplotlib"):
            raise metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert err == "" and torch.__version__ in lines["torch"]
    assert "none that torch can use" in lines["GPU"] and lines["--device auto"].endswith("cpu")
    assert "missing" in lines["xformers"] and "pip install 'xformers>=" in lines["xformers"]
    assert "missing" in lines["torchvision"] and "no need to install it" in lines["torchvision"]
    assert "pip install 'matplotlib>=" in lines["matplotlib"]
    assert "missing: xformers, " in out and "torchvision" in out.splitlines()[-1]


@pytest.mark.parametrize(("amx", "words"), [(True, "several times faster"), (False, "emulated by this CPU")])
def test_doctor_says_what_bfloat16_costs_on_a_cpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, amx: bool, words: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx}, raising=False)
    assert main(["doctor"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("--dtype bfloat16")]
    assert words in line


def test_doctor_exits_0_where_a_package_or_a_variable_is_broken(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODA_RETRIEVAL", "fast")
    assert main(["doctor"]) == 0
    assert "CODA_RETRIEVAL is 'fast'; it is auto, tiled or fused" in capsys.readouterr().out


@pytest.fixture(scope="module")
def script() -> str:
    from coda.pipeline.commands.completion import completion

    return completion()


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("coda tok", ["tokenize-dataset"]),
        ("coda benchmark speed-", ["speed-tokenize", "speed-sample"]),
        ("coda sample --gui", ["--guidance", "--guidance-schedule"]),
        ("coda adapt --data photos --dry", ["--dry-run"]),
        ("coda cache export --to par", ["parquet"]),
        ("coda reconstruct do", []),  # the shell then offers files
    ],
)
def test_bash_completes_commands_flags_and_choices(script: str, line: str, completed: list[str]) -> None:
    words = shlex.split(line)
    code = f"{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _coda; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (completed, "")


def test_zsh_gets_the_same_script_after_what_lets_it_run_scripts_for_bash(script: str) -> None:
    from coda.pipeline.commands.completion import completion

    first, rest = completion("zsh").split("\n", 1)
    assert first == "autoload -U +X compinit bashcompinit && compinit && bashcompinit"
    assert rest == script
