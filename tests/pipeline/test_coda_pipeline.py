"""Sampling through the pipeline; saving it, and loading it whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from coda.generator import MaskGitScheduler
from coda.pipeline import CodaPipeline
from coda.pipeline.cli.cli import main
from coda.tokenizer import CodaError, CodaTokenizer, ResidualQuantizer

from .conftest import make_pipeline, make_tokenizer_parts

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(pipeline, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "small"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved, tmp_path):
    """A saved pipeline to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def _codes(pipeline, *arguments, **settings):
    return pipeline(*arguments, output_type="codes", **settings).images


# Sampling


def test_image_j_of_a_class_has_seed_plus_j(pipeline):
    four = _codes(pipeline, ["cats", "dogs"], num_images_per_class=4, generator=7)
    assert torch.equal(four, _codes(pipeline, ["cats", 1], num_images_per_class=4, generator=np.int64(7)))
    assert len(four.unique(dim=0)) == 8, "no two images of a call are the same"
    for j in range(4):
        assert torch.equal(_codes(pipeline, "dogs", generator=7 + j)[0], four[4 + j])
    assert torch.equal(_codes(pipeline, ["dogs", "cats", "dogs"], generator=7)[[0, 2]], four[4:6])
    assert torch.equal(_codes(pipeline, [1, 0], generator=[8, 7]), four[[5, 0]])
    assert torch.equal(_codes(pipeline, None, 2, generator=7)[1:], _codes(pipeline, [None], generator=8))


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_and_order_change_no_image(pipeline, batch_size):
    whole = pipeline([0, 1], num_images_per_class=3, generator=7, output_type="np").images
    parts = pipeline([1, 0], num_images_per_class=3, generator=7, output_type="np", batch_size=batch_size).images
    assert (whole == np.roll(parts, 3, axis=0)).all()


def test_a_generator_for_all_or_one_for_each(pipeline):
    def fresh(seed):
        return torch.Generator().manual_seed(seed)

    one = fresh(3)
    first, second = (_codes(pipeline, 0, generator=one) for _ in range(2))
    assert not torch.equal(first, second), "a generator goes on"
    assert torch.equal(first, _codes(pipeline, 0, generator=fresh(3)))
    each = _codes(pipeline, [0, 1], generator=[fresh(1), fresh(2)])
    assert torch.equal(each, _codes(pipeline, [1, 0], generator=[2, 1]).flip(0))
    torch.manual_seed(5)
    unseeded = _codes(pipeline, 0)
    assert not torch.equal(unseeded, _codes(pipeline, 0))
    torch.manual_seed(5)
    assert torch.equal(unseeded, _codes(pipeline, 0))


def test_class_guidance_and_steps_matter(pipeline):
    settings = {"generator": [1], "guidance_scale": 1.0, "num_inference_steps": 8}
    plain = _codes(pipeline, 0, **settings)
    assert torch.equal(plain, _codes(pipeline, "cats", **{**settings, "num_inference_steps": [1, 1, 2, 4]}))
    for label, other in ((1, {}), (0, {"guidance_scale": 6.0}), (0, {"num_inference_steps": 20})):
        assert not torch.equal(plain, _codes(pipeline, label, **{**settings, **other}))
    none = _codes(pipeline, None, **settings)
    assert torch.equal(none, _codes(pipeline, None, **{**settings, "guidance_scale": 9.0}))


def test_every_output_type_is_the_same_image(pipeline):
    kinds = ("pil", "np", "pt", "latent", "codes")
    made = {kind: pipeline([0, 2], generator=1, output_type=kind).images for kind in kinds}
    assert made["codes"].shape == (2, 85) and made["latent"].shape == (2, 4, 8, 8)
    assert made["pt"].shape == (2, 3, 16, 16) and made["np"].shape == (2, 16, 16, 3)
    assert 0 <= made["np"].min() < made["np"].max() <= 1
    assert torch.equal(pipeline.quantizer.decode(made["codes"]), made["latent"])
    images = pipeline.decode(made["codes"])
    assert torch.allclose(images, pipeline.tokenizer.decode(made["codes"]), atol=1e-4)
    assert torch.allclose(made["pt"], images / 2 + 0.5)
    assert (made["pt"].movedim(1, -1).numpy() == made["np"]).all()
    assert (np.stack([np.asarray(image) for image in made["pil"]]) == (made["np"] * 255).round()).all()
    (as_tuple,) = pipeline([0, 2], generator=1, output_type="codes", return_dict=False)
    assert torch.equal(as_tuple, made["codes"])


