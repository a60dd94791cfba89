"""The quantizer: round trips, partial decoding, full precision, checks of its inputs and config, bounded memory."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from coda.tokenizer import CodaError, ResidualQuantizer
from coda.tokenizer.quantizer.kmeans import initialize_nearest_neighbor, residual_kmeans
from coda.tokenizer.quantizer.resampling import _Resize

SIDES = [1, 2, 4, 8]


@pytest.fixture
def quantizer() -> ResidualQuantizer:
    return ResidualQuantizer(6, 64, SIDES, attention_dim=12, norm="rms_norm").eval()


def test_decoding_the_codes_gives_what_forward_gave(quantizer):
    latents = torch.randn(3, 6, 8, 8)
    out = quantizer(latents)
    assert torch.equal(out.codes, quantizer.encode(latents))
    torch.testing.assert_close(quantizer.decode(out.codes), out.quantized.detach(), rtol=0, atol=1e-5)


def test_decoding_by_level_adds_one_level_at_a_time(quantizer):
    codes = quantizer.encode(torch.randn(2, 6, 8, 8))
    assert torch.equal(quantizer.decode(codes, levels=0), torch.zeros(2, 6, 8, 8))
    altered = codes.clone()
    altered[:, quantizer.layout.offsets[2] :] = 0  # later levels do not matter
    assert torch.equal(quantizer.decode(codes, levels=2), quantizer.decode(altered, levels=2))
    assert torch.equal(quantizer.decode(codes, levels=4), quantizer.decode(codes))
    with pytest.raises(CodaError, match="levels is 5"):
        quantizer.decode(codes, levels=5)


def test_the_batch_does_not_matter_and_latents_need_not_be_square():
    quantizer = ResidualQuantizer(4, 16, [(1, 1), (2, 3), (4, 6)])
    latents = torch.randn(5, 4, 4, 6)
    codes = quantizer.encode(latents)
    assert codes.shape == (5, 1 + 6 + 24) and quantizer.decode(codes).shape == latents.shape
    assert torch.equal(codes, torch.cat([quantizer.encode(latent[None]) for latent in latents]))


def test_a_wider_codebook_than_the_latent():
    quantizer = ResidualQuantizer(4, 16, [1, 2], attention_dim=8, codebook_dim=10)
    quantizer(torch.randn(2, 4, 2, 2)).quantized.sum().backward()
    assert quantizer.codebook.weight.grad.abs().sum() > 0
    assert quantizer.value_table().shape == (16, 4)


@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_finds_the_codes_of_float32(norm, dtype):
    latents = torch.randn(16, 4, 8, 8)
    quantizer = ResidualQuantizer(4, 256, SIDES, attention_dim=8, norm=norm)
    initialize_nearest_neighbor(quantizer, residual_kmeans(latents, SIDES, 256))
    exact = quantizer.decode(quantizer.encode(latents)).sub(latents).square().mean()
    half = copy.deepcopy(quantizer).to(dtype)
    rounded = half.float().encode(latents.to(dtype))  # weights and latents of half the precision, arithmetic in float32
    half = half.to(dtype)
    assert half.codebook.weight.dtype == dtype
    codes = half.encode(latents.to(dtype))
    assert torch.equal(codes, rounded)
    assert (codes == half(latents.to(dtype)).codes).float().mean() > 0.99
    assert half.decode(codes).sub(latents).square().mean() < 1.05 * exact


@pytest.mark.parametrize("norm", [None, "rms_norm", "layer_norm"])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_autocast_changes_nothing(norm, weights):
    quantizer = ResidualQuantizer(6, 600, SIDES, attention_dim=12, norm=norm).to(weights)
    latents = torch.randn(3, 6, 8, 8)
    results = []
    for enabled in (False, True):
        quantizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            codes, out = quantizer.encode(latents), quantizer(latents)
            decoded = quantizer.decode(codes)
        (out.quantization_loss + 0.05 * out.entropy_loss + out.quantized.square().mean()).backward()
        gradients = [parameter.grad for parameter in quantizer.parameters()]
        results.append([codes, decoded, *vars(out).values(), *gradients])
    for plain, under_autocast in zip(*results, strict=True):
        assert plain.dtype == under_autocast.dtype and torch.equal(plain, under_autocast)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_latents_that_are_not_finite_are_refused(quantizer, value):
    latents = torch.randn(16, 6, 8, 8)
    latents[1, 2, 3, 4] = value
    for use in (quantizer.encode, quantizer, lambda latents: residual_kmeans(latents, SIDES, 64)):
        with pytest.raises(CodaError, match="latents hold NaN or infinite values"):
            use(latents)


def test_other_shapes_and_codes_out_of_range_are_refused(quantizer):
    with pytest.raises(CodaError, match="batch is empty"):
        quantizer.encode(torch.randn(0, 6, 8, 8))
    with pytest.raises(CodaError, match=r"expected \(B, 6, h, w\)"):
        quantizer.encode(torch.randn(1, 5, 8, 8))
    with pytest.raises(CodaError, match="codes reach from 0 to 64"):
        quantizer.decode(torch.arange(85)[None].clamp(max=64))


OUT_OF_BOUNDS = {
    "latent_channels": [0, 10**9, "six"],
    "codebook_size": [10**12, 16.5, None],
    "sides": [4, [], [[30_000, 30_000]], [1, [2, 3, 4]], [1, "2", 4], [1, float("nan")], [1] * 100_000, {"1": 2}],
    "attention_dim": [-1, [8]],
    "codebook_dim": [True],
    "norm": [["rms_norm"], "batch_norm"],
    "entropy_temperature": [float("nan"), 0],
    "beta": [float("inf"), "1"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in OUT_OF_BOUNDS for value in OUT_OF_BOUNDS[name]])
def test_a_config_out_of_bounds_is_one_clear_line(quantizer, tmp_path, name, value):
    quantizer.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))
    with pytest.raises(CodaError, match=f"{name[:4]}|layout") as error:
        ResidualQuantizer.from_pretrained(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_save_and_load_give_the_same_codes(quantizer, tmp_path):
    quantizer.save_pretrained(tmp_path)
    loaded = ResidualQuantizer.from_pretrained(tmp_path)
    latents = torch.randn(2, 6, 8, 8)
    assert torch.equal(loaded.encode(latents), quantizer.encode(latents))


PREPARE = """
from coda.tokenizer import ResidualQuantizer

