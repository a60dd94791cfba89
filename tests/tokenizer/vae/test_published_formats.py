"""Published layouts other than diffusers': MAR's KL16 and the TAESD family."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import load_file, save_file

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import decode_image, to_unit
from coda.tokenizer.vae.load import load_vae
from coda.tokenizer.vae.published_formats import kl16_from_state, kl16_name


@pytest.fixture
def published(shared_reference):
    """Folder of a small checkpoint of KL16 in its published layout."""
    return shared_reference / "official-checkpoint" / "kl16"


@pytest.fixture
def kl16_state(published):
    """Base weights of the checkpoint, with MAR's names."""
    state = torch.load(published / "vae_ema.pth", weights_only=True)
    return {name: tensor for name, tensor in state.items() if ".lora_layer." not in name}


@pytest.fixture
def taesd_folder(tmp_path):
    """An AutoencoderTiny with random weights as its authors publish one, and the autoencoder itself."""
    autoencoder = AutoencoderTiny(latent_channels=6).eval()
    state = autoencoder.state_dict()
    for half, shift in (("encoder", 0), ("decoder", 1)):  # the published decoder counts its clamp
        start = f"{half}.layers."
        numbered = {}
        for name, tensor in state.items():
            if name.startswith(start):
                index, rest = name.removeprefix(start).split(".", 1)
                numbered[f"{int(index) + shift}.{rest}"] = tensor
        torch.save(numbered, tmp_path / f"taexy_{half}.pth")
    return tmp_path, autoencoder


@pytest.mark.parametrize("suffix", [".safetensors", ".ckpt"])
def test_kl16_gives_the_published_latents(published, kl16_state, tmp_path, suffix):
    path = tmp_path / f"kl16{suffix}"
    if suffix == ".ckpt":
        torch.save({"model": kl16_state}, path)
    else:
        save_file(kl16_state, path)
    expected = load_file(published / "expected.safetensors")
    for given in (path, tmp_path):  # the file, or the folder that holds it
        vae = load_vae(given)
        assert (vae.factor, vae.latent_channels, vae.config.scale) == (16, 16, [0.2325])
        with torch.no_grad():
            latents, decoded = vae.encode(expected["image"]), vae.decode(expected["f_hat"])
        for found, reference in [
            (latents / 0.2325, expected["latent_mode_without_lora"]),
            (decoded, expected["reconstruction_without_lora"]),
        ]:
            assert (found - reference).abs().max() < 1e-4 * reference.abs().max()


def test_kl16_has_its_published_names_and_size(published):
    names = json.loads((published / "diffusers_keys.json").read_text())["base"]
    assert len(names) > 200 and {name: kl16_name(name) for name in names} == names
    shapes = json.loads((published / "architecture.json").read_text())["state_dict_shapes_published_width"]
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes.items() if ".lora_layer." not in name}
        autoencoder = kl16_from_state(state, "published width")
    assert sum(p.numel() for p in autoencoder.parameters()) == 66_456_019


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("decoder.up.0.block.1.conv2.bias", None, "decoder.up_blocks.4.resnets.1.conv2.bias missing"),
        ("quant_conv.weight", torch.zeros(8, 8, 1, 1), "4 latent channels; MAR's KL16 has 5 and 16"),
        ("quant_conv.weight", torch.tensor(1.0), "quant_conv.weight has shape"),
        ("encoder.down.1.block.0.conv1.weight", torch.tensor(1.0), "encoder.down.1.block.0.conv1.weight has shape"),
        ("decoder.conv_in.bias", torch.tensor(float("nan")).expand(32).clone(), "decoder.conv_in.bias"),
    ],
)
def test_a_damaged_kl16_is_one_clear_line(kl16_state, tmp_path, name, tensor, message):
    state = {key: value for key, value in (kl16_state | {name: tensor}).items() if value is not None}
    save_file(state, tmp_path / "kl16.safetensors")
    with pytest.raises(CodaError, match=message) as error:
        load_vae(tmp_path)
    assert "\n" not in str(error.value)


def test_taef2_reconstructs_real_images(shared_data):
    vae = load_vae(shared_data / "taef2")
    assert (vae.factor, vae.latent_channels, vae.dtype) == (8, 32, torch.float32)
    assert vae.is_unnormalized  # nothing is published
    path = sorted((shared_data / "imagenet-sample-256").glob("*/*"))[0]
    image = to_unit(decode_image(path.read_bytes(), (256, 256)))[None, ..., 64:192, 64:192]
    with torch.no_grad():
        error = (vae(image).clamp(-1, 1) - image).square().mean()
    assert 10 * torch.log10(4 / error) > 24  # dB


def test_the_taesd_family_loads_as_published_and_from_one_file(taesd_folder, images):
    folder, autoencoder = taesd_folder
    save_file(autoencoder.state_dict(), folder / "both.safetensors")
    with torch.no_grad():
        expected = autoencoder.decode(autoencoder.encode(images).latents).sample
        for given in ("", "taexy_encoder.pth", "taexy_decoder.pth", "both.safetensors"):
            assert torch.equal(load_vae(folder / given)(images), expected)


def test_half_a_taesd_is_refused(taesd_folder):
    folder, _ = taesd_folder
    (folder / "taexy_decoder.pth").rename(folder / "elsewhere.pth")
    with pytest.raises(CodaError, match=r"taexy_encoder.pth but not taexy_decoder.pth"):
        load_vae(folder)
    (folder / "elsewhere.pth").rename(folder / "taexy_decoder.pth")
    torch.save({"0.weight": torch.zeros(64, 3, 3, 3)}, folder / "taexy_encoder.pth")
    with pytest.raises(CodaError, match=r"and [0-9]+ more missing"):
        load_vae(folder)


class _Intruder:
    def __reduce__(self):
        return (open, ("intruded", "w"))


def test_a_pickle_that_runs_code_is_refused(taesd_folder, monkeypatch):
    folder, _ = taesd_folder
    monkeypatch.chdir(folder)
    torch.save({"0.weight": _Intruder()}, folder / "taexy_encoder.pth")
    with pytest.raises(CodaError, match="holds more than tensors") as error:
        load_vae(folder)
    assert "\n" not in str(error.value)
    assert not (folder / "intruded").exists()


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps([1, 2, 3], protocol=2)], ids=["empty", "text", "something else"]
)
def test_a_damaged_pickle_is_one_clear_line(taesd_folder, content):
    folder, _ = taesd_folder
    (folder / "taexy_decoder.pth").write_bytes(content)
    with pytest.raises(CodaError, match=r"taexy_decoder.pth") as error:
        load_vae(folder)
    assert "\n" not in str(error.value)
