"""Two processes train what one does: the same total batch gives the same gradients and weights, up to rounding."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("triton", reason="Triton is not installed; the fused kernels cannot be tested")

SCRIPT = Path(__file__).with_name("train_and_keep.py")
RUN = f"import runpy\nrunpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
DECAYS = {"vae": 0.9, "tokenizer": 0.5, "discriminator": 0.5, "generator": 0.9}  # of AdamW's mean of gradients


TIGHT = ("step", "loss", "psnr", "l1", "kl", "loss_level_2")  # other figures, such as the entropy, enlarge rounding
ON_CPU = {"CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
ON_CUDA = {"DEVICE": "cuda", "DTYPE": "float32", "NVIDIA_TF32_OVERRIDE": "0"}


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def kept(
    request: pytest.FixtureRequest, fresh: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """Checkpoints of one process and of two, as a launcher starts them; on CUDA each has a device."""
    if request.param == "cuda" and torch.cuda.device_count() < 2:
        pytest.skip("two CUDA devices are not here")
    place = ON_CPU if request.param == "cpu" else ON_CUDA
    one, two = (tmp_path_factory.mktemp("trained") / name for name in ("one", "two"))
    with socket.create_server(("localhost", 0)) as free:
        group = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    ranks = [{}, *({**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2))]
    running = [fresh(RUN, folder, **place, **rank)[0] for folder, rank in zip((one, two, two), ranks, strict=True)]
    for process in running:
        process.join(600)
        assert process.exitcode == 0  # its traceback is on stderr
    return [folder / "kept" for folder in (one, two)]


def largest_difference(kept: list[Path], name: str, kind: str) -> float:
    """Largest difference between tensors `….<kind>.…` of the two checkpoints called `name`."""
    one, two = (load_file(folder / f"{name}.safetensors") for folder in kept)
    assert one.keys() == two.keys()
    names = [key for key in one if f".{kind}." in f".{key}"]
    assert names
    return max(float((one[key] - two[key]).abs().max()) for key in names)


@pytest.mark.parametrize(
    ("training", "what"),
    [("vae", "vae"), ("kl", "vae"), ("tokenizer", "tokenizer"), ("tokenizer", "discriminator"), ("generator",) * 2],
)
def test_gradients_and_weights_are_those_of_one_process(kept: list[Path], training: str, what: str) -> None:
    assert largest_difference(kept, f"{training}-1", f"{what}.exp_avg") / (1 - DECAYS[what]) < 1e-6
    assert largest_difference(kept, f"{training}-20", f"{what}.weight") < 1e-5


def test_phases_on_cached_latents_are_those_of_one_process(kept: list[Path]) -> None:
    for first_step in (1, 6):
        assert largest_difference(kept, f"phases-{first_step}", "tokenizer.exp_avg") / (1 - DECAYS["tokenizer"]) < 1e-6
    assert largest_difference(kept, "phases-10", "tokenizer.weight") < 1e-5


@pytest.mark.parametrize("backend", ["tiled", "fused"])
def test_the_batch_entropy_is_that_of_all_processes(kept: list[Path], backend: str) -> None:
    assert largest_difference(kept, f"retrieval-{backend}", "weight") < 1e-6
    assert largest_difference(kept, f"retrieval-{backend}", "exp_avg") < 1e-6


@pytest.mark.parametrize("training", ["vae", "tokenizer", "phases", "generator"])
def test_the_log_is_that_of_one_process(kept: list[Path], training: str) -> None:
    one, two = ((folder.parent / training / "log.jsonl").read_text().splitlines() for folder in kept)
    for line, other in zip(map(json.loads, one), map(json.loads, two), strict=True):
        assert line.keys() == other.keys()
        for name in line.keys() - {"gradient"}:
            bound = 1e-4 if name in TIGHT else 1e-3
            assert line[name] == pytest.approx(other[name], rel=bound), name
