"""ContinuousVAE: one interface for every autoencoder, and strict loading."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load, save

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.vae.autoencoders import SPECS, from_config, to_config
from coda.tokenizer.vae.continuous_vae import ContinuousVAE, measure_normalization
from coda.tokenizer.vae.load import load_vae

WEIGHTS = "diffusion_pytorch_model.safetensors"


def one_line(error: pytest.ExceptionInfo[CodaError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def test_every_kind_goes_to_latents_and_back_and_survives_saving(kind, small_autoencoder, images, tmp_path):
    autoencoder = small_autoencoder(kind)
    vae = ContinuousVAE(autoencoder, [0.5], [2.0], SPECS[kind].image_range).eval()
    vae.save_pretrained(tmp_path)
    loaded = load_vae(tmp_path)
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    with torch.no_grad():
        latents, decoded = vae.encode(images), vae(images)
        assert latents.shape == (3, vae.latent_channels, 32 // vae.factor, 32 // vae.factor)
        assert decoded.shape == images.shape
        assert torch.equal(loaded.encode(images), latents) and torch.equal(loaded(images), decoded)
    rebuilt, state = from_config(json.loads(json.dumps(to_config(autoencoder)))).state_dict(), autoencoder.state_dict()
    assert {name: tensor.shape for name, tensor in rebuilt.items()} == {name: t.shape for name, t in state.items()}
    vae(images.requires_grad_()).square().sum().backward()
    assert images.grad.abs().sum() > 0 and vae.last_layer.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", [name for name in SPECS if name != "AutoencoderTinyMidNorm"])
def test_every_kind_of_diffusers_loads_from_its_own_directory(kind, small_autoencoder, images, tmp_path):
    autoencoder = small_autoencoder(kind)
    autoencoder.save_pretrained(tmp_path)
    loaded = load_vae(tmp_path)
    own = images / 2 + 0.5 if kind == "AutoencoderRAE" else images
    with torch.no_grad():
        encoded = autoencoder.encode(own, return_dict=False)[0]
        expected = encoded if isinstance(encoded, torch.Tensor) else encoded.mean
        assert torch.equal(loaded.encode_moments(images)[0], expected)
        decoded = autoencoder.decode(expected, return_dict=False)[0]
        decoded = decoded * 2 - 1 if kind == "AutoencoderRAE" else decoded
        assert torch.allclose(loaded.decode(loaded.normalize(expected)), decoded, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "shift", "scale"),
    [
        ({"scaling_factor": 0.3611, "shift_factor": 0.1159}, [0.1159], [0.3611]),
        (
            {"latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 3.0, 4.0], "scaling_factor": 0.5},
            [0.1, 0.2, 0.3, 0.4],
            [0.5, 0.25, 0.5 / 3, 0.125],
        ),
    ],
)
def test_latents_are_normalized_as_the_config_says(small_autoencoder, images, tmp_path, config, shift, scale):
    autoencoder = small_autoencoder(**config)
    autoencoder.save_pretrained(tmp_path)
    vae = load_vae(tmp_path)
    with torch.no_grad():
        z = autoencoder.encode(images).latent_dist.mode()
        expected = (z - torch.tensor(shift).view(1, -1, 1, 1)) * torch.tensor(scale).view(1, -1, 1, 1)
        assert torch.allclose(vae.encode(images), expected, atol=1e-6)
        assert torch.allclose(vae.decode(expected), autoencoder.decode(z).sample, atol=1e-5)


def test_flux2_statistics_are_pooled_over_the_places_of_a_patch(small_autoencoder, tmp_path):
    autoencoder = small_autoencoder("AutoencoderKLFlux2")
    z = torch.randn(64, 4, 16, 16) * torch.tensor([0.5, 1, 2, 3]).view(1, 4, 1, 1) + torch.arange(4).view(1, 4, 1, 1)
    folded = z.view(64, 4, 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(64, 16, 8, 8)  # as its pipeline folds
    autoencoder.bn.running_mean.copy_(folded.mean((0, 2, 3)))
    autoencoder.bn.running_var.copy_(folded.var((0, 2, 3)))
    autoencoder.save_pretrained(tmp_path)
    vae = load_vae(tmp_path)
    assert vae.factor == 2 and not vae.is_unnormalized
    normalized = vae.normalize(z)
    assert normalized.mean((0, 2, 3)).abs().max() < 1e-3
    assert (normalized.std((0, 2, 3)) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("name", ["AutoencoderTiny", "AutoencoderKLFlux2", "AutoencoderKLKVAE", "AutoencoderRAE"])
def test_an_autoencoder_without_statistics_is_unnormalized(name, small_autoencoder, tmp_path):
    small_autoencoder(name).save_pretrained(tmp_path)
    assert load_vae(tmp_path).is_unnormalized


def test_measured_latents_are_centered_with_unit_spread(small_autoencoder):
    vae = ContinuousVAE(small_autoencoder("AutoencoderTiny"))
    batches = [torch.rand(n, 3, 16, 16) * 2 - 1 for n in (4, 1, 3)]  # unequal batches count by their images
    measured = measure_normalization(vae, batches)
    with torch.no_grad():
        latents = measured.encode(torch.cat(batches))
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert latents.square().mean().sqrt().item() == pytest.approx(1, abs=1e-4)
    assert len(measured.config.scale) == 1 and len(measured.config.shift) == 4
    assert vae.is_unnormalized and not measured.is_unnormalized
    assert measured.autoencoder is vae.autoencoder
    with pytest.raises(CodaError, match="no images"):
        measure_normalization(vae, [])


def test_each_image_of_a_batch_draws_from_its_own_generator(small_vae, images):
    def seeded(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = small_vae.encode(images, sample=True, generator=seeded(1, 2, 3))
    alone = small_vae.encode(images[1:2], sample=True, generator=seeded(2))
    assert torch.allclose(together[1:2], alone, atol=1e-5)
    assert not torch.allclose(together, small_vae.encode(images), atol=1e-3)


_WHITE = torch.ones(1, 3, 32, 32)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (_WHITE[:, :1], r"expected \(B, 3"),
        (_WHITE[:, :, :31], "multiples of 2"),
        (_WHITE[0], "shape"),
        (_WHITE[:0], "batch is empty"),
        ((_WHITE * 255).to(torch.uint8), "images are uint8, expected float"),
        (_WHITE.long(), "images are int64, expected float"),
        (_WHITE * 255, r"range from 255 to 255, expected \[-1, 1\]"),
        (_WHITE * -1.1, "range from -1.1"),
        (_WHITE * float("nan"), "nan"),
        (_WHITE * float("inf"), "inf"),
    ],
)
def test_images_of_another_shape_type_or_range_are_refused(small_vae, images, message):
    for use in (small_vae.encode, small_vae.encode_moments, small_vae):
        with pytest.raises(CodaError, match=message):
            use(images)
    small_vae.encode(_WHITE.to(torch.bfloat16) * 1.005)  # rounding


DAMAGED_ARCHITECTURES = [
    {"_class_name": ["AutoencoderKL"]}, {"block_out_channels": [8, 10**9]}, {"block_out_channels": 3},
    {"layers_per_block": 10**6}, {"down_block_types": ["DownEncoderBlock2D"] * 10**5}, {"norm_num_groups": 0},
    {"latent_channels": "four"}, {"latent_channels": -4}, {"in_channels": 10**12}, {"act_fn": {}},
]  # fmt: skip
DAMAGED_CONFIGS = [
    {"scale": 0.4}, {"scale": [0.0]}, {"scale": [float("nan")]}, {"shift": ["0.1"]}, {"shift": [[0.1]]}, {"scale": {}},
    {"image_range": ["-1,1"]}, {"architecture": 3}, {"architecture": None}, {"_class_name": ["ContinuousVAE"]},
]  # fmt: skip


@pytest.mark.parametrize(
    ("layout", "changes"),
    [
        *(("diffusers", changes) for changes in DAMAGED_ARCHITECTURES),
        *(("coda", {"architecture": changes}) for changes in DAMAGED_ARCHITECTURES),
        *(("coda", changes) for changes in DAMAGED_CONFIGS),
    ],
)
def test_a_damaged_config_is_one_clear_line(small_vae, tmp_path, layout, changes):
    (small_vae if layout == "coda" else small_vae.autoencoder).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    if isinstance(changes.get("architecture"), dict):
        changes = {"architecture": config["architecture"] | changes["architecture"]}
    path.write_text(json.dumps(config | changes))
    with pytest.raises(CodaError) as error:
        load_vae(tmp_path)
    assert len(one_line(error)) < 600


def test_latents_that_are_not_finite_are_not_measured(small_vae, images):
    with torch.no_grad():
        next(small_vae.parameters()).view(-1)[0] = float("nan")
    with pytest.raises(CodaError, match="latents hold NaN"):
        measure_normalization(small_vae, [images])


def test_an_autoencoder_of_one_size_names_it(small_autoencoder):
    vae = ContinuousVAE(small_autoencoder("AutoencoderRAE"), image_range="0,1")
    with pytest.raises(CodaError, match="32x32 alone"):
        vae.encode(torch.zeros(1, 3, 64, 64))


def test_half_precision_stays_close(small_vae, images, tmp_path):
    small_vae.save_pretrained(tmp_path)
    half = load_vae(tmp_path, torch_dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    with torch.no_grad():
        exact = small_vae(images)
        assert (half(images).float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_a_pipeline_directory_gives_its_vae(small_vae, images, tmp_path):
    small_vae.save_pretrained(tmp_path / "vae")
    assert torch.equal(load_vae(tmp_path).encode(images), small_vae.encode(images))
    assert torch.equal(load_vae(tmp_path, subfolder="vae").encode(images), small_vae.encode(images))


@pytest.mark.parametrize("layout", ["diffusers", "coda"])
def test_damaged_files_and_weights_are_one_clear_line(small_vae, tmp_path, layout):
    (small_vae if layout == "coda" else small_vae.autoencoder).save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS
    whole = path.read_bytes()
    state = load(whole)  # not mapped: the file will be cut
    name = next(n for n in state if n.endswith("decoder.conv_out.weight"))
    for damaged, message in [
        ({k: v for k, v in state.items() if k != name}, r"decoder.conv_out.weight missing"),
        (state | {"extra.weight": torch.zeros(1)}, r"extra.weight unexpected"),
        (state | {name: torch.zeros(1)}, str(tmp_path)),
        (state | {name: state[name] * float("nan")}, "NaN or infinite values in .*decoder.conv_out.weight"),
        (whole[:-100], str(tmp_path)),
    ]:
        path.write_bytes(damaged if isinstance(damaged, bytes) else save(damaged, {"format": "pt"}))
        with pytest.raises(CodaError, match=message) as error:
            load_vae(tmp_path)
        one_line(error)
    path.write_bytes(whole)
    for content in ("{", "[]", '{"_class_name": "ContinuousVAE", "architecture": {}}'):
        (tmp_path / "config.json").write_text(content)
        with pytest.raises(CodaError) as error:
            load_vae(tmp_path)
        one_line(error)


@pytest.mark.parametrize("name", ["VQModel", "AutoencoderKLWan", "AutoencoderOobleck", "UNet2DModel", None])
def test_other_models_are_refused(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
    with pytest.raises(CodaError, match=f"{name}, which cannot be adapted"):
        load_vae(tmp_path)


def test_grayscale_and_wrong_numbers_of_shift_and_scale_are_refused(small_autoencoder):
    with pytest.raises(CodaError, match="1 color channels"):
        ContinuousVAE(small_autoencoder(in_channels=1, out_channels=1))
    with pytest.raises(CodaError, match="3 numbers"):
        ContinuousVAE(small_autoencoder(), [0.0], [1.0, 2.0, 3.0])
    with pytest.raises(CodaError, match="together"):
        ContinuousVAE(small_autoencoder(), scale=[1.0])


def test_missing_files_are_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("no weights")
    for given, message in [
        (str(tmp_path / "nowhere"), "no such file or directory"),
        (tmp_path / "empty", "holds no VAE"),
        (tmp_path / "notes.txt", "not a file of weights"),
    ]:
        with pytest.raises(CodaError, match=message) as error:
            load_vae(given)
        one_line(error)
    with pytest.raises(CodaError, match="some/model: no such directory, and the hub did not give it") as error:
        load_vae("some/model", cache_dir=tmp_path, local_files_only=True)
    one_line(error)
    with pytest.raises(TypeError, match="local_files"):
        load_vae("some/model", local_files=True)


@pytest.mark.parametrize("subfolder", ["", "vae"])
def test_a_hub_name_is_found_in_the_cache_without_a_network(small_autoencoder, images, tmp_path, subfolder):
    repository = tmp_path / "models--some--model"
    snapshot = repository / "snapshots" / ("0" * 40)
    autoencoder = small_autoencoder()
    autoencoder.save_pretrained(snapshot / subfolder)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    vae = load_vae("some/model", cache_dir=tmp_path, local_files_only=True)
    with torch.no_grad():
        z = autoencoder.encode(images).latent_dist.mode()
        assert torch.equal(vae.encode(images), vae.normalize(z))
