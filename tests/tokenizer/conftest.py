"""Small autoencoders, one of every kind, for the tests of the tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from coda.tokenizer.autoencoders import build
from coda.tokenizer.vae import ContinuousVAE

_BLOCKS = {
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
_DC = {
    **{f"{half}_block_types": ("ResBlock", "EfficientViTBlock") for half in ("encoder", "decoder")},
    **{f"{half}_block_out_channels": (8, 16) for half in ("encoder", "decoder")},
    **{f"{half}_layers_per_block": (1, 1) for half in ("encoder", "decoder")},
    **{f"{half}_qkv_multiscales": ((), (5,)) for half in ("encoder", "decoder")},
}
SMALL: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {**_BLOCKS, "scaling_factor": 0.4, "shift_factor": 0.1},
    "AutoencoderKLFlux2": _BLOCKS,
    "AsymmetricAutoencoderKL": {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "down_block_out_channels": (32, 32),
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "up_block_out_channels": (32, 32),
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8),
        "decoder_block_out_channels": (8, 8),
        "num_encoder_blocks": (1, 1),
        "num_decoder_blocks": (1, 1),
    },
    "AutoencoderTinyMidNorm": {"latent_channels": 5},
    "AutoencoderDC": {"latent_channels": 4, "attention_head_dim": 8, "scaling_factor": 0.4, **_DC},
    "AutoencoderKLHunyuanImage": {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 8,
        "block_out_channels": (32, 32, 64),
        "layers_per_block": 1,
        "spatial_compression_ratio": 4,
        "sample_size": 64,
        "scaling_factor": 0.75,
    },
    "AutoencoderKLKVAE": {"channels": 32, "num_enc_blocks": 1, "num_dec_blocks": 1, "z_channels": 4, "ch_mult": (1, 2)},
    "AutoencoderRAE": {
        "encoder_type": "mae",
        "encoder_hidden_size": 64,
        "encoder_patch_size": 8,
        "encoder_num_hidden_layers": 1,
        "encoder_input_size": 32,
        "decoder_hidden_size": 32,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
        "patch_size": 8,
    },
}


@pytest.fixture(params=list(SMALL))
def kind(request: pytest.FixtureRequest) -> str:
    """Name of every class of autoencoder that can be adapted."""
    return request.param


@pytest.fixture
def small_autoencoder() -> Callable[..., Any]:
    """Makes a small autoencoder with random weights: class name, then what differs from the usual."""
    return lambda name="AutoencoderKL", **changes: build({"_class_name": name, **SMALL[name], **changes}).eval()


@pytest.fixture
def small_vae(small_autoencoder: Callable[..., Any]) -> ContinuousVAE:
    """An AutoencoderKL of factor 2 with 4 latent channels, frozen, as load_vae gives it."""
    return ContinuousVAE(small_autoencoder(), [0.1], [0.4]).requires_grad_(False).eval()


@pytest.fixture
def images() -> torch.Tensor:
    """Three images of 32 × 32 in [-1, 1]."""
    return torch.rand(3, 3, 32, 32) * 2 - 1
