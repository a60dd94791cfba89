"""Commands as a launcher starts them: several processes, one result, one line."""

from __future__ import annotations

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


def test_two_processes_of_torchrun_make_the_cache_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from .conftest import make_tokenizer_parts

    monkeypatch.chdir(tmp_path)
    CodaTokenizer(*make_tokenizer_parts()).save_pretrained("runs/tokenizer")
    noise = np.random.default_rng(0)
    Path("data").mkdir()
    for i in range(9):
        Image.fromarray(noise.integers(256, size=(20, 16, 3), dtype=np.uint8)).save(f"data/{i}.png")
    Path("data/4.png").write_bytes(b"")
    words = ["tokenize-dataset", "--data", "data", "--shard-size", "2", "--device", "cpu"]
    assert main([*words, "--out", "runs/one"]) == 0
    capsys.readouterr()
    launched = subprocess.run(
        [*LAUNCHER, "-m", "coda.pipeline.cli.cli", *words, "--out", "runs/two"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert launched.returncode == 0, launched.stderr
    (line,) = launched.stdout.splitlines()
    assert line.startswith("Made a code cache of 8 pictures in runs/two: 9 items, 1 of them broken and left out; ")
    assert launched.stderr.count("4.png") == launched.stderr.count("few shards for 2 processes") == 1
    one, two = ({file.name: file.read_bytes() for file in Path(f"runs/{name}").iterdir()} for name in ("one", "two"))
    assert one == two
