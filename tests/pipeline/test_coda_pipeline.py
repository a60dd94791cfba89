"""Sampling through the pipeline; saving it, and loading it whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from coda.generator import MaskGitScheduler
from coda.pipeline import CodaPipeline
from coda.tokenizer import CodaError, CodaTokenizer

from .conftest import make_pipeline, make_tokenizer_parts

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def saved(pipeline: CodaPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "small"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    """A saved pipeline to do damage to."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def _codes(pipeline: CodaPipeline, *arguments: Any, **settings: Any) -> torch.Tensor:
    images = pipeline(*arguments, output_type="codes", **settings).images
    assert isinstance(images, torch.Tensor)
    return images


# Sampling


def test_a_seed_gives_the_same_pictures_again(pipeline: CodaPipeline) -> None:
    first, again = (_codes(pipeline, ["cats", 1], num_images_per_class=3, generator=7) for _ in range(2))
    other = _codes(pipeline, ["cats", 1], num_images_per_class=3, generator=8)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len(first.unique(dim=0)) == 6, "no two pictures of a call are the same"


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_changes_no_picture(pipeline: CodaPipeline, batch_size: int) -> None:
    whole = pipeline([0, 1], num_images_per_class=3, generator=7, output_type="np").images
    parts = pipeline([0, 1], num_images_per_class=3, generator=7, output_type="np", batch_size=batch_size).images
    assert isinstance(whole, np.ndarray) and isinstance(parts, np.ndarray)
    assert (whole == parts).all()


def test_order_and_company_change_no_picture(pipeline: CodaPipeline) -> None:
    forward = _codes(pipeline, ["cats", "dogs"], num_images_per_class=2, generator=7)
    backward = _codes(pipeline, ["dogs", "cats"], num_images_per_class=2, generator=7)
    assert torch.equal(forward, backward.roll(2, dims=0))
    assert torch.equal(_codes(pipeline, "dogs", generator=7)[0], forward[2]), "alone as in company"
    assert torch.equal(_codes(pipeline, ["dogs", "cats", "dogs"], generator=7)[[0, 2]], forward[2:])


