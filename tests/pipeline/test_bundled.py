"""The model that ships with the package, and the recipe that makes one, here of two classes at pocket size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from coda.benchmarks.settings import JudgeSettings
from coda.generator.settings import MaskGitSettings
from coda.pipeline import CodaPipeline
from coda.pipeline.bundled.train import Recipe, make_model
from coda.pipeline.cli.cli import main
from coda.pipeline.loading import BUNDLED_MODEL, bundled_model
from coda.tokenizer import CodaError, CodaTokenizer
from coda.tokenizer.code_cache import CodeCache
from coda.tokenizer.images import image_batches, open_images, to_unit
from coda.tokenizer.settings import AdaptSettings, RunOptions, VaeSettings

from ..benchmarks.conftest import ColorExtractor

pytest.importorskip("torch_fidelity")

CLASSES = {"n02099601": (200, 160, 80), "n01443537": (250, 120, 20), "n01440764": (90, 100, 60)}
RECIPE = Recipe(
    classes=(1, 207),
    vae=VaeSettings(size=16, factor=4, latent_channels=4, width=16, steps=2, batch_size=2, perceptual_weight=0),
    tokenizer=AdaptSettings(
        sides=((1, 1), (4, 4)), codebook_size=8, lora_rank=2, steps=1, batch_size=2, perceptual_weight=0
    ),
    generator=MaskGitSettings(preset="pocket", steps=2, batch_size=2),
    sampling={"num_inference_steps": 4},
    judgment=JudgeSettings(num_images=4, shown=2, extractor=ColorExtractor()),
)
RUN = RunOptions(device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two images of each of three classes, one of which the recipe does not take."""
    folder = tmp_path_factory.mktemp("photos")
    for name, color in CLASSES.items():
        (folder / name).mkdir()
        for i in range(2):
            shade = Image.linear_gradient("L").resize((16, 16)).rotate(90 * i)
            Image.merge("RGB", [shade.point(lambda v, c=c: v * c // 255) for c in color]).save(
                folder / name / f"{i}.png"
            )
    return str(folder)


@pytest.fixture(scope="module")
def made(photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all stages."""
    out = tmp_path_factory.mktemp("made")
    assert make_model(photos, photos, out, recipe=RECIPE, run=RUN) == out / "model"
    return out


def test_a_version_without_a_model_says_so(saved: Path, tmp_path: Path) -> None:
    assert bundled_model(saved / "pipeline") == saved / "pipeline"
    with pytest.raises(CodaError, match="no model is bundled with this version; train one"):
        bundled_model(tmp_path)


def test_weights_are_float16_on_disk_and_float32_in_use(made: Path, photos: str) -> None:
    for file in (made / "model").glob("*/*.safetensors"):
        assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    pipeline = CodaPipeline.from_pretrained(made / "model")
    assert {pipeline.vae.dtype, pipeline.quantizer.dtype, pipeline.transformer.dtype} == {torch.float32}
    cache = CodeCache(made / "cache")
    trained_on = pipeline.transformer.config["tokenizer_fingerprint"]
    tokenizer = CodaTokenizer.from_pretrained(made / "model")  # its manifest makes it a tokenizer too
    assert tokenizer.fingerprint == pipeline.tokenizer.fingerprint == trained_on == cache.tokenizer_fingerprint
    (batch,) = image_batches(open_images(photos), 16, 99)
    codes = tokenizer.encode(to_unit(batch.pixels[batch.labels > 0]))
    assert len(cache) == 8, "with mirror images"
    assert {tuple(row) for row in codes.tolist()} <= {tuple(cache[i][0].tolist()) for i in range(8)}


@pytest.mark.usefixtures("elsewhere")
def test_classes_keep_imagenets_indices_and_names(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sample", "--model", str(made / "model"), "--num", "1", "--out"]
    for i, name in enumerate(("207", "golden retriever", "n02099601")):
        assert main([*words, str(i), "--class", name]) == 0
    assert len({Path(str(i), "207-golden-retriever-seed0.png").read_bytes() for i in range(3)}) == 1
    capsys.readouterr()
    for unknown, complaint in (("0", 'never seen class 0, "tench" (n01440764)'), ("unicorn", 'no class "unicorn"')):
        assert main([*words, "none", "--class", unknown]) == 2
        line = capsys.readouterr().err
        assert line.startswith("coda sample: --class: ") and line.count("\n") == 1
        assert f"{complaint}; it knows 1 goldfish, 207 golden retriever" in line


@pytest.mark.usefixtures("elsewhere")
def test_a_model_with_a_manifest_reconstructs(made: Path, photos: str) -> None:
    photo = f"{photos}/n02099601/0.png"
    assert main(["reconstruct", photo, "--tokenizer", str(made / "model"), "--out", "r"]) == 0
    Path("runs").mkdir()
    Path("runs/tokenizer").symlink_to(made / "tokenizer")
    assert main(["reconstruct", photo, "--out", "s"]) == 0
    first, second = (json.loads(Path(out, "reconstruction.json").read_text()) for out in "rs")
    assert (first["fingerprint"], second["tokenizer"]) == (second["fingerprint"], "runs/tokenizer")


def test_the_card_says_how_it_was_made_and_how_good_it_is(made: Path) -> None:
    card = (made / "model" / "README.md").read_text()
    assert 'CodaPipeline.from_pretrained("bundled")' in card and "1 goldfish, 207 golden retriever" in card
    assert (
        "from all 6 images, tokenizer and generator from the 4 of its classes and their mirror images; 4 others" in card
        and "| train-maskgit | 0.0" in card
        and "steps 2" in card
    )
    assert "### Between floor and ceiling" in card and "| their mean colors | 4 |" in card
    assert "![" in card and (made / "model" / "nearest.png").exists()


def test_what_is_done_is_not_done_again(
    made: Path, photos: str, content: Callable[[Path], dict[str, bytes]], tmp_path: Path
) -> None:
    def weights(folder: Path) -> dict[str, bytes]:
        return {name: data for name, data in content(folder).items() if name.endswith((".safetensors", "index.json"))}

    stages = ("vae", "adapted", "cache", "generator", "judgment")
    before = {stage: (made / stage).stat().st_mtime_ns for stage in stages}, weights(made / "model")
    make_model(photos, photos, made, recipe=RECIPE, run=RUN)
    assert before == ({stage: (made / stage).stat().st_mtime_ns for stage in stages}, weights(made / "model"))
    (tmp_path / "judgment").symlink_to(made / "judgment")  # of the same weights
    parts: dict[str, Any] = {"tokenizer": str(made / "adapted"), "generator": str(made / "generator")}
    model = make_model(photos, photos, tmp_path, **parts, recipe=RECIPE, run=RUN)
    assert weights(model) == before[1] and "| vae | | made by another run |" in (model / "README.md").read_text()


@pytest.mark.skipif(not BUNDLED_MODEL.exists(), reason="this version has no bundled model")
@pytest.mark.usefixtures("elsewhere")
def test_the_model_that_ships(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(path.stat().st_size for path in BUNDLED_MODEL.rglob("*")) <= 40 * 10**6
    assert main(["sample", "--class", "207", "--num", "1", "--out", "s"]) == 0
    tokenizer = CodaTokenizer.from_pretrained(BUNDLED_MODEL)
    assert json.loads(Path("s/samples.json").read_text())["tokenizer"] == tokenizer.fingerprint
    assert main(["reconstruct", "s/207-golden-retriever-seed0.png", "--out", "r"]) == 0
    assert main(["benchmark", "speed-sample", "--batch-size", "1", "--repeats", "1", "--out", "b"]) == 0
    assert "sampling rate" in Path("b/report.md").read_text()
    assert main(["sample", "--class", "0"]) == 2
    assert "207 golden retriever" in capsys.readouterr().err
