"""Published checkpoints give the published numbers."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.official import quantizer_from_official, tokenizer_from_official

SIDES = {"kl16": (1, 2, 3, 4), "flux": (1, 2, 3, 4, 6, 8)}


def distance(found: torch.Tensor, reference: torch.Tensor) -> float:
    """The reference's own measure of error."""
    return ((found - reference).abs().max() / reference.abs().max()).item()


@pytest.fixture(scope="module", params=list(SIDES))
def checkpoint(request, shared_reference):
    """(folder, tokenizer, expected tensors) of a published layout."""
    folder = shared_reference / "official-checkpoint" / request.param
    tokenizer = tokenizer_from_official(folder, SIDES[request.param], beta=0.05)
    return folder, tokenizer, load_file(folder / "expected.safetensors")


def test_latents_codes_and_reconstructions_are_the_published_ones(checkpoint):
    _, tokenizer, expected = checkpoint
    levels = len(tokenizer.layout.sides)
    assert tokenizer.size == (64, 64)
    with torch.no_grad():
        latents = tokenizer.vae.encode(expected["image"])
        mean, logvar = tokenizer.vae.encode_moments(expected["image"])
        codes = tokenizer.encode(expected["image"])
        quantized = tokenizer.quantizer.decode(codes)
        output = tokenizer.quantizer(latents)
    assert distance(latents, expected["latent_quantizer_input"]) < 1e-4
    assert distance(mean, expected["latent_mode"]) < 1e-4
    assert distance(logvar, expected["moments"].chunk(2, 1)[1].clamp(-30, 20)) < 1e-4
    published = torch.cat([expected[f"idx.{i}"].flatten(1) for i in range(levels)], 1)
    assert torch.equal(codes, published)
    assert distance(quantized, expected["f_hat"]) < 1e-4
    assert distance(tokenizer.vae.decode(quantized), expected["reconstruction"]) < 1e-4
    assert distance(tokenizer.vae.decode(latents), expected["reconstruction_unquantized"]) < 1e-4
    assert torch.equal(tokenizer.decode(codes), tokenizer.vae.decode(quantized).clamp(-1, 1))
    assert distance(output.quantization_loss, expected["vq_loss"]) < 1e-4
    assert distance(output.entropy_loss, expected["entropy_loss"]) < 1e-4


def test_it_is_saved_like_any_tokenizer_and_loads_without_a_config(checkpoint, tmp_path):
    folder, tokenizer, expected = checkpoint
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = type(tokenizer).from_pretrained(tmp_path / "saved")
    assert loaded.fingerprint == tokenizer.fingerprint
    for name in ("vae", "quantizer"):
        shutil.copyfile(folder / f"{name}_ema.pth", tmp_path / f"{name}.pth")  # and without averages
    from_weights = tokenizer_from_official(tmp_path, SIDES[folder.name])
    for other in (loaded, from_weights):
        assert torch.equal(other.encode(expected["image"]), tokenizer.encode(expected["image"]))
        assert other.vae.config.shift == tokenizer.vae.config.shift
        assert other.vae.config.scale == tokenizer.vae.config.scale


def test_published_sides_are_the_default_and_settings_are_passed_on(checkpoint):
    folder, _, _ = checkpoint
    published = tokenizer_from_official(folder, beta=0.25, entropy_temperature=0.1)
    assert published.size == (256, 256)
    assert published.layout.sides[-1] == {"kl16": (16, 16), "flux": (32, 32)}[folder.name]
    assert published.layout.num_tokens == {"kl16": 680, "flux": 2240}[folder.name]
    assert (published.quantizer.config.beta, published.quantizer.config.entropy_temperature) == (0.25, 0.1)
    with pytest.raises(TypeError):
        tokenizer_from_official(folder, gamma=1)


def test_other_directories_are_refused(checkpoint, tmp_path):
    folder, _, _ = checkpoint
    with pytest.raises(CodaError, match="no such directory"):
        tokenizer_from_official(tmp_path / "nowhere")
    with pytest.raises(CodaError, match=r"neither vae_ema.pth nor vae.pth"):
        tokenizer_from_official(tmp_path)
    shutil.copyfile(folder / "vae_ema.pth", tmp_path / "vae_ema.pth")
    with pytest.raises(CodaError, match=r"neither quantizer_ema.pth nor quantizer.pth"):
        tokenizer_from_official(tmp_path)
    shutil.copyfile(folder / "vae_ema.pth", tmp_path / "quantizer_ema.pth")
    with pytest.raises(CodaError, match="not a published quantizer"):
        tokenizer_from_official(tmp_path)
    state = torch.load(folder / "vae_ema.pth", weights_only=True)
    del state[next(name for name in state if name.endswith(".lora_layer.up.weight"))]
    torch.save(state, tmp_path / "vae_ema.pth")
    with pytest.raises(CodaError, match="no weights to go with it"):
        tokenizer_from_official(tmp_path)
    content = (folder / "vae_ema.pth").read_bytes()
    (tmp_path / "vae_ema.pth").write_bytes(content[: len(content) // 2])
    with pytest.raises(CodaError, match=r"vae_ema.pth is damaged") as error:
        tokenizer_from_official(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("precision", ["", "_f64"])
def test_every_norm_and_precision_of_quantizer_is_read_from_its_tensors(golden_quantizers, precision):
    for norm, name in [(None, "01_plain"), ("rms_norm", "02_rms_norm"), ("layer_norm", "03_layer_norm")]:
        tensors = load_file(golden_quantizers / f"{name}{precision}.safetensors")
        state = {k.removeprefix("param."): t for k, t in tensors.items() if k.startswith("param.")}
        levels = sum(k.startswith("idx.") for k in tensors)
        sides = [tensors[f"idx.{i}"].shape[-1] for i in range(levels)]
        quantizer = quantizer_from_official(state, sides, beta=0.25)
        assert (quantizer.config.norm, quantizer.config.beta) == (norm, 0.25)
        assert quantizer.dtype == tensors["input"].dtype
        published = torch.cat([tensors[f"idx.{i}"].flatten(1) for i in range(levels)], 1)
        assert torch.equal(quantizer.encode(tensors["input"]), published)
        with pytest.raises(CodaError, match=r"to_k.weight missing"):
            quantizer_from_official({k: t for k, t in state.items() if k != "attn.to_k.weight"}, sides)
        for key in ("codebooks.weight", "attn.to_v.weight", "attn.to_q.bias"):
            for damaged in (torch.tensor(1.0), state[key] * float("nan")):
                with pytest.raises(CodaError, match=r"axes|misshapen|NaN or infinite"):
                    quantizer_from_official(state | {key: damaged}, sides)
