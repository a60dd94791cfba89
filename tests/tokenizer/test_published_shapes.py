"""The two published tokenizers at full size, with random weights.

Slow: some 80 million parameters each, an image of 256 pixels, K = 65,536. `make test-slow` runs them.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from coda.tokenizer import ResidualQuantizer
from coda.tokenizer.official import tokenizer_from_official
from coda.tokenizer.tokenizer import CodaTokenizer

pytestmark = pytest.mark.slow

RANK = 32
ADAPTED = {"kl16": ("conv1", "conv2", "downsample", "upsample"), "flux": ("conv1", "conv2")}


def quantizer_state(codebook_size: int) -> dict[str, torch.Tensor]:
    """State of a quantizer in the published layout: C 16, attention width 32, RMSNorm."""
    state = ResidualQuantizer(16, codebook_size, [1], attention_dim=32, norm="rms_norm").state_dict()
    state["codebooks.weight"] = state.pop("codebook.weight")
    return {name if name == "codebooks.weight" else f"attn.{name}": tensor for name, tensor in state.items()}


def vae_state(shapes: dict[str, list[int]], adapted: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Weights that keep activations within bounds, and a LoRA for every adapted convolution."""
    state = {}
    for name, shape in shapes.items():
        spread = 1 / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        state[name] = torch.ones(shape) if "norm" in name and name.endswith("weight") else torch.randn(shape) * spread
        convolution = name.removesuffix(".weight")
        if convolution != name and len(shape) == 4 and any(part in convolution for part in adapted):
            state[f"{convolution}.lora_layer.down.weight"] = torch.randn(RANK, *shape[1:]) / RANK
            state[f"{convolution}.lora_layer.up.weight"] = torch.randn(shape[0], RANK, 1, 1) * 0.01
    return state


def save_published(folder: Path, vae: dict[str, torch.Tensor], codebook_size: int) -> None:
    torch.save(vae, folder / "vae_ema.pth")
    torch.save(quantizer_state(codebook_size), folder / "quantizer_ema.pth")


def check_whole(tokenizer: CodaTokenizer, codes_per_image: int) -> None:
    images = torch.rand(1, 3, 256, 256) * 2 - 1
    codes = tokenizer.encode(images)
    assert tokenizer.size == (256, 256)
    assert codes.shape == (1, codes_per_image)
    assert len(codes.unique()) > 1  # few, as weights are random
    decoded = tokenizer.decode(codes)
    assert decoded.shape == images.shape and bool(decoded.isfinite().all())


def test_kl16(shared_reference: Path, tmp_path: Path) -> None:
    described = json.loads((shared_reference / "official-checkpoint" / "kl16" / "architecture.json").read_text())
    state = vae_state(described["state_dict_shapes_published_width"], ADAPTED["kl16"])
    assert sum(t.numel() for name, t in state.items() if ".lora_layer." not in name) == 66_456_019
    assert sum(t.numel() for name, t in state.items() if ".lora_layer." in name) == 6_021_120
    save_published(tmp_path, state, 16_384)
    tokenizer = tokenizer_from_official(tmp_path)
    assert tokenizer.layout.codebook_size == 16_384
    check_whole(tokenizer, 680)


def test_flux(tmp_path: Path) -> None:
    with torch.device("meta"):
        autoencoder = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            use_quant_conv=False,
            use_post_quant_conv=False,
        )
    state = vae_state({name: list(tensor.shape) for name, tensor in autoencoder.state_dict().items()}, ADAPTED["flux"])
    assert sum(".lora_layer.up." in name for name in state) == 48
    save_published(tmp_path, state, 65_536)
    tokenizer = tokenizer_from_official(tmp_path)
    assert tokenizer.layout.codebook_size == 65_536
    check_whole(tokenizer, 2_240)