def test_a_generator_for_all_or_one_for_each(pipeline: CodaPipeline) -> None:
    def fresh(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    one = fresh(3)
    first, second = (_codes(pipeline, 0, generator=one) for _ in range(2))
    assert not torch.equal(first, second), "a generator goes on"
    assert torch.equal(first, _codes(pipeline, 0, generator=fresh(3)))
    each = _codes(pipeline, [0, 1], generator=[fresh(1), fresh(2)])
    swapped = _codes(pipeline, [1, 0], generator=[2, 1])
    assert torch.equal(each, swapped.flip(0))
    torch.manual_seed(5)
    unseeded = _codes(pipeline, 0)
    assert not torch.equal(unseeded, _codes(pipeline, 0))
    torch.manual_seed(5)
    assert torch.equal(unseeded, _codes(pipeline, 0))
    with pytest.raises(CodaError, match="2 generators for 3 images"):
        pipeline(0, num_images_per_class=3, generator=[1, 2])


def test_class_guidance_and_steps_matter(pipeline: CodaPipeline) -> None:
    plain = _codes(pipeline, 0, generator=[1], guidance_scale=1.0, num_inference_steps=8)
    assert torch.equal(
        plain, _codes(pipeline, "cats", generator=[1], guidance_scale=1, num_inference_steps=[1, 1, 2, 4])
    )
    assert not torch.equal(plain, _codes(pipeline, 1, generator=[1], guidance_scale=1.0, num_inference_steps=8))
    assert not torch.equal(plain, _codes(pipeline, 0, generator=[1], guidance_scale=6.0, num_inference_steps=8))
    assert not torch.equal(plain, _codes(pipeline, 0, generator=[1], guidance_scale=1.0, num_inference_steps=20))
    none = _codes(pipeline, None, generator=[1], num_inference_steps=8)
    assert torch.equal(none, _codes(pipeline, None, generator=[1], num_inference_steps=8, guidance_scale=9.0))


def test_every_output_type_is_the_same_picture(pipeline: CodaPipeline) -> None:
    made = {
        kind: pipeline([0, 2], generator=1, output_type=kind).images for kind in ("pil", "np", "pt", "latent", "codes")
    }
    assert made["codes"].shape == (2, 85) and made["latent"].shape == (2, 4, 8, 8)
    assert made["pt"].shape == (2, 3, 16, 16) and made["np"].shape == (2, 16, 16, 3)
    assert 0 <= made["np"].min() < made["np"].max() <= 1
    assert torch.equal(pipeline.quantizer.decode(made["codes"]), made["latent"])
    images = pipeline.decode(made["codes"])
    assert torch.allclose(images, pipeline.tokenizer.decode(made["codes"]), atol=1e-4)
    assert torch.allclose(made["pt"], images / 2 + 0.5)
    assert (made["pt"].movedim(1, -1).numpy() == made["np"]).all()
    assert (np.stack([np.asarray(image) for image in made["pil"]]) == (made["np"] * 255).round()).all()
    as_tuple = pipeline([0, 2], generator=1, output_type="codes", return_dict=False)
    assert isinstance(as_tuple, tuple) and torch.equal(as_tuple[0], made["codes"])


def test_the_callback_sees_every_step(pipeline: CodaPipeline) -> None:
    seen = []

    def watch(
        pipe: CodaPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]
    ) -> dict[str, Any]:
        assert pipe is pipeline and tensors["prefix_latents"].shape == (len(tensors["codes"]), 4, 8, 8)
        seen.append((step, int(timestep), int((tensors["codes"] == 32).sum())))
        return {}

    names = ["codes", "prefix_latents"]
    pipeline(0, 3, callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names, batch_size=2)
    assert [step for step, _, _ in seen] == list(range(16)) and pipeline.num_timesteps == 16
    assert [timestep for _, timestep, _ in seen] == [*range(8), *range(8)]
    masked = [count for _, _, count in seen]
    assert masked[:8] == sorted(masked[:8], reverse=True) and masked[7] == masked[15] == 0


