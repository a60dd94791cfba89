"""`make gpu` at small shapes on a CPU, and where there is no GPU."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from coda.pipeline.gpu_report import gpu_report, main

ROOT = Path(__file__).resolve().parents[2]
ONCE = "--repeats 1 --batch-size 2"
SMALL = {
    "generator": f"speed --shapes small --generators pocket {ONCE}",
    "tokenizer": f"speed-sample {ONCE}",
    "tokenizing": f"speed-tokenize --limit 4 {ONCE}",
    "peers": f"speed --shapes small --generators pocket --peers ours,amused {ONCE}",
}


def test_the_parts_are_joined(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="its photos come with scikit-image")
    assert gpu_report(tmp_path, "cpu", SMALL, width=4, sides=(1, 2), codebook_size=32) == 0
    found = json.loads((tmp_path / "report.json").read_text())
    names = {figure["name"] for figure in found["figures"]}
    assert "generator: small: tiled step, share of the matrix product's rate" in names
    assert "generator: pocket: training, share of the matrix product's rate" in names
    assert {"tokenizer: encode rate", "tokenizing: tokenize-dataset rate"} <= names
    assert {"date", "versions", "hardware", "commands"} <= found["provenance"].keys()
    written = (tmp_path / "report.md").read_text()
    assert "| preset | images | steps | guidance |" in written
    assert "peers: Peers of the size of pocket" in written


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_one_line_before_anything_is_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "report")]) == 1
    assert "this machine has no CUDA" in capsys.readouterr().err
    done = subprocess.run(
        ["make", "--no-print-directory", "-f", str(ROOT / "Makefile"), "gpu"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    lines = [line for line in done.stderr.splitlines() if "***" not in line]  # make's own
    assert done.returncode != 0 and not done.stdout
    assert lines == ["make gpu needs an NVIDIA GPU with its driver: nvidia-smi lists none"]
    assert not list(tmp_path.iterdir())
