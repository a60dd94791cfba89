import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from coda.tokenizer import CodaError, load_vae
from coda.tokenizer.images import ImageSource, image_batches, to_unit
from coda.tokenizer.train_vae import train_vae

SMALL = {"size": 16, "factor": 4, "latent_channels": 4, "width": 8, "batch_size": 4, "device": "cpu", "warmup": 2}


class Gradients(ImageSource):
    """Coloured ramps, one per item; reading is interrupted at the given number of reads."""

    kind, location = "ramps", "memory"

    def __init__(self, count: int = 12, interrupt_at: int | None = None) -> None:
        self.count, self.interrupt_at, self.reads = count, interrupt_at, 0

    def __len__(self) -> int:
        return self.count

    def read(self, i: int) -> bytes:
        self.reads += 1
        if self.reads == self.interrupt_at:
            raise KeyboardInterrupt
        rng = np.random.default_rng(i)
        corners = rng.uniform(0, 255, (2, 2, 3)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(corners).resize((16, 16), Image.Resampling.BILINEAR).save(buffer, "PNG")
        return buffer.getvalue()

    def key(self, i: int) -> str:
        return f"ramp {i}"

    def label(self, i: int) -> int:
        return -1

    def identity(self, i: int) -> str:
        return str(i)


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("architecture", ["kl", "tiny"])
def test_a_vae_is_trained_that_load_vae_reads(tmp_path: Path, architecture: str) -> None:
    path = train_vae(
        Gradients(), tmp_path / "vae", architecture=architecture, steps=40, lr=5e-3, perceptual_weight=0.0, **SMALL
    )
    vae = load_vae(path)
    assert (vae.factor, vae.latent_channels, vae.is_unnormalized) == (4, 4, False)
    (batch,) = image_batches(Gradients(), 16, 12)
    latents = vae.encode(to_unit(batch.pixels))
    assert latents.shape == (12, 4, 4, 4)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.var(correction=0), torch.tensor(1.0), atol=1e-3, rtol=0)
    losses = [json.loads(line)["l1"] for line in (path / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert not (path / "checkpoints").exists()


def test_resumed_is_bitwise_uninterrupted(tmp_path: Path) -> None:
    settings = {"steps": 7, "checkpoint_every": 3, "perceptual_weight": 0.1, **SMALL}
    whole = train_vae(Gradients(), tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        train_vae(Gradients(interrupt_at=4 * 5), tmp_path / "parts", **settings)  # in the fifth step's batch
    assert (tmp_path / "parts" / "checkpoints" / "step-00000003").is_dir()
    again = Gradients()
    parts = train_vae(again, tmp_path / "parts", **settings)
    assert again.reads == 4 * 4 + 12  # steps 3 to 6, and the images that the latents are measured on
    expected, found = _weights(whole), _weights(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for name in ("log.jsonl", "config.json", "run.json"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_the_same_command_again_does_nothing(tmp_path: Path) -> None:
    settings = {"steps": 1, "perceptual_weight": 0.0, **SMALL}
    train_vae(Gradients(), tmp_path / "vae", **settings)
    source = Gradients()
    train_vae(source, tmp_path / "vae", **settings)
    assert source.reads == 0
    with pytest.raises(CodaError, match=r"kl_weight 0\.0001 there, 0\.5 asked"):
        train_vae(source, tmp_path / "vae", kl_weight=0.5, **settings)


@pytest.mark.parametrize(
    "changed",
    [
        {"kl_weight": 1.0},
        {"l1_weight": 0.0},
        {"l2_weight": 0.0},
        {"perceptual_weight": 1.0},
        {"ema_decay": 0.0},
        {"seed": 1},
        {"lr": 1e-2},
        {"warmup": 0},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_every_setting_does_something(tmp_path: Path, changed: dict) -> None:
    settings = {"steps": 3, "perceptual_weight": 0.0, **SMALL}
    usual = _weights(train_vae(Gradients(4), tmp_path / "usual", **settings))
    other = _weights(train_vae(Gradients(4), tmp_path / "other", **{**settings, **changed}))
    assert any(not torch.equal(usual[name], other[name]) for name in usual)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"factor": 6}, "factor 6: .* power of two"),
        ({"size": 18}, "size 18 is not a multiple of the factor, 4"),
        ({"width": 12}, "width 12: a multiple of 8"),
        ({"architecture": "big"}, "'big' is not known; it is kl or tiny"),
        ({"dtype": "float16"}, "'float16' is not known for training"),
        ({"device": "abacus"}, "device 'abacus' is not known"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(CodaError, match=message):
        train_vae(Gradients(), tmp_path / "vae", steps=1, **{**SMALL, **wrong})
    assert not (tmp_path / "vae").exists()
