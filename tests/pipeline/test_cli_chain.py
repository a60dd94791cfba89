"""The commands one after the other, each on what the one before it made, with nothing but defaults between them."""

from __future__ import annotations

import random
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from coda.pipeline.cli.cli import main
from coda.tokenizer.code_cache import CodeCache

REPLACED = "1 unreadable image replaced by others; the first, dogs/7.png, cannot be decoded: image file is truncated"
IGNORED = "ignored 1 .heic files: not a supported image format"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of eight images, 20×24 pixels; one of them is broken."""
    folder = tmp_path_factory.mktemp("photos")
    rng = random.Random(0)
    for name in ("cats", "dogs"):
        (folder / name).mkdir()
        for number in range(8):
            small = Image.new("RGB", (5, 6))
            small.putdata([tuple(rng.randrange(256) for _ in range(3)) for _ in range(30)])
            small.resize((20, 24), Image.Resampling.BICUBIC).save(folder / name / f"{number}.png")
    (folder / "notes.heic").touch()
    broken = folder / "dogs" / "7.png"
    broken.write_bytes(broken.read_bytes()[:200])
    return folder


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str], str]:
    capsys.readouterr()
    status = main(words)
    out, err = capsys.readouterr()
    return status, out.splitlines(), err


def test_the_whole_chain(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data", str(photos)]
    tiny = ["--size", "16", "--factor", "4", "--latent-channels", "4", "--steps", "2"]

    status, lines, err = said(capsys, "train-vae", *data, *tiny, "--batch-size", "4")
    assert (status, lines) == (0, [f"Made a continuous VAE in runs/vae; {REPLACED}; {IGNORED}"]), err
    words = ["adapt", *data, "--size", "16", "--codebook-size", "32", "--lora-rank", "2", "--steps", "2"]
    status, lines, err = said(capsys, *words, "--batch-size", "4")
    assert (status, lines) == (0, [f"Made a tokenizer in runs/tokenizer; {REPLACED}; {IGNORED}"]), err

    status, lines, err = said(capsys, "tokenize-dataset", *data)
    made = (
        r"Made a code cache of 15 images in runs/cache: 16 items, 1 of them broken and left out; "
        rf"\d+ classes; [\d.,]+ images/s; {IGNORED}"
    )
    assert status == 0 and re.fullmatch(made, "\n".join(lines))
    assert said(capsys, "tokenize-dataset", *data)[1][0].endswith(f"; all encoded before; {IGNORED}")
    assert "7.png" in err  # by name
    for part in ("1/2", "2/2"):
        status, _, err = said(
            capsys, "tokenize-dataset", *data, "--part", part, "--shard-size", "4", "--out", f"runs/part-{part[0]}"
        )
        assert status == 0, err
    status, lines, _ = said(capsys, "merge-cache", "runs/part-1", "runs/part-2", "--out", "runs/merged")
    assert (status, lines) == (0, ["Made a code cache of 15 images in runs/merged"])
    whole, merged = CodeCache("runs/cache"), CodeCache("runs/merged")
    assert all((whole[i][0] == merged[i][0]).all() for i in range(len(whole)))
    assert (
        said(capsys, "inspect", "runs/merged", "--verify")[1][-1]
        == "runs/merged is a complete code cache, every code verified"
    )

    status, lines, err = said(capsys, "train-maskgit", "--preset", "pocket", "--steps", "2", "--batch-size", "4")
    assert (status, lines) == (0, ["Made a generator in runs/generator"]), err
    status, lines, err = said(capsys, "sample", "--model", "runs/generator", "--class", "dogs", "--num", "1")
    assert (status, lines) == (0, ["Made 1 image in runs/samples, together in runs/samples/grid.png"]), err
    assert Path("runs/samples/1-dogs-seed0.png").is_file()
    if find_spec("torch_fidelity"):  # against the decoded codes of runs/cache
        quick = ["--num-images", "3", "--minutes", "0.001", "--limit", "4"]
        status, lines, err = said(capsys, "sweep", "--model", "runs/generator", *quick)
        assert status == 0 and lines[-1].startswith("Made the report in runs/sweep"), err

    for command in ("train-vae", *tiny), ("adapt", *words[3:]):  # the same command again finds its work done
        assert said(capsys, command[0], *data, *command[1:], "--batch-size", "4")[0] == 0
    status, _, err = said(capsys, "train-maskgit", "--preset", "pocket", "--steps", "3", "--batch-size", "4")
    assert status == 1 and err.count("\n") == 1 and "steps 2 there, 3 asked" in err

    status, _, err = said(capsys, "tokenize-dataset", *data, "--strict", "--out", "runs/strict")
    assert status == 1 and err.count("\n") == 1 and "7.png" in err

    # Adapted again, runs/tokenizer has other codes than runs/cache; until it is whole, nobody can say.
    words = ["train-maskgit", "--preset", "pocket", "--steps", "2", "--batch-size", "4"]
    described = Path("runs/tokenizer/coda_tokenizer.json")
    other = re.sub('"fingerprint": "[0-9a-f]*"', f'"fingerprint": "{"e" * 64}"', described.read_text())
    described.write_text(other)
    status, _, err = said(capsys, *words)
    assert status == 1 and err.count("\n") == 1 and "e" * 64 in err
    assert CodeCache("runs/cache").tokenizer_fingerprint in err
    described.unlink()
    assert said(capsys, *words)[0] == 0
