"""What is seen while a training runs, and that looking changes nothing."""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from coda.tokenizer import CodaError, ContinuousVAE
from coda.tokenizer.adapt import adapt
from coda.tokenizer.images import image_batches, to_unit
from coda.tokenizer.settings import AdaptSettings, RunOptions, VaeSettings
from coda.tokenizer.train_vae import train_vae
from coda.tokenizer.training.curves import draw_curves
from coda.tokenizer.training.monitoring import find_collapse
from coda.tokenizer.training.validation import split_validation
from coda.tokenizer.vae.continuous_vae import measure_normalization

CPU = RunOptions(device="cpu")
WEIGHTS = "diffusion_pytorch_model.safetensors"


def adapting(**changed):
    settings = dict(
        codebook_size=32, lora_rank=2, steps=12, batch_size=4, warmup=1, perceptual_weight=0.0, validation_share=0.25
    )
    return AdaptSettings(**(settings | changed))


def training(**changed):
    settings = dict(
        size=8, factor=2, latent_channels=4, width=16, steps=12, batch_size=4, perceptual_weight=0.0,
        validation_share=0.25,
    )  # fmt: skip
    return VaeSettings(**(settings | changed))


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def vae(ramps, small_autoencoder):
    torch.manual_seed(0)
    (batch,) = image_batches(ramps(), 8, 24)
    return measure_normalization(ContinuousVAE(small_autoencoder()), [to_unit(batch.pixels)])


@pytest.fixture(scope="module")
def watched(tmp_path_factory, vae, ramps):
    return adapt(vae, ramps(), tmp_path_factory.mktemp("watched") / "tokenizer", adapting(validate_every=6), CPU)


def test_held_out_images_follow_from_seed_and_index_and_are_not_trained_on(ramps):
    trained, held_out = split_validation(ramps(500), None, 0.1, seed=3)
    keys = [{part.key(i) for i in range(len(part))} for part in (trained, held_out)]
    assert not keys[0] & keys[1] and len(keys[0] | keys[1]) == 500 and 30 < len(keys[1]) < 70
    longer = split_validation(ramps(600), None, 0.1, seed=3)[1]
    assert {longer.key(i) for i in range(len(longer))} >= keys[1]
    assert {other.key(i) for other in split_validation(ramps(500), None, 0.1, 4)[1:] for i in range(30)} != keys[1]
    assert len(split_validation(ramps(10_000), None, 0.1, seed=3)[1]) < 100  # no more than are looked at
    assert [len(part) for part in split_validation(ramps(9), ramps(5), 0.5, seed=3)] == [9, 5]
    with pytest.raises(CodaError, match="validation_share 1 leaves no image"):
        split_validation(ramps(9), None, 1.0, seed=3)


def test_adapt_reads_held_out_images_for_the_validation_alone(tmp_path, vae, ramps, capsys):
    items = []

    class Noted(ramps):
        def read(self, i):
            items.append(i)
            return super().read(i)

    source, settings = Noted(), adapting(steps=6)
    held_out = split_validation(source, None, settings.validation_share, settings.seed)[1]
    out = adapt(vae, source, tmp_path / "tokenizer", settings, CPU)
    held_out_items = {int(held_out.key(i).split()[1]) for i in range(len(held_out))}
    assert 2 <= len(held_out_items) <= 12
    counts = {i: items[1:].count(i) for i in range(24)}  # the first read is for the default size
    assert all((counts[i] == 1) == (i in held_out_items) for i in range(24))
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first.startswith("Adapting: 6 steps; on cpu, ") and first.endswith(f"; log in {out}")
    assert f"4 of {24 - len(held_out)} images at 8x8 pixels a step, {len(held_out)} held out" in first
    assert last.startswith("Adapting: done, 6 steps in 0:0") and "validation_psnr" in last


def test_the_log_holds_quality_and_usage(watched, ramps):
    log = read_log(watched)
    assert [line["step"] for line in log] == [0, 6, 10, 12]
    assert log[0].keys() == {"step", "effective_rank", "validation_psnr", "validation_perceptual"}
    assert all(10 < line["validation_psnr"] < 60 and 0 < line["validation_perceptual"] < 2 for line in (log[0], log[3]))
    assert "usage" not in log[2] and "validation_psnr" not in log[2]
    last = log[3]
    assert 1 <= last["effective_rank"] <= 4 and 0 < last["usage"] <= 100
    assert {"usage_level_0", "perplexity", "perplexity_level_2"} <= last.keys()
    for step in (0, 6, 12):
        width, height = Image.open(watched / "sheets" / f"step-{step:08d}.png").size
        assert width > height > 2 * 128  # originals above reconstructions, each enlarged to 128 pixels
    assert Image.open(watched / "curves.png").format == "PNG"


