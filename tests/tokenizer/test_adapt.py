import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from PIL import Image
from safetensors.torch import load_file

from coda.tokenizer import CodaError, CodaTokenizer, ContinuousVAE
from coda.tokenizer.adapt import adapt
from coda.tokenizer.images import ImageSource, image_batches, to_unit
from coda.tokenizer.vae.continuous_vae import measure_normalization

SMALL = {"codebook_size": 32, "lora_rank": 2, "batch_size": 4, "warmup": 1, "perceptual_weight": 0.0, "device": "cpu"}


class Ramps(ImageSource):
    """Coloured ramps of 8 pixels, one per item; reading is interrupted at the given number of reads."""

    kind, location = "ramps", "memory"

    def __init__(self, count: int = 24, interrupt_at: int | None = None) -> None:
        self.count, self.interrupt_at, self.reads = count, interrupt_at, 0

    def __len__(self) -> int:
        return self.count

    def read(self, i: int) -> bytes:
        self.reads += 1
        if self.reads == self.interrupt_at:
            raise KeyboardInterrupt
        corners = np.random.default_rng(i).uniform(0, 255, (2, 2, 3)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(corners).resize((8, 8), Image.Resampling.BILINEAR).save(buffer, "PNG")
        return buffer.getvalue()

    def key(self, i: int) -> str:
        return f"ramp {i}"

    def label(self, i: int) -> int:
        return -1

    def identity(self, i: int) -> str:
        return str(i)


@pytest.fixture(scope="module")
def vae() -> ContinuousVAE:
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
    )
    (batch,) = image_batches(Ramps(), 8, 24)
    return measure_normalization(ContinuousVAE(autoencoder), [to_unit(batch.pixels)])


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.name} {name}": tensor
        for file in sorted(folder.glob("*/*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def _fingerprint(folder: Path) -> str:
    return json.loads((folder / "coda_tokenizer.json").read_text())["fingerprint"]


def _images() -> torch.Tensor:
    (batch,) = image_batches(Ramps(), 8, 24)
    return to_unit(batch.pixels)


def test_what_comes_out_is_a_tokenizer(tmp_path: Path, vae: ContinuousVAE) -> None:
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    path = adapt(vae, Ramps(), tmp_path / "tokenizer", steps=3, **SMALL)
    assert all(torch.equal(before[name], tensor) for name, tensor in vae.state_dict().items())
    tokenizer = CodaTokenizer.from_pretrained(path)
    assert tokenizer.size == (8, 8)
    assert tokenizer.layout.codebook_size == 32 and tokenizer.layout.grid == (4, 4)
    assert tokenizer.encode(_images()).shape == (24, tokenizer.layout.num_tokens)
    assert not any("lora" in name for name in tokenizer.vae.state_dict())
    config = json.loads((path / "lora" / "adapter_config.json").read_text())
    assert config["r"] == 2 and config["lora_alpha"] == 2
    assert not (path / "checkpoints").exists()


def test_the_kept_adapter_is_the_one_that_was_merged(tmp_path: Path, vae: ContinuousVAE) -> None:
    path = adapt(vae, Ramps(), tmp_path / "tokenizer", steps=3, lr=1e-2, **SMALL)
    adapter = load_file(path / "lora" / "adapter_model.safetensors")
    merged = CodaTokenizer.from_pretrained(path).vae.autoencoder.state_dict()
    base = vae.autoencoder.state_dict()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    adapted = {name.removesuffix(".lora_A.weight") + ".weight" for name in adapter if name.endswith("lora_A.weight")}
    assert changed and changed <= adapted
    for name in changed:
        layer = name.removesuffix(".weight")
        down, up = adapter[f"{layer}.lora_A.weight"], adapter[f"{layer}.lora_B.weight"]
        product = torch.einsum("or,rikl->oikl", up.flatten(1), down)
        torch.testing.assert_close(merged[name], base[name] + product, atol=1e-6, rtol=1e-5)


def test_no_steps_keep_the_start_from_the_data(tmp_path: Path, vae: ContinuousVAE) -> None:
    tokenizer = CodaTokenizer.from_pretrained(adapt(vae, Ramps(), tmp_path / "tokenizer", steps=0, **SMALL))
    assert all(torch.equal(vae.state_dict()[n], tensor) for n, tensor in tokenizer.vae.state_dict().items())
    images, latents = _images(), vae.encode(_images())
    left = (tokenizer.quantizer.decode(tokenizer.encode(images)) - latents).square().mean()
    assert left < 0.3 * latents.var()
    assert tokenizer.encode(images).unique().numel() > 24


def test_training_improves_on_the_start(tmp_path: Path, vae: ContinuousVAE) -> None:
    images = _images()
    errors = []
    for steps in (0, 30):
        path = adapt(vae, Ramps(), tmp_path / str(steps), steps=steps, lr=1e-2, **{**SMALL, "lora_rank": 8})
        tokenizer = CodaTokenizer.from_pretrained(path)
        errors.append(float((tokenizer(images) - images).abs().mean()))
    assert errors[1] < 0.9 * errors[0]


def test_resumed_is_bitwise_uninterrupted(tmp_path: Path, vae: ContinuousVAE) -> None:
    settings = {**SMALL, "steps": 6, "checkpoint_every": 2, "adversarial_weight": 0.1, "adversarial_start": 1}
    whole = adapt(vae, Ramps(), tmp_path / "whole", **settings)
    before = 1 + 24  # the size is looked up in the first image, and k-means reads them all
    with pytest.raises(KeyboardInterrupt):
        adapt(vae, Ramps(interrupt_at=before + 4 * 3 + 2), tmp_path / "parts", **settings)
    assert (tmp_path / "parts" / "checkpoints" / "step-00000002").is_dir()
    again = Ramps()
    parts = adapt(vae, again, tmp_path / "parts", **settings)
    assert again.reads == 1 + 4 * 4  # no second k-means
    expected, found = _tensors(whole), _tensors(parts)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    for name in ("log.jsonl", "coda_tokenizer.json", "run.json"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes()


def test_latents_of_unknown_statistics_are_measured_and_kept_over_an_interruption(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tiny = ContinuousVAE(
        AutoencoderTiny(
            latent_channels=4,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )
    )
    assert tiny.is_unnormalized
    with pytest.raises(KeyboardInterrupt):
        adapt(tiny, Ramps(interrupt_at=1 + 2 * 24 + 3), tmp_path / "tokenizer", steps=1, **SMALL)
    path = adapt(tiny, Ramps(), tmp_path / "tokenizer", steps=1, **SMALL)
    expected = measure_normalization(tiny, [_images()])
    tokenizer = CodaTokenizer.from_pretrained(path)
    assert not tokenizer.vae.is_unnormalized
    assert tokenizer.vae.config["scale"] == pytest.approx(expected.config["scale"], rel=1e-5)


def test_the_discriminators_step_uses_its_own_gradients_alone(tmp_path: Path, vae: ContinuousVAE) -> None:
    """Weight 1 or 1000 of the adversarial loss: after one step the tokenizer differs, the discriminator does not."""
    discriminators = []
    for weight in (1.0, 1000.0):
        out = tmp_path / str(weight)
        with pytest.raises(KeyboardInterrupt):
            source = Ramps(interrupt_at=1 + 24 + 4 + 1)  # in the second step's batch
            adapt(vae, source, out, steps=9, checkpoint_every=1, adversarial_weight=weight, **SMALL)
        tensors = load_file(out / "checkpoints" / "step-00000001" / "tensors.safetensors")
        discriminators.append({name: t for name, t in tensors.items() if name.startswith("discriminator.weight")})
    assert discriminators[0]
    assert all(torch.equal(discriminators[0][name], tensor) for name, tensor in discriminators[1].items())


def test_pictures_that_are_not_square(tmp_path: Path, vae: ContinuousVAE) -> None:
    path = adapt(vae, Ramps(), tmp_path / "tokenizer", size=(4, 8), steps=1, **SMALL)
    tokenizer = CodaTokenizer.from_pretrained(path)
    assert tokenizer.size == (4, 8) and tokenizer.layout.grid == (2, 4)


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory, vae: ContinuousVAE) -> str:
    return _fingerprint(adapt(vae, Ramps(), tmp_path_factory.mktemp("usual") / "tokenizer", **SMALL, steps=3))


@pytest.mark.parametrize(
    "changed",
    [
        {"l1_weight": 0.0},
        {"l2_weight": 0.0},
        {"perceptual_weight": 1.0},
        {"entropy_weight": 5.0},
        {"adversarial_weight": 1.0},
        {"adversarial_weight": 1.0, "adversarial_start": 2},
        {"ema_decay": 0.0},
        {"seed": 1},
        {"lr": 1e-2},
        {"warmup": 0},
        {"kmeans_images": 12},
        {"attention_dim": 12},
        {"norm": "layer_norm"},
        {"lora_rank": 0},
        {"sides": (1, 4)},
    ],
    ids=lambda changed: " ".join(changed),
)
def test_every_setting_does_something(tmp_path: Path, vae: ContinuousVAE, usual: str, changed: dict) -> None:
    found = {usual, _fingerprint(adapt(vae, Ramps(), tmp_path / "other", **{**SMALL, "steps": 3, **changed}))}
    if "adversarial_start" in changed:
        changed = {**changed, "adversarial_start": 0}
        found.add(_fingerprint(adapt(vae, Ramps(), tmp_path / "at once", **{**SMALL, "steps": 3, **changed})))
        assert len(found) == 3
    assert len(found) > 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 9}, "size 9x9 is not a multiple of the VAE's factor, 2"),
        ({"sides": (1, 2, 3)}, r"the last side is \(3, 3\), the latent's grid at 8x8 pixels is \(4, 4\)"),
        ({"norm": "batch"}, "norm 'batch' is not known"),
        ({"attention_dim": 4}, "attention width of 5 at least"),
        ({"codebook_size": 4096}, "24 images give .* vectors for 4096 codes"),
        ({"vae": "no/such/vae.safetensors"}, "no such file"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_wrong_settings_are_named(tmp_path: Path, vae: ContinuousVAE, wrong: dict, message: str) -> None:
    with pytest.raises(CodaError, match=message):
        adapt(**{"vae": vae, "data": Ramps(), "out": tmp_path / "tokenizer", "steps": 1, **SMALL, **wrong})
