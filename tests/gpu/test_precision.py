"""Half precision and compiled graphs give what float32 and eager mode give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import coda.tokenizer  # noqa: F401  isort: skip  before diffusers

from diffusers import AutoencoderKL

from coda.generator import MaskGitTransformer
from coda.tokenizer import CodaTokenizer, ContinuousVAE, ResidualQuantizer
from coda.tokenizer.images import to_uint8
from coda.tokenizer.images.psnr_ssim import psnr
from coda.tokenizer.quantizer.kmeans import initialize_nearest_neighbor, residual_kmeans
from coda.tokenizer.vae.acceleration import compile_autoencoder


def make_images() -> torch.Tensor:
    """Eight smooth images of 32 × 32 pixels."""
    return F.interpolate(torch.rand(8, 3, 6, 6), (32, 32), mode="bilinear") * 2 - 1


def make_tokenizer(device: torch.device) -> CodaTokenizer:
    """A VAE with random weights, and the codes of k-means."""
    autoencoder = AutoencoderKL(
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )
    vae = ContinuousVAE(autoencoder, [0.0], [1.0]).eval()
    latents = vae.encode(make_images()).detach()
    sides = [1, 2, 4, latents.shape[-1]]
    quantizer = ResidualQuantizer(vae.latent_channels, 64, sides, attention_dim=8, norm="rms_norm")
    initialize_nearest_neighbor(quantizer, residual_kmeans(latents, sides, 64))
    return CodaTokenizer(vae, quantizer.eval()).to(device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(device: torch.device, dtype: torch.dtype) -> None:
    tokenizer, images = make_tokenizer(device), make_images().to(device)
    exact = tokenizer.encode(images)
    expected = psnr(to_uint8(tokenizer.decode(exact)), to_uint8(images)).mean()
    half = tokenizer.to(dtype)
    codes = half.encode(images.to(dtype))
    decoded = half.decode(codes).float()
    # A CPU that computes in float16 itself also rounds its sums, and so do the kernels for AVX2 alone; others, as GPUs
    # do, add in float32.
    found = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    rounds_sums = found.get("avx512_fp16", False) or not found.get("avx512_f", True)
    least = 0.8 if dtype == torch.bfloat16 else 0.9 if rounds_sums else 0.95
    assert (codes == exact).float().mean() > least
    assert abs(float(psnr(to_uint8(decoded), to_uint8(images)).mean() - expected)) < 0.1


@pytest.mark.gpu
def test_compiled_graphs(cuda: torch.device) -> None:
    tokenizer, images = make_tokenizer(cuda), make_images().to(cuda)
    codes, expected = tokenizer.encode(images), tokenizer(images)
    compile_autoencoder(tokenizer.vae)
    assert (tokenizer.encode(images) == codes).float().mean() > 0.99
    torch.testing.assert_close(tokenizer.decode(codes), expected, rtol=1e-2, atol=1e-2)

    transformer = MaskGitTransformer([1, 2, 4], 64, 4, num_classes=4, hidden_size=32, depth=2, num_heads=2).to(cuda)
    inputs = torch.randint(65, (2, 21), device=cuda), [torch.randn(2, 4, 4, 4, device=cuda)] * 3
    labels = torch.tensor([0, 1], device=cuda)
    eager = transformer(*inputs, labels).features
    compiled = torch.compile(transformer)(*inputs, labels).features
    torch.testing.assert_close(compiled, eager, rtol=1e-3, atol=1e-3)
    assert all(
        a.isfinite().all() for a in torch.autograd.grad(compiled.square().sum(), list(transformer.blocks.parameters()))
    )