def test_the_callback_can_replace_codes(pipeline: CodaPipeline) -> None:
    def all_fives(pipe: CodaPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> Any:
        return {"codes": torch.full_like(tensors["codes"], 5)}

    assert (_codes(pipeline, 0, callback_on_step_end=all_fives) == 5).all()
    with pytest.raises(CodaError, match="expected \\(1, 85\\)"):
        pipeline(0, callback_on_step_end=lambda *_: {"codes": torch.zeros(1, 3)})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"class_labels": "catz"}, '"cats"'),
        ({"class_labels": 4}, "0 to 3"),
        ({"class_labels": "birds"}, "never seen class 3"),
        ({"class_labels": []}, "at least one"),
        ({"class_labels": 0, "num_images_per_class": 0}, "num_images_per_class is 0"),
        ({"class_labels": 0, "batch_size": 2.5}, "batch_size is 2.5"),
        ({"class_labels": 2.5}, "expected an index"),
        ({"class_labels": 0, "guidance_scale": float("nan")}, "guidance_scale is nan"),
        ({"class_labels": 0, "generator": 2**63}, "not a seed"),
        ({"class_labels": 0, "generator": True}, "not a seed"),
        ({"class_labels": 0, "generator": [1.5]}, "not a seed"),
        ({"class_labels": 0, "output_type": "jpeg"}, "pil, np, pt"),
        ({"class_labels": 0, "num_inference_steps": 2}, "too few"),
        ({"class_labels": 0, "callback_on_step_end_tensor_inputs": ["latents"]}, "latents"),
    ],
)
def test_a_wrong_argument_is_one_line(pipeline: CodaPipeline, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(CodaError, match=says) as error:
        pipeline(**arguments)
    assert "\n" not in str(error.value)


def test_progress_can_be_turned_off(pipeline: CodaPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline(0)
    assert capsys.readouterr().err == ""
    loud = CodaPipeline(**pipeline.components)
    loud.set_progress_bar_config(desc="Sampling")
    loud(0, 3, batch_size=1)
    assert "24/24" in capsys.readouterr().err


def test_half_precision(saved: Path) -> None:
    converted = make_pipeline().to(torch.bfloat16)
    images = converted([0, 1], generator=1, output_type="np").images
    assert isinstance(images, np.ndarray) and images.dtype == np.float32 and np.isfinite(images).all()
    loaded = CodaPipeline.from_pretrained(saved, dtype=torch.bfloat16)
    assert {loaded.vae.dtype, loaded.quantizer.dtype, loaded.transformer.dtype} == {torch.bfloat16}
    assert torch.equal(_codes(loaded, [0, 1], generator=1), _codes(converted, [0, 1], generator=1))


def test_parts_that_do_not_fit_are_refused(pipeline: CodaPipeline) -> None:
    from coda.tokenizer import ResidualQuantizer

    parts = {**pipeline.components, "quantizer": ResidualQuantizer(4, 64, (1, 2, 4, 8))}
    with pytest.raises(CodaError, match=r"K 64.*K 32"):
        CodaPipeline(**parts)
    with pytest.raises(CodaError, match="4, 8 and 4 latent channels"):
        CodaPipeline(**{**parts, "quantizer": ResidualQuantizer(8, 32, (1, 2, 4, 8))})


# Saving and loading


def test_a_saved_pipeline_samples_the_same_in_a_fresh_process_without_network(
    pipeline: CodaPipeline, saved: Path
) -> None:
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
    assert isinstance(here, np.ndarray)
    assert done.stdout.strip() == hashlib.sha256(here.tobytes()).hexdigest()


def test_what_is_saved_names_packages_not_files(saved: Path) -> None:
    index = json.loads((saved / "model_index.json").read_text())
    assert index["vae"] == ["coda.tokenizer", "ContinuousVAE"]
    assert index["scheduler"] == ["coda.generator", "MaskGitScheduler"]


@pytest.mark.parametrize("settings", [{"variant": "fp16"}, {"max_shard_size": "20KB"}], ids=str)
def test_variants_and_shards(pipeline: CodaPipeline, tmp_path: Path, settings: dict[str, Any]) -> None:
    pipeline.save_pretrained(tmp_path, **settings)
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1 or "variant" in settings
    loaded = CodaPipeline.from_pretrained(tmp_path, variant=settings.get("variant"))
    assert torch.equal(_codes(loaded, 0, generator=1), _codes(pipeline, 0, generator=1))


def test_settings_of_the_scheduler_are_kept(saved: Path, tmp_path: Path) -> None:
    loaded = CodaPipeline.from_pretrained(saved)
    loaded.scheduler = MaskGitScheduler(num_inference_steps=5, order="halton")
    loaded.save_pretrained(tmp_path)
    again = CodaPipeline.from_pretrained(tmp_path)
    assert (again.scheduler.config["num_inference_steps"], again.scheduler.config["order"]) == (5, "halton")
    assert not any(module.training for module in (again.vae, again.quantizer, again.transformer))


def test_the_model_card_says_what_it_is(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    assert 'from_pretrained("small")' in card and "--class" in card
    assert "16×16" in card and "0 cats, 1 dogs, 2 golden fish" in card and "birds" not in card
    assert "85 codes of 5 bits: 425 bits" in card and "AutoencoderKL" in card


def test_a_hub_id_is_a_snapshot(saved: Path, tmp_path: Path) -> None:
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
def test_a_missing_weight_is_an_error(copy: Path, part: str) -> None:
    tensors = load_file(copy / part / WEIGHTS)
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, copy / part / WEIGHTS)
    with pytest.raises(CodaError, match=name.replace(".", r"\.")) as error:
        CodaPipeline.from_pretrained(copy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("part", ["vae", "quantizer", "transformer"])
def test_a_truncated_file_is_an_error(copy: Path, part: str) -> None:
    content = (copy / part / WEIGHTS).read_bytes()
    (copy / part / WEIGHTS).write_bytes(content[: len(content) // 2])
    with pytest.raises(CodaError, match=part) as error:
        CodaPipeline.from_pretrained(copy)
    assert "\n" not in str(error.value)


def test_a_weight_too_many_or_of_another_shape_is_an_error(copy: Path) -> None:
    tensors = load_file(copy / "quantizer" / WEIGHTS)
    save_file({**tensors, "stranger": torch.zeros(1)}, copy / "quantizer" / WEIGHTS)
    with pytest.raises(CodaError, match="stranger"):
        CodaPipeline.from_pretrained(copy)
    save_file({**tensors, "codebook.weight": torch.zeros(7, 4)}, copy / "quantizer" / WEIGHTS)
    with pytest.raises(CodaError, match=r"quantizer|codebook"):
        CodaPipeline.from_pretrained(copy)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"_class_name": "FluxPipeline"}, "FluxPipeline, not a CodaPipeline"),
        ({"_class_name": ["pipeline", "Evil"]}, "Evil"),
        ({"vae": ["subprocess", "Popen"]}, "subprocess"),
        ({"transformer": [None, None]}, "transformer"),
    ],
)
def test_an_index_that_names_anything_else_is_refused(copy: Path, change: dict[str, Any], says: str) -> None:
    index = json.loads((copy / "model_index.json").read_text())
    (copy / "model_index.json").write_text(json.dumps({**index, **change}))
    with pytest.raises(CodaError, match=says):
        CodaPipeline.from_pretrained(copy)


def test_what_is_no_pipeline(copy: Path, tmp_path: Path) -> None:
    (copy / "model_index.json").write_text("{")
    with pytest.raises(CodaError, match="cannot be read"):
        CodaPipeline.from_pretrained(copy)
    with pytest.raises(CodaError, match="only a part"):
        CodaPipeline.from_pretrained(copy / "transformer")
    with pytest.raises(CodaError, match="not a saved pipeline"):
        CodaPipeline.from_pretrained(tmp_path)
    with pytest.raises(CodaError, match="no such file or directory"):
        CodaPipeline.from_pretrained(str(tmp_path / "nowhere"))
    with pytest.raises(CodaError, match="trust_remote_code is refused"):
        CodaPipeline.from_pretrained(copy, trust_remote_code=True)


# A generator and its tokenizer


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Path, Path]:
    """Directories as adapt and train_maskgit leave them."""
    made = make_pipeline()
    tokenizer = CodaTokenizer(made.vae, made.quantizer)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    made.transformer.register_to_config(tokenizer_fingerprint=tokenizer.fingerprint)
    made.transformer.save_pretrained(tmp_path / "generator")
    made.scheduler.save_pretrained(tmp_path / "generator" / "scheduler")
    return tmp_path / "generator", tmp_path / "tokenizer"


