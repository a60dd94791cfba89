"""`coda benchmark` on a pipeline small enough to be made in a moment: its classes are cats, dogs, golden fish."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from coda.pipeline.cli.cli import main

pytest.importorskip("torch_fidelity")

pytestmark = pytest.mark.usefixtures("elsewhere")


def folders(root: str, *names: str) -> str:
    for i, name in enumerate(names):
        Path(root, name).mkdir(parents=True)
        for j in range(2):
            Image.linear_gradient("L").resize((16, 16)).rotate(90 * j).convert("RGB").save(
                Path(root, name, f"{i}{j}.png")
            )
    return root


def report(folder: str) -> dict[str, Any]:
    return json.loads(Path(folder, "report.json").read_text())


def test_gfid_samples_the_references_classes(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["benchmark", "gfid", "--model", str(saved / "pipeline"), "--num-images", "4", "--out", "g"]
    assert main([*words, "--reference", folders("some", "golden fish", "cats")]) == 0
    assert "cats is class 0, golden fish is class 2" in report("g")["provenance"]["samples"]["balance"]
    for unknown in ("birds", "horses"):  # never seen, and no class at all
        assert main([*words[:-1], "refused", "--reference", folders(unknown, "cats", unknown)]) == 1
        assert unknown in capsys.readouterr().err
    assert not Path("refused").exists()


def test_gfid_measures_what_sample_made(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--model", str(saved / "pipeline"), "--class", "0,1", "--num", "2", "--out", "s"]) == 0
    words = ["benchmark", "gfid", "--samples", "s", "--reference", folders("some", "cats", "dogs")]
    assert main([*words, "--out", "g"]) == 0
    assert report("g")["provenance"]["samples"]["n"] == 4  # without grid.png
    listing = Path("s/samples.json").read_text()
    Path("s/samples.json").write_text(listing.replace("0-cats-seed0.png", "../some/cats/00.png"))
    assert main([*words, "--out", "h"]) == 1
    assert "samples.json" in capsys.readouterr().err


def test_judge_leaves_out_what_the_model_does_not_know(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = ["cats", "dogs", "golden fish"]
    words = ["benchmark", "judge", "--model", str(saved / "pipeline"), "--num-images", "6", "--out", "j"]
    assert main([*words, "--data", folders("learned", "birds", *known), "--validation", folders("unseen", *known)]) == 0
    table = report("j")["tables"][0]
    assert [row[1] for row in table["rows"]] == [6, 6, 6, 6, 6]
    assert "classes 0" not in capsys.readouterr().err and Path("j/nearest.png").exists()
    words[-1] = "refused"
    assert main([*words, "--data", "learned", "--validation", folders("few", "cats")]) == 1
    assert "few has no image of class 1 dogs" in capsys.readouterr().err


def test_sweep_writes_the_winner_into_the_scheduler(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = shutil.copytree(saved / "generator", "generator")
    words = ["sweep", "--tokenizer", str(saved / "tokenizer"), "--num-images", "4", "--minutes", "0.001", "--out", "w"]
    images = ["--reference", folders("some", "golden fish", "cats")]
    assert main([*words, "--model", str(generator), *images, "--write"]) == 0
    out = capsys.readouterr().out
    assert "; the winner is in generator/scheduler/scheduler_config.json" in out and "What was tried" in out
    config = json.loads(Path("generator/scheduler/scheduler_config.json").read_text())
    winner = report("w")["provenance"]["winner"]
    assert winner.keys() == {"guidance_scale", "confidence_noise", "temperature", "num_inference_steps"}
    assert winner.items() <= config.items()
    assert main([*words[:2], str(saved), "--write"]) == 2
    assert "--write needs a directory with a scheduler" in capsys.readouterr().err


def test_peers_are_trained_on_a_cache(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer, data = ["--tokenizer", str(saved / "tokenizer")], folders("d", "cats", "dogs")
    assert main(["tokenize-dataset", *tokenizer, "--data", data, "--out", "cache"]) == 0
    small = ["--width", "32", "--depth", "2", "--heads", "2", "--batch-size", "4", "--steps", "2", "--num-images", "4"]
    words = ["benchmark", "peers", "--cache", "cache", *tokenizer, *small, "--peers", "ours,unet", "--out", "p"]
    assert main([*words, "--reference", data]) == 0
    assert "ours, level by level" in capsys.readouterr().out
    assert [row[0] for row in report("p")["tables"][0]["rows"]] == [
        "ours, level by level",
        "UNet2DModel, flow matching on pixels",
    ]
    assert Path("p/samples-ours.png").exists() and Path("p/samples-unet.png").exists()


def test_speed_of_each_part(saved: Path) -> None:
    tokenizer, fast = ["--tokenizer", str(saved / "tokenizer")], ["--repeats", "1", "--out"]
    data, model = folders("d", "a", "b"), str(saved / "pipeline")
    assert main(["benchmark", "speed", "--shapes", "small", *fast, "q"]) == 0
    assert main(["benchmark", "speed-tokenize", *tokenizer, "--data", data, *fast, "t"]) == 0
    assert main(["benchmark", "speed-sample", "--model", model, *fast, "s"]) == 0
    assert main(["benchmark", "speed-sample", *tokenizer, *fast, "e"]) == 0
    names = {folder: [figure["name"] for figure in report(folder)["figures"]] for folder in "qtse"}
    assert "small: tiled step, times faster than dense" in names["q"]
    assert "times faster than the plain loop" in names["t"]
    assert names["s"] == ["encode rate", "decode rate", "sampling rate"]
    assert names["e"] == ["encode rate", "decode rate"]