def test_a_grid_shows_every_image_with_its_class_and_seed(pipeline):
    made = pipeline(["cats", 2], num_images_per_class=3, generator=7)
    assert made.captions == [f"{name}, seed {seed}" for name in ("cats", "golden fish") for seed in (7, 8, 9)]
    wide, high = made.grid(), made.grid(columns=1)
    assert wide.width > 3 * 128 and wide.height > 2 * 128 and high.width < 2 * 128 and high.height > 6 * 128
    assert pipeline(None, generator=[4]).captions == ["seed 4"]
    with pytest.raises(CodaError, match="output_type"):
        pipeline(0, generator=0, output_type="pt").grid()


def test_the_callback_sees_every_step_and_can_replace_codes(pipeline):
    seen = []

    def watch(pipe, step, timestep, tensors):
        assert pipe is pipeline and tensors["prefix_latents"].shape == (len(tensors["codes"]), 4, 8, 8)
        seen.append((step, int(timestep), int((tensors["codes"] == 32).sum())))
        return {}

    names = ["codes", "prefix_latents"]
    pipeline(0, 3, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names, batch_size=2)
    assert [step for step, _, _ in seen] == list(range(16)) and pipeline.num_timesteps == 16
    assert [timestep for _, timestep, _ in seen] == [*range(8), *range(8)]
    masked = [count for _, _, count in seen]
    assert masked[:8] == sorted(masked[:8], reverse=True) and masked[7] == masked[15] == 0

    fives = _codes(pipeline, 0, callback_on_step_end=lambda *step: {"codes": torch.full_like(step[3]["codes"], 5)})
    assert (fives == 5).all()
    with pytest.raises(CodaError, match="expected \\(1, 85\\)"):
        pipeline(0, callback_on_step_end=lambda *_: {"codes": torch.zeros(1, 3)})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"class_labels": "catz"}, '"cats"'),
        ({"class_labels": 4}, "0 to 3"),
        ({"class_labels": "birds"}, "never seen class 3"),
        ({"class_labels": []}, "at least one"),
        ({"class_labels": 2.5}, "expected an index"),
        ({"num_images_per_class": 0}, "num_images_per_class is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"generator": 2**63}, "not a seed"),
        ({"generator": True}, "not a seed"),
        ({"generator": [1.5]}, "not a seed"),
        ({"generator": [1, 2]}, "2 generators for 1 images"),
        ({"output_type": "jpeg"}, "pil, np, pt"),
        ({"num_inference_steps": 2}, "too few"),
        ({"callback_on_step_end_tensor_inputs": ["latents"]}, "latents"),
    ],
)
def test_a_wrong_argument_is_one_line(pipeline, arguments, says):
    with pytest.raises(CodaError, match=says) as error:
        pipeline(**{"class_labels": 0, **arguments})
    assert "\n" not in str(error.value)


def test_progress_can_be_turned_off(pipeline, capsys):
    pipeline(0)
    assert capsys.readouterr().err == ""
    loud = CodaPipeline(**pipeline.components)
    loud.set_progress_bar_config(desc="Sampling")
    loud(0, 3, batch_size=1)
    assert "24/24" in capsys.readouterr().err


def test_half_precision(saved, parts):
    converted = make_pipeline().to(torch.bfloat16)
    images = converted([0, 1], generator=1, output_type="np").images
    assert images.dtype == np.float32 and np.isfinite(images).all()
    for loaded in (
        CodaPipeline.from_pretrained(saved, dtype=torch.bfloat16),
        CodaPipeline.from_pretrained(saved, torch_dtype=torch.bfloat16, use_safetensors=True),
        CodaPipeline.from_parts(*parts, torch_dtype=torch.bfloat16),
    ):
        assert {loaded.vae.dtype, loaded.quantizer.dtype, loaded.transformer.dtype} == {torch.bfloat16}
        assert torch.equal(_codes(loaded, [0, 1], generator=1), _codes(converted, [0, 1], generator=1))
    assert loaded.tokenizer.fingerprint == loaded.transformer.config.tokenizer_fingerprint, "that of float32 weights"


def test_copies_and_offloading_sample_the_same(pipeline):
    expected = pipeline(0, generator=1, output_type="np").images
    copied = pickle.loads(pickle.dumps(pipeline))
    assert (copied(0, generator=1, output_type="np").images == expected).all()
    copied.enable_model_cpu_offload(device="cpu")
    for _ in range(2):
        assert (copied(0, generator=1, output_type="np").images == expected).all()
    with pytest.raises(CodaError, match="sequential offloading needs an accelerator"):
        copied.enable_sequential_cpu_offload("cpu")