def test_a_generator_and_its_tokenizer_make_a_pipeline(
    pipeline: CodaPipeline, parts: tuple[Path, Path], tmp_path: Path
) -> None:
    together = CodaPipeline.from_parts(*parts)
    together.set_progress_bar_config(disable=True)
    assert torch.equal(_codes(together, "dogs", generator=3), _codes(pipeline, "dogs", generator=3))
    assert together.transformer.config.tokenizer_fingerprint == together.tokenizer.fingerprint
    together.save_pretrained(tmp_path / "whole")
    assert together.tokenizer.fingerprint in (tmp_path / "whole" / "README.md").read_text()
    with pytest.raises(CodaError, match="whole pipeline"):
        CodaPipeline.from_parts(tmp_path / "whole", parts[1])


def test_another_tokenizer_is_refused_and_both_are_named(parts: tuple[Path, Path], tmp_path: Path) -> None:
    other = CodaTokenizer(*make_tokenizer_parts(seed=1))
    own = CodaTokenizer.from_pretrained(parts[1])
    with pytest.raises(CodaError, match=f"{own.fingerprint}.*{other.fingerprint}"):
        CodaPipeline.from_parts(parts[0], other)
    with pytest.raises(CodaError, match="not a generator"):
        CodaPipeline.from_parts(parts[1], parts[1])
