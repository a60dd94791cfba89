"""`coda sample`, `edit`, `reconstruct` and `inspect` on a pipeline small enough to be made in a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from coda.pipeline.cli.cli import main
from coda.pipeline.coda_pipeline import CodaPipeline
from coda.tokenizer import CodaTokenizer
from coda.tokenizer.training.run_directory import RunDirectory

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.linear_gradient("L").resize((24, 20)).convert("RGB").save(path)
    return path


def sample(saved: Path, *words: str) -> int:
    return main(["sample", "--model", str(saved / "pipeline"), *words])


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_images_are_named_by_class_and_seed(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(saved, "--class", "0,golden fish", "--num", "2", "--seed", "3", "--out", "s") == 0
    images = {f"{name}-seed{seed}.png" for name in ("0-cats", "2-golden-fish") for seed in (3, 4)}
    assert names(Path("s")) == images | {"grid.png", "samples.json"}
    out, err = capsys.readouterr()
    assert (out, err) == ("Made 4 images in s, together in s/grid.png\n", "")
    made = json.loads(Path("s/samples.json").read_text())["images"]
    assert {(p["file"], p["class"], p["seed"]) for p in made} == {
        (f"{name}-seed{seed}.png", index, seed)
        for name, index in (("0-cats", 0), ("2-golden-fish", 2))
        for seed in (3, 4)
    }
    assert Image.open("s/0-cats-seed3.png").size == (16, 16)


def test_all_classes_fill_a_grid_about_as_wide_as_high(saved: Path) -> None:
    assert sample(saved, "--class", "all", "--num", "1", "--out", "s") == 0
    images = {f"{name}-seed0.png" for name in ("0-cats", "1-dogs", "2-golden-fish")}
    assert names(Path("s")) == images | {"grid.png", "samples.json"}
    width, height = Image.open("s/grid.png").size
    assert 2 * 128 < width < 3 * 128 and 2 * 128 < height < 3 * 160


def test_an_image_depends_on_its_class_and_seed_alone(saved: Path, pipeline: CodaPipeline) -> None:
    many = ["--class", "2", "--class", "0", "--num", "3", "--seed", "5", "--batch-size", "4", "--out", "many"]
    assert sample(saved, *many) == 0
    assert sample(saved, "--class", "cats", "--num", "1", "--seed", "6", "--out", "one") == 0
    assert Path("one/0-cats-seed6.png").read_bytes() == Path("many/0-cats-seed6.png").read_bytes()
    assert Path("many/0-cats-seed5.png").read_bytes() != Path("many/0-cats-seed6.png").read_bytes()
    images: Any = pipeline("cats", num_images_per_class=2, generator=5)
    assert images.images[1].tobytes() == Image.open("one/0-cats-seed6.png").tobytes()


def test_steps_and_guidance_reach_the_sampler(saved: Path) -> None:
    base = ["--class", "0", "--num", "1"]
    assert sample(saved, *base, "--out", "a") == 0
    assert sample(saved, *base, "--out", "b", "--guidance", "9") == 0
    assert sample(saved, *base, "--out", "c", "--steps", "1,1,1,1") == 0
    assert sample(saved, *base, "--out", "d", "--temperature", "0.2", "--noise", "0", "--top-k", "9") == 0
    assert sample(saved, *base, "--out", "e", "--redraw", "0.5", "--guidance-schedule", "linear") == 0
    images = [Path(out, "0-cats-seed0.png").read_bytes() for out in "abcde"]
    assert len(set(images)) == 5
    settings = [json.loads(Path(out, "samples.json").read_text()) for out in "bc"]
    assert settings[0]["guidance"] == 9 and settings[1]["steps"] == [1, 1, 1, 1]


def test_without_a_class_each_seed_draws_one(saved: Path) -> None:
    assert sample(saved, "--num", "6", "--out", "s") == 0
    classes = [image["class"] for image in json.loads(Path("s/samples.json").read_text())["images"]]
    assert len(classes) == 6 and set(classes) <= {0, 1, 2} and len(set(classes)) > 1


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("goldfish", '--class: no class "goldfish"; nearest: "golden fish" (2)'),
        ("4", "--class: class 4 does not exist: indices go from 0 to 3"),
        ("007", '--class: no class "007"'),
        ("birds", "--class: this model has never seen class 3"),
        ("", '--class "" is not text'),
    ],
)
def test_a_wrong_class_is_wrong_usage(
    saved: Path, word: str, complaint: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert sample(saved, f"--class={word}") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1) and complaint in err
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"] or not list(tmp_path.rglob("*"))  # no image, no remains


def test_nothing_is_overwritten_unasked(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--class", "0", "--num", "1", "--out", "s"]
    assert sample(saved, *words) == 0
    Path("s/mark").touch()
    assert sample(saved, *words) == 1
    assert "s exists already; choose another --out or give --overwrite" in capsys.readouterr().err
    assert Path("s/mark").exists()
    assert sample(saved, *words, "--overwrite") == 0
    assert not Path("s/mark").exists()


def test_what_is_not_ours_is_never_replaced(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("holidays").mkdir()
    Path("holidays/beach.jpg").write_bytes(b"the only copy")
    assert sample(saved, "--class", "0", "--out", "holidays", "--overwrite") == 1
    assert "holds something that this command did not make" in capsys.readouterr().err
    assert Path("holidays/beach.jpg").exists()


def test_a_generator_takes_its_tokenizer_from_beside(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--class", "0", "--num", "1"]
    assert sample(saved, *words, "--out", "whole") == 0
    apart = ["sample", "--model", str(saved / "generator"), *words]
    assert main([*apart, "--tokenizer", str(saved / "tokenizer"), "--out", "apart"]) == 0
    assert Path("whole/0-cats-seed0.png").read_bytes() == Path("apart/0-cats-seed0.png").read_bytes()
    capsys.readouterr()
    assert main([*apart, "--out", "none"]) == 1  # runs/tokenizer is not there
    assert "runs/tokenizer" in capsys.readouterr().err


def test_a_tokenizer_beside_a_whole_pipeline_is_refused(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample(saved, "--class", "0", "--tokenizer", str(saved / "tokenizer")) == 2
    assert "--tokenizer belongs to a generator" in capsys.readouterr().err


def test_a_training_that_has_not_ended_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunDirectory(tmp_path / "generator", "generator", {"steps": 9})
    assert main(["sample", "--model", str(tmp_path / "generator"), "--out", str(tmp_path / "samples")]) == 1
    assert "is an unfinished training" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", "--class", "0", "--model", "runs/generatr"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "runs/generatr" in err


@pytest.mark.parametrize(
    "words",
    [
        ["inpaint", "--region", "0,0,8,16", "--class", "0"],
        ["outpaint", "--box", "0.25,0.25,0.75,0.75"],
        ["vary", "--keep-levels", "2", "--no-composite"],
        ["change-class", "--class", "golden fish", "--coverage", "0.3"],
    ],
)
def test_edits_write_their_variants(
    saved: Path, photo: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kind, *rest = words
    common = ["--model", str(saved / "pipeline"), "--num", "2", "--seed", "7", "--out", "e"]
    assert main(["edit", kind, str(photo), *rest, *common]) == 0
    variants = {"variant-seed7.png", "variant-seed8.png"}
    assert names(Path("e")) == variants | {"original.png", "region.png", "grid.png", "edit.json"}
    assert capsys.readouterr().out == f"Made 2 variants of {photo} in e, together in e/grid.png\n"


def test_an_edit_of_several_classes_is_wrong_usage(
    saved: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(saved / "pipeline")]
    assert main(["edit", "change-class", str(photo), "--class", "0,1", *model]) == 2
    assert '--class "0,1" means 2 classes' in capsys.readouterr().err


def test_reconstructions_are_described(saved: Path, photo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(photo), "--tokenizer", str(saved / "tokenizer"), "--levels", "2", "--out", "r"]
    assert main(["reconstruct", *words]) == 0
    kinds = {f"photo{kind}.png" for kind in ("", "-original", "-reconstruction", "-difference")}
    assert names(Path("r")) == kinds | {"reconstruction.json"}
    first, last = capsys.readouterr().out.splitlines()
    assert "PSNR" in first and "5 tokens, 25 bits" in first  # levels of 1 and 4 cells, 5 bits a code
    assert last == "Made r/photo.png"


def test_no_reconstruction_is_written_over_another(saved: Path) -> None:
    images = ["dog.png", "b/dog.png", "dog-1.png", "dog-original.png", "DOG.png"]
    Path("b").mkdir()
    for i, image in enumerate(images):
        Image.new("RGB", (16, 16), (50 * i, 0, 0)).save(image)
    assert main(["reconstruct", *images, "--tokenizer", str(saved / "tokenizer"), "--out", "r"]) == 0
    assert len({name.lower() for name in names(Path("r"))}) == 4 * len(images) + 1
    made = json.loads(Path("r/reconstruction.json").read_text())["images"]
    assert [entry["image"] for entry in made] == images
    for i, entry in enumerate(made):
        original = Image.open(Path("r", entry["file"].replace(".png", "-original.png")))
        assert original.getpixel((8, 8)) == (50 * i, 0, 0)


def test_a_larger_reconstruction_goes_through_in_tiles(saved: Path, photo: Path) -> None:
    words = [str(photo), "--tokenizer", str(saved / "tokenizer"), "--size", "40x64"]
    assert main(["reconstruct", *words, "--out", "whole"]) == 0
    assert main(["reconstruct", *words, "--out", "tiles", "--tile", "24"]) == 0
    whole, tiles = (Image.open(Path(out, "photo-reconstruction.png")) for out in ("whole", "tiles"))
    assert whole.size == tiles.size == (64, 40) and whole.tobytes() != tiles.tobytes()
    assert main(["reconstruct", *words, "--out", "odd", "--tile", "25"]) == 1  # the factor does not divide it


def test_a_tokenizer_is_exported(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install 'coda[onnx]'")
    words = ["export-onnx", "--tokenizer", str(saved / "tokenizer"), "--out", "o"]
    assert main(words) == 0
    assert capsys.readouterr().out == "Made o/encoder.onnx and o/decoder.onnx\n"
    assert names(Path("o")) == {"encoder.onnx", "decoder.onnx", "onnx.json"}
    assert main(words) == 1
    assert "o exists already" in capsys.readouterr().err


def test_a_file_that_is_not_an_image_leaves_nothing(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.jpg").write_text("no image")
    assert main(["reconstruct", "notes.jpg", "--tokenizer", str(saved / "tokenizer"), "--out", "r"]) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "notes.jpg" in err
    assert names(Path()) == {"notes.jpg"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("reconstruct", ["photo.png", "--tokenizer", "tokenizer"]),
        ("edit vary", ["photo.png", "--num", "1", "--model", "pipeline"]),
        ("edit outpaint", ["photo.png", "--num", "1", "--model", "pipeline"]),
        ("edit vary", ["small.png", "--region", "photo.png", "--num", "1", "--model", "pipeline"]),
    ],
)
def test_the_largest_image_is_the_users_choice(
    name: str, words: list[str], saved: Path, photo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (12, 10)).save("small.png")
    given = [*name.split(), *(str(saved / word) if word in ("pipeline", "tokenizer") else word for word in words)]
    assert main([*given, "--out", "x", "--max-pixels", "479"]) == 1
    assert "photo.png has 24 x 20 pixels; --max-pixels allows more than 479" in capsys.readouterr().err
    assert main([*given, "--out", "x", "--max-pixels", "480"]) == 0


@pytest.mark.parametrize("kind", ["pipeline", "tokenizer", "generator"])
def test_inspect_says_what_it_is(
    saved: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")  # set by something that is not a launcher
    assert main(["inspect", str(saved / kind)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{saved / kind} is a complete {kind}"
    assert any(line.startswith("layout") for line in lines)


def test_inspect_knows_a_vae(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(saved / "tokenizer" / "vae")]) == 0
    assert capsys.readouterr().out.endswith("is a complete continuous VAE\n")


def test_inspect_finds_damage(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CodaTokenizer.from_pretrained(saved / "tokenizer").save_pretrained(tmp_path / "t")
    weights = tmp_path / "t" / "quantizer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert main(["inspect", str(tmp_path / "t")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