def test_parts_that_do_not_fit_are_refused(pipeline):
    parts = {**pipeline.components, "quantizer": ResidualQuantizer(4, 64, (1, 2, 4, 8))}
    with pytest.raises(CodaError, match=r"K 64.*K 32"):
        CodaPipeline(**parts)
    with pytest.raises(CodaError, match="4, 8 and 4 latent channels"):
        CodaPipeline(**{**parts, "quantizer": ResidualQuantizer(8, 32, (1, 2, 4, 8))})


# Saving and loading


def test_a_saved_pipeline_samples_the_same_in_a_fresh_process_without_network(pipeline, saved):
    code = """
import sys, hashlib
from coda.pipeline import CodaPipeline
pipeline = CodaPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
images = pipeline(["cats", "golden fish"], num_images_per_class=2, generator=3, output_type="np").images
print(hashlib.sha256(images.tobytes()).hexdigest())
"""
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-c", code, str(saved)]
    done = subprocess.run(command, capture_output=True, text=True, env=offline, cwd="/", timeout=120)
    assert done.returncode == 0, done.stderr
    here = pipeline(["cats", "golden fish"], num_images_per_class=2, generator=3, output_type="np").images
    assert done.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()


def test_saved_pipelines_name_packages_not_files(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["vae"] == ["coda.tokenizer", "ContinuousVAE"]
    assert index["scheduler"] == ["coda.generator", "MaskGitScheduler"]


def test_variants_and_shards_replace_their_own_kind(pipeline, tmp_path):
    for settings in ({"variant": "fp16"}, {"max_shard_size": "20KB"}, {}, {"variant": "fp16"}):
        pipeline.save_pretrained(tmp_path, **settings)
        loaded = CodaPipeline.from_pretrained(tmp_path, variant=settings.get("variant"))
        assert torch.equal(_codes(loaded, 0, generator=1), _codes(pipeline, 0, generator=1))
        shards = list((tmp_path / "transformer").glob("*-of-*"))
        assert len(shards) > 1 if "max_shard_size" in settings else not shards
    names = {path.name for path in (tmp_path / "transformer").iterdir()}
    assert names == {"config.json", WEIGHTS, WEIGHTS.replace(".s", ".fp16.s")}


@pytest.mark.parametrize(
    "keywords",
    [
        {"low_cpu_mem_usage": True, "device_map": None, "variant": None},
        {"local_files_only": True, "revision": None, "token": None, "cache_dir": None, "force_download": False},
        {"torch_dtype": {"transformer": torch.bfloat16, "default": torch.float32}},
        {"scheduler": MaskGitScheduler(num_inference_steps=5), "safety_checker": None},
    ],
    ids=lambda keywords: next(iter(keywords)),
)
def test_keywords_of_diffusers_recipes_are_taken(saved, keywords):
    loaded = CodaPipeline.from_pretrained(saved, use_safetensors=True, **keywords)
    assert loaded.scheduler.config.num_inference_steps == (5 if "scheduler" in keywords else 8)


def test_settings_of_the_scheduler_are_kept(saved, tmp_path):
    loaded = CodaPipeline.from_pretrained(saved)
    loaded.scheduler = MaskGitScheduler(num_inference_steps=5, order="halton")
    loaded.save_pretrained(tmp_path)
    again = CodaPipeline.from_pretrained(tmp_path)
    assert (again.scheduler.config["num_inference_steps"], again.scheduler.config["order"]) == (5, "halton")
    assert not any(module.training for module in (again.vae, again.quantizer, again.transformer))


def test_a_hub_id_is_a_snapshot(saved, tmp_path):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--small"
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    loaded = CodaPipeline.from_pretrained("someone/small", cache_dir=tmp_path, local_files_only=True)
    assert loaded.transformer.layout.num_tokens == 85
    with pytest.raises(CodaError, match="someone/other"):
        CodaPipeline.from_pretrained("someone/other", cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize("part", ["vae", "quantizer", "transformer"])
def test_damaged_weights_are_an_error(copy, part):
    path = copy / part / WEIGHTS
    whole = load_file(path)
    name = sorted(whole)[0]
    for tensors, says in (
        ({key: tensor for key, tensor in whole.items() if key != name}, name),
        ({**whole, "stranger": torch.zeros(1)}, "stranger"),
        ({**whole, name: torch.zeros(7, 4)}, name),
        ({**whole, name: torch.tensor(0.0)}, name),
    ):
        save_file(tensors, path)
        with pytest.raises(CodaError, match=f"{part}|{says}") as error:
            CodaPipeline.from_pretrained(copy)
        assert "\n" not in str(error.value)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CodaError, match=part) as error:
        CodaPipeline.from_pretrained(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_class_name": "FluxPipeline"}, "FluxPipeline, not a CodaPipeline"),
        ({"_class_name": ["pipeline", "Evil"]}, "Evil"),
        ({"vae": ["subprocess", "Popen"]}, "subprocess"),
        ({"transformer": [None, None]}, "transformer"),
    ],
)
def test_an_index_that_names_anything_else_is_refused(copy, change, says):
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, **change}))
    with pytest.raises(CodaError, match=says):
        CodaPipeline.from_pretrained(copy)


