"""CodaTokenizer: images to codes and back, saving and strict loading."""

from __future__ import annotations

import copy
import io
import json
import pickle

import pytest
import torch
from safetensors.torch import load, load_file, save_file

from coda.tokenizer.fingerprint import fingerprint_of
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.quantizer.residual_quantizer import ResidualQuantizer
from coda.tokenizer.tokenizer import CodaTokenizer
from coda.tokenizer.vae.continuous_vae import ContinuousVAE
from coda.tokenizer.vae.lora import add_lora

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def tokenizer(small_vae):
    return CodaTokenizer(small_vae, ResidualQuantizer(4, 32, (1, 2, 4, 8, 16), attention_dim=8, norm="rms_norm")).eval()


def test_codes_are_those_of_the_quantizer_on_the_latents(tokenizer, images):
    codes = tokenizer.encode(images)
    assert codes.shape == (3, 1 + 4 + 16 + 64 + 256) and codes.dtype == torch.int64
    with torch.no_grad():
        assert torch.equal(codes, tokenizer.quantizer(tokenizer.vae.encode(images)).codes)
    decoded = tokenizer.decode(codes)
    assert decoded.shape == images.shape and decoded.abs().max() <= 1
    assert torch.equal(tokenizer(images), decoded)
    assert torch.equal(codes, torch.cat([tokenizer.encode(image[None]) for image in images]))  # whatever the batch


def test_partial_decoding_uses_the_coarse_levels_alone(tokenizer, images):
    codes = tokenizer.encode(images)
    assert torch.equal(tokenizer.decode(codes, levels=5), tokenizer.decode(codes))
    other = codes.clone()
    other[:, 21:] = 0  # levels 3 and 4
    assert torch.equal(tokenizer.decode(codes, levels=3), tokenizer.decode(other, levels=3))
    assert not torch.equal(tokenizer.decode(codes, levels=4), tokenizer.decode(other, levels=4))
    flat = tokenizer.decode(codes, levels=0)
    assert torch.equal(flat[0], flat[1])  # without levels all images are alike
    with pytest.raises(CodaError, match="levels is 6"):
        tokenizer.decode(codes, levels=6)


def test_parts_that_do_not_fit_are_refused(small_vae):
    with pytest.raises(CodaError, match="4 latent channels, the quantizer 6"):
        CodaTokenizer(small_vae, ResidualQuantizer(6, 16, (1, 2)))
    with pytest.raises(CodaError, match="64x64"):
        CodaTokenizer(small_vae, ResidualQuantizer(4, 16, (1, 2)), size=(64, 64))


def test_it_survives_the_disk(tokenizer, images, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = CodaTokenizer.from_pretrained(tmp_path)
    assert torch.equal(loaded.encode(images), tokenizer.encode(images))
    assert torch.equal(loaded(images), tokenizer(images))
    assert loaded.describe() == tokenizer.describe()
    assert loaded.fingerprint == tokenizer.fingerprint and len(loaded.fingerprint) == 64
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    card = (tmp_path / "README.md").read_text()
    assert card.startswith("---\n") and tokenizer.fingerprint in card
    assert "32×32 pixels" in card and "341 codes (1705 bits)" in card
    loaded.save_pretrained(tmp_path)  # over itself
    assert CodaTokenizer.from_pretrained(str(tmp_path)).fingerprint == tokenizer.fingerprint


def test_it_loads_in_a_fresh_process(tokenizer, images, tmp_path, fresh):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    save_file({"images": images}, tmp_path / "images.safetensors")
    code = (
        "import sys; from pathlib import Path; from safetensors.torch import load_file, save_file\n"
        "from coda.tokenizer import CodaTokenizer, load_vae\n"
        "folder = Path(sys.argv[1]); images = load_file(folder / 'images.safetensors')['images']\n"
        "codes = CodaTokenizer.from_pretrained(folder / 'tokenizer').encode(images)\n"
        "latents = load_vae(folder / 'tokenizer' / 'vae').encode(images).contiguous()\n"
        "save_file({'codes': codes, 'latents': latents}, folder / 'out.safetensors')\n"
    )
    process, _ = fresh(code, tmp_path)
    process.join(120)
    assert process.exitcode == 0
    found = load_file(tmp_path / "out.safetensors")
    assert torch.equal(found["codes"], tokenizer.encode(images))
    assert torch.allclose(found["latents"], tokenizer.vae.encode(images), atol=1e-6)


def test_the_fingerprint_tells_weights_and_meaning_apart(tokenizer, small_autoencoder):
    vae, quantizer = tokenizer.vae, tokenizer.quantizer
    seen = {fingerprint_of(vae, quantizer)}
    assert fingerprint_of(vae, quantizer) in seen
    rescaled = ContinuousVAE(vae.autoencoder, [0.1], [0.5])
    seen.add(fingerprint_of(rescaled, quantizer))
    longer = ResidualQuantizer(4, 32, (1, 3, 16), attention_dim=8, norm="rms_norm")
    longer.load_state_dict(quantizer.state_dict())
    seen.add(fingerprint_of(vae, longer))
    with torch.no_grad():
        quantizer.codebook.weight[3, 1] += 1e-3
    seen.add(fingerprint_of(vae, quantizer))
    with torch.no_grad():
        vae.autoencoder.decoder.conv_out.bias[0] += 1e-3
    seen.add(fingerprint_of(vae, quantizer))
    assert len(seen) == 5
    trained_otherwise = ResidualQuantizer(4, 32, (1, 2, 4, 8, 16), attention_dim=8, norm="rms_norm", beta=0.5)
    trained_otherwise.load_state_dict(quantizer.state_dict())
    assert fingerprint_of(vae, trained_otherwise) in seen


def test_a_copy_in_half_precision_keeps_the_fingerprint(tokenizer, images, tmp_path):
    tokenizer.save_pretrained(tmp_path / "full")
    recorded = json.loads((tmp_path / "full" / "coda_tokenizer.json").read_text())["fingerprint"]
    half = CodaTokenizer.from_pretrained(tmp_path / "full", torch_dtype=torch.float16)
    assert half.vae.dtype == half.quantizer.dtype == torch.float16
    assert half.fingerprint == recorded
    assert tokenizer.to(torch.float64).to("cpu").fingerprint == recorded  # first asked for after the conversion
    assert tokenizer.to(torch.float16)(images).dtype == torch.float16
    assert CodaTokenizer(half.vae, half.quantizer, fingerprint=recorded).fingerprint == recorded
    half.save_pretrained(tmp_path / "half")  # other weights
    assert CodaTokenizer.from_pretrained(tmp_path / "half").fingerprint != recorded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_and_half_precision_keep_most_codes(tokenizer, images, dtype):
    expected = tokenizer.encode(images)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = tokenizer.encode(images)
        assert tokenizer.decode(under_autocast).shape == images.shape
    half = tokenizer.to(dtype).encode(images)
    for codes in (under_autocast, half):  # the VAE rounds its latents, and random codes are close together
        assert (codes == expected).float().mean() > 0.5
        assert len(codes.unique()) > 0.5 * len(expected.unique())


@pytest.mark.parametrize("how", ["pickle", "torch.save", "deepcopy"])
def test_tokenizer_vae_and_quantizer_can_be_copied_and_sent(tokenizer, images, how):
    def copied(module):
        if how == "deepcopy":
            return copy.deepcopy(module)
        if how == "pickle":
            return pickle.loads(pickle.dumps(module))
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)

    codes, latents = tokenizer.encode(images), tokenizer.vae.encode(images)
    assert torch.equal(copied(tokenizer).encode(images), codes)
    assert torch.equal(copied(tokenizer.vae).encode(images), latents)
    assert torch.equal(copied(tokenizer.quantizer).encode(latents), codes)


