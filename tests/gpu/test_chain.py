"""The commands on a GPU, in their default precision: they give what the CPU gives, and resume to the byte."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from coda.pipeline.cli.cli import main
from coda.tokenizer import CodaTokenizer
from coda.tokenizer.images import to_uint8
from coda.tokenizer.images.psnr_ssim import psnr

TRAINED = ("vae", "tokenizer", "generator")
SCRIPT = Path(__file__).parents[1] / "train_and_keep.py"
SMALL = ["--size", "16", "--steps", "4", "--batch-size", "8"]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight images of two classes."""
    for number in range(8):
        image = Image.effect_noise((5, 6), 120).resize((20, 24), Image.Resampling.BICUBIC)
        place = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image.rotate(number).convert("RGB").save(place)
    return tmp_path / "photos"


def run_chain(photos: Path, folder: Path, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands in `folder`."""
    shutil.copytree(photos, folder / "photos")
    monkeypatch.chdir(folder)
    for words in (
        ["train-vae", "--data", "photos", "--factor", "4", "--latent-channels", "4", *SMALL],
        ["adapt", "--data", "photos", "--codebook-size", "32", "--lora-rank", "2", *SMALL],
        ["tokenize-dataset", "--data", "photos"],
        ["train-maskgit", "--preset", "pocket", "--steps", "4", "--batch-size", "4"],
        ["sample", "--model", "runs/generator", "--class", "a", "--num", "2"],
        ["edit", "vary", "photos/a/0.png", "--model", "runs/generator", "--tokenizer", "runs/tokenizer"],
        ["reconstruct", "photos/a/0.png", "--tokenizer", "runs/tokenizer"],
        ["benchmark", "speed-sample", "--model", "runs/generator", "--repeats", "1"],
    ):
        assert main([*words, "--device", device]) == 0, words


def first_losses(folder: Path) -> list[float]:
    logs = ([json.loads(line) for line in (folder / "runs" / n / "log.jsonl").open()] for n in TRAINED)
    return [next(line["loss"] for line in lines if "loss" in line) for lines in logs]


def quality(folder: Path) -> float:
    """PSNR of the tokenizer on its images, computed on the CPU."""
    tokenizer = CodaTokenizer.from_pretrained(folder / "runs" / "tokenizer")
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return float(psnr(to_uint8(tokenizer(images)), to_uint8(images)).mean())


@pytest.mark.gpu
def test_the_chain(cuda: torch.device, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [tmp_path / "cpu", tmp_path / cuda.type]
    for folder in folders:
        run_chain(photos, folder, folder.name, monkeypatch)
    expected, found = map(first_losses, folders)
    assert found == pytest.approx(expected, rel=0.05)
    assert quality(folders[1]) == pytest.approx(quality(folders[0]), abs=0.5)


@pytest.mark.gpu
@pytest.mark.parametrize("training", ["vae", "kl", "tokenizer", "phases", "generator"])
def test_resuming_to_the_byte(
    cuda: torch.device,
    training: str,
    tmp_path: Path,
    content: Callable[[Path], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DEVICE", cuda.type)
    train = runpy.run_path(str(SCRIPT))["WORK"][training]
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    train(tmp_path / "whole" / training)
    armed = True

    def die(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal armed
        if armed and event == "os.rename" and Path(str(arguments[1])).name == "step-00000006":
            armed = False
            raise KeyboardInterrupt

    sys.addaudithook(die)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut" / training)
    train(tmp_path / "cut" / training)
    assert not armed and content(tmp_path / "cut" / training) == content(tmp_path / "whole" / training)