def test_other_directories_are_refused(copy, tmp_path):
    for refused in ({"trust_remote_code": True}, {"custom_pipeline": "x"}, {"use_safetensors": False}):
        with pytest.raises(CodaError, match="is refused"):
            CodaPipeline.from_pretrained(copy, **refused)
    (copy / "model_index.json").write_text("{")
    for folder, says in (
        (copy, "cannot be read"),
        (copy / "transformer", "only a part"),
        (tmp_path, "not a saved pipeline"),
        (str(tmp_path / "nowhere"), "no such file or directory"),
    ):
        with pytest.raises(CodaError, match=says):
            CodaPipeline.from_pretrained(folder)


# The model card


def test_the_model_card_describes_the_model(saved):
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    assert "16×16" in card and "0 cats, 1 dogs, 2 golden fish" in card and "birds" not in card
    assert "85 codes of 5 bits: 425 bits" in card and "AutoencoderKL" in card


@pytest.mark.parametrize("name", ["cats", 'a "cat"; rm -rf ~', "it's `x`", "2", "-f", "cat\n```\n\x1b[2J"], ids=repr)
def test_the_model_cards_code_runs_and_both_ways_make_the_same_images(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    made = make_pipeline()
    made.transformer.register_to_config(class_names=[name, "dogs", "<b>fish</b>", "birds"])
    made.save_pretrained("it's here")
    card = Path("it's here", "README.md").read_text()
    python, shell = (card.split(f"```{language}\n")[1].split("\n```")[0] for language in ("python", "sh"))
    variables = {}
    exec(python, variables)
    assert main([*shlex.split(shell)[1:], "--device", "cpu", "--dtype", "float32"]) == 0
    files = sorted(Path("runs/samples").glob("0-*seed*.png"), key=lambda path: path.stem[-1])
    assert [path.stem[-1] for path in files] == list("0123")
    for path, image in zip(files, variables["images"], strict=True):
        assert Image.open(path).tobytes() == image.tobytes()
    assert "\x1b" not in card and "\n```\n\\" not in card and "\\<b\\>fish" in card


# A generator and its tokenizer


@pytest.fixture
def parts(tmp_path):
    """Directories as adapt and train_maskgit leave them."""
    made = make_pipeline()
    made.tokenizer.save_pretrained(tmp_path / "tokenizer")
    made.transformer.register_to_config(tokenizer_fingerprint=made.tokenizer.fingerprint)
    made.transformer.save_pretrained(tmp_path / "generator")
    made.scheduler.save_pretrained(tmp_path / "generator" / "scheduler")
    return tmp_path / "generator", tmp_path / "tokenizer"


def test_a_generator_and_its_tokenizer_make_a_pipeline(pipeline, parts, tmp_path):
    together = CodaPipeline.from_parts(*parts)
    together.set_progress_bar_config(disable=True)
    assert torch.equal(_codes(together, "dogs", generator=3), _codes(pipeline, "dogs", generator=3))
    assert together.transformer.config.tokenizer_fingerprint == together.tokenizer.fingerprint
    together.save_pretrained(tmp_path / "whole")
    assert together.tokenizer.fingerprint in (tmp_path / "whole" / "README.md").read_text()
    with pytest.raises(CodaError, match="whole pipeline"):
        CodaPipeline.from_parts(tmp_path / "whole", parts[1])


def test_another_tokenizer_is_refused_and_both_are_named(parts, tmp_path):
    other, own = CodaTokenizer(*make_tokenizer_parts(seed=1)), CodaTokenizer.from_pretrained(parts[1])
    with pytest.raises(CodaError, match=f"{own.fingerprint}.*{other.fingerprint}"):
        CodaPipeline.from_parts(parts[0], other)
    with pytest.raises(CodaError, match="not a generator"):
        CodaPipeline.from_parts(parts[1], parts[1])
    whole = CodaPipeline.from_parts(*parts)
    whole.save_pretrained(tmp_path / "whole")
    other.quantizer.save_pretrained(tmp_path / "whole" / "quantizer")
    with pytest.raises(CodaError, match="trained on codes of the tokenizer"):
        CodaPipeline.from_pretrained(tmp_path / "whole")
    whole.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    assert CodaPipeline.from_pretrained(tmp_path / "half").vae.dtype == torch.float32
