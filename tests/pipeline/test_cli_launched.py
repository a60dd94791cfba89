"""Commands as a launcher starts them: several processes, one result, one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coda.pipeline.cli.cli import main
from coda.tokenizer import CodaTokenizer

LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def launch(*commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Each of the commands in the same two processes, on a machine without accelerators."""
    Path("commands.py").write_text(
        f"import sys\nfrom coda.pipeline.cli.cli import main\nsys.exit(any([main(words) for words in {commands}]))\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*LAUNCHER, "commands.py"], capture_output=True, text=True, env=environment, timeout=600)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine images, one of them broken, in the folder `data` of the current directory."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0)
    Path("data").mkdir()
    for i in range(9):
        Image.fromarray(noise.integers(256, size=(20, 16, 3), dtype=np.uint8)).save(f"data/{i}.png")
    Path("data/4.png").write_bytes(b"")
    return Path("data")


def test_two_processes_of_torchrun_make_the_cache_of_one_and_are_one_training(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from .conftest import make_tokenizer_parts

    CodaTokenizer(*make_tokenizer_parts()).save_pretrained("runs/tokenizer")
    words = ["tokenize-dataset", "--data", str(data), "--shard-size", "2"]
    assert main([*words, "--out", "runs/one", "--device", "cpu"]) == 0
    capsys.readouterr()
    training = ["train-vae", "--data", str(data), "--size", "16", "--steps", "2", "--batch-size", "4"]
    launched = launch([*words, "--out", "runs/two"], [*training, "--perceptual-weight", "0"])
    assert launched.returncode == 0, launched.stderr
    line, trained = launched.stdout.splitlines()
    assert line.startswith("Made a code cache of 8 ") and "9 items, 1 of them broken and left out; " in line
    for once in (
        "left out 1 items; the first, 4.png",
        "few shards for 2 processes",
        "replaced by others; the first, 4.png",
    ):
        assert launched.stderr.count(once) == 1
    one, two = ({file.name: file.read_bytes() for file in Path(f"runs/{name}").iterdir()} for name in ("one", "two"))
    assert one == two
    assert (
        trained
        == "Made a continuous VAE in runs/vae; 1 unreadable image replaced by others; the first, 4.png, is empty"
    )
    assert json.loads(Path("runs/vae/run.json").read_text())["complete"]