def test_phases_on_cached_latents_are_watched_too(tmp_path, vae, ramps):
    settings = adapting(quantizer_steps=4, decoder_steps=2, steps=0, validate_every=2)
    log = read_log(adapt(vae, ramps(), tmp_path / "tokenizer", settings, CPU))
    assert [line["step"] for line in log if "validation_psnr" in line] == [0, 2, 4, 6]
    assert all("usage" in line for line in log[1:])


def test_looking_changes_nothing(tmp_path, vae, ramps, watched):
    rare = adapt(vae, ramps(), tmp_path / "tokenizer", adapting(validate_every=1000), CPU)
    vaes = [train_vae(ramps(), tmp_path / f"vae-{n}", training(validate_every=n), CPU) for n in (4, 1000)]
    for one, other in ((watched / "vae", rare / "vae"), vaes):
        tensors = [load_file(folder / WEIGHTS) for folder in (one, other)]
        assert all(torch.equal(tensors[0][name], tensor) for name, tensor in tensors[1].items())
    assert [line["step"] for line in read_log(vaes[0]) if "validation_psnr" in line] == [0, 4, 8, 12]
    assert len(list((vaes[0] / "sheets").iterdir())) == 4


def test_a_resumed_run_sees_the_same(tmp_path, vae, ramps, content, watched):
    run, settings = RunOptions(device="cpu", checkpoint_every=4), adapting(validate_every=6)
    with pytest.raises(KeyboardInterrupt):  # between a validation and the next, after a checkpoint in between
        adapt(vae, ramps(interrupt_at=1 + 24 + 4 * 9), tmp_path / "parts", settings, run)
    assert (tmp_path / "parts" / "checkpoints" / "step-00000008").is_dir()
    assert content(adapt(vae, ramps(), tmp_path / "parts", settings, run)) == content(watched)


@pytest.mark.parametrize(
    ("used", "best", "found"),
    [
        ({"a": 90.0}, {}, None),
        ({"a": 51.0, "b": 8.0}, {"a": 100.0, "b": 9.0}, None),
        ({"a": 40.0, "b": 1.0}, {"a": 100.0, "b": 9.0}, "b fell from 9.0 % to 1.0 %, 1 others fell too"),
    ],
)
def test_a_collapse_is_named(used, best, found):
    assert find_collapse(used, best) == found


def test_a_collapse_is_one_line_of_the_log(tmp_path, vae, ramps, capsys):
    settings = adapting(steps=30, lr=0.3, warmup=0, validate_every=10, validation_share=0.0)
    adapt(vae, ramps(), tmp_path / "tokenizer", settings, CPU)
    assert "Adapting: the codebook has collapsed at step " in capsys.readouterr().err


def test_curves_are_drawn_of_what_there_is(tmp_path):
    log = [{"step": 0, "validation_psnr": 3.0}, {"step": 10, "loss": 1.0, "usage_level_0": 5.0, "usage": 7.0}]
    assert draw_curves(log, tmp_path / "curves.png", "a run")
    assert Image.open(tmp_path / "curves.png").width > 500


STAND_IN = """
import json, os

class SummaryWriter:
    def __init__(self, folder):
        os.makedirs(folder, exist_ok=True)
        self.file = open(os.path.join(folder, "scalars.jsonl"), "a")
    def add_scalar(self, name, value, global_step=None):
        self.file.write(json.dumps([name, value, global_step]) + "\\n")
    def add_hparams(self, values, metric_dict):
        self.file.write(json.dumps(["lr", values["lr"], None]) + "\\n")
    def flush(self):
        self.file.flush()
    def close(self):
        self.file.close()
"""


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="accelerate would take the real one")
def test_the_log_goes_to_accelerates_tracker(tmp_path, ramps, monkeypatch):
    """A package in place of tensorboardX takes what accelerate's tracker writes."""
    (tmp_path / "packages" / "tensorboardX").mkdir(parents=True)
    (tmp_path / "packages" / "tensorboardX" / "__init__.py").write_text(STAND_IN)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    run = RunOptions(device="cpu", log_with="tensorboard")
    out = train_vae(ramps(), tmp_path / "vae", training(), run)
    sys.modules.pop("tensorboardX")
    (file,) = (out / "logs").rglob("scalars.jsonl")
    found = [json.loads(line) for line in file.read_text().splitlines()]
    assert ["lr", training().lr, None] in found
    assert ["loss", read_log(out)[-1]["loss"], 12] in found


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_not_installed_is_named(tmp_path, ramps):
    with pytest.raises(CodaError, match="log_with wandb needs a package that is not installed: pip install wandb"):
        train_vae(ramps(), tmp_path / "vae", training(), RunOptions(device="cpu", log_with="wandb"))