def step(size, sides, batch):
    quantizer = ResidualQuantizer(16, size, sides, attention_dim=32, norm="rms_norm")
    latents = torch.randn(batch, 16, sides[-1], sides[-1], requires_grad=True)
    out = quantizer(latents)
    (out.quantization_loss + 0.05 * out.entropy_loss + out.quantized.square().mean()).backward()

step(256, [1, 2], 1)
"""


def test_the_published_flux_shape_trains_in_little_memory(mebibytes):
    """K = 65,536, 2,240 codes per image, batch of 4: under 0.6 GB; a dense step takes some 16 GB."""
    assert mebibytes(PREPARE, "step(65536, [1, 2, 3, 4, 6, 9, 13, 18, 24, 32], 4)") < 600


@pytest.mark.parametrize("mode", ["area", "bicubic"])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 6), (9, 16)])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_gradients_of_resizing_by_matrices_are_those_of_interpolation(mode, size, dtype, tolerance):
    images = torch.randn(2, 3, 7, 6, dtype=dtype, requires_grad=True)
    seen = torch.randn(2, 3, *size, dtype=dtype)
    resized = _Resize.apply(images, size, mode), torch.nn.functional.interpolate(images, size, mode=mode)
    found, expected = (torch.autograd.grad((each * seen).sum(), images)[0] for each in resized)
    torch.testing.assert_close(found, expected, rtol=10 * tolerance, atol=tolerance)