@pytest.mark.parametrize("part", ["vae", "quantizer"])
def test_stale_shards_go_when_a_model_is_saved_again(tokenizer, tmp_path, part):
    model = getattr(tokenizer, part)
    size = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    model.save_pretrained(tmp_path, variant="fp16")
    kept = sorted(path.name for path in tmp_path.iterdir())
    for limit in (size // 2, size // 4, 10 * size, size // 3, 10 * size):
        model.save_pretrained(tmp_path, max_shard_size=limit)
        loaded = type(model).from_pretrained(tmp_path)
        assert all(torch.equal(loaded.state_dict()[name], t) for name, t in model.state_dict().items())
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*kept, WEIGHTS])


@pytest.mark.parametrize("part", ["vae", "quantizer"])
def test_a_damaged_part_is_one_clear_line(tokenizer, tmp_path, part):
    tokenizer.save_pretrained(tmp_path)
    path = tmp_path / part / WEIGHTS
    whole = path.read_bytes()
    state = load(whole)  # not mapped: the file will be cut
    last = sorted(state)[-1]

    def refused(because: str) -> None:
        with pytest.raises(CodaError, match=because) as error:
            CodaTokenizer.from_pretrained(tmp_path)
        assert "\n" not in str(error.value)

    path.write_bytes(whole[:-20])
    refused(part)
    path.write_bytes(b"")
    refused(part)
    path.unlink()
    refused(part)
    save_file({k: t for k, t in state.items() if k != last}, path, {"format": "pt"})
    refused(f"{last} missing")
    for value in (float("nan"), float("inf")):
        save_file({**state, last: state[last] * value}, path, {"format": "pt"})
        refused(f"NaN or infinite values in {last}")
    save_file({**state, last: state[last] + 1}, path, {"format": "pt"})
    refused("not of the same tokenizer")


def test_other_directories_are_refused(tokenizer, tmp_path):
    with pytest.raises(CodaError, match="no such file or directory"):
        CodaTokenizer.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CodaError, match="holds no tokenizer"):
        CodaTokenizer.from_pretrained(tmp_path)
    with pytest.raises(CodaError, match="the hub did not give it"):
        CodaTokenizer.from_pretrained("some/tokenizer", cache_dir=tmp_path, local_files_only=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(CodaError, match="is a file"):
        tokenizer.save_pretrained(tmp_path / "file")


def test_a_hub_name_is_found_in_the_cache_without_a_network(tokenizer, tmp_path):
    repository = tmp_path / "models--some--tokenizer"
    tokenizer.save_pretrained(repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    loaded = CodaTokenizer.from_pretrained("some/tokenizer", cache_dir=tmp_path, local_files_only=True)
    assert loaded.fingerprint == tokenizer.fingerprint


def test_a_save_that_fails_does_not_leave_a_tokenizer(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    add_lora(tokenizer.vae, 2)
    with pytest.raises(CodaError, match="merged"):
        tokenizer.save_pretrained(tmp_path)
    with pytest.raises(CodaError, match="holds no tokenizer"):
        CodaTokenizer.from_pretrained(tmp_path)
