"""Published weights in layouts other than diffusers', as diffusers autoencoders.

    KL16   MAR's `kl16.safetensors` or `kl16.ckpt`, in the layout of latent diffusion's code
    TAESD  the family of `*_encoder.pth` and `*_decoder.pth`, TAEF2 among them

Every tensor must have a place in the model, and every place a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import AutoencoderKL, AutoencoderTiny

from ..foundation.errors import CodaError
from ..foundation.strict_loading import load_state_dict_strict, read_tensors, tensor_shape
from .taef2 import AutoencoderTinyMidNorm

State = Mapping[str, torch.Tensor]

_KL16_SCALE = 0.2325  # MAR (arXiv 2406.11838) multiplies its latents by this
_KL16_LEVELS = 5
_KL16_CHANNELS = 16

# Latent diffusion's names, and diffusers'.
_RENAMED = (
    (r"\bmid\.block_1\.", "mid_block.resnets.0."),
    (r"\bmid\.block_2\.", "mid_block.resnets.1."),
    (r"\bmid\.attn_1\.", "mid_block.attentions.0."),
    (r"\bdown\.(\d+)\.block\.", r"down_blocks.\1.resnets."),
    (r"\bdown\.(\d+)\.attn\.", r"down_blocks.\1.attentions."),
    (r"\bdown\.(\d+)\.downsample\.", r"down_blocks.\1.downsamplers.0."),
    (r"\bup\.(\d+)\.block\.", r"up_blocks.\1.resnets."),
    (r"\bup\.(\d+)\.upsample\.", r"up_blocks.\1.upsamplers.0."),
    (r"\bnin_shortcut\.", "conv_shortcut."),
    (r"\bnorm_out\.", "conv_norm_out."),
    (r"(attentions\.\d+)\.norm\.", r"\1.group_norm."),
    (r"(attentions\.\d+)\.([qkv])\.", r"\1.to_\2."),
    (r"(attentions\.\d+)\.proj_out\.", r"\1.to_out.0."),
)


def is_kl16(state: State) -> bool:
    """Whether the tensors are named as in latent diffusion's code."""
    return "encoder.down.0.block.0.conv1.weight" in state and "quant_conv.weight" in state


def kl16_name(name: str) -> str:
    """Name of a KL16 tensor in a diffusers AutoencoderKL; `up.0`, the last to run, is the last of `up_blocks`."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"up_blocks\.(\d+)", lambda m: f"up_blocks.{_KL16_LEVELS - 1 - int(m[1])}", name)


def kl16_from_state(state: State, source: object) -> AutoencoderKL:
    """MAR's KL16, at the width of its tensors (128 as published).

    Args:
        state: Tensors under their published names.
        source: Source of the tensors, for messages.

    Raises:
        CodaError: If they are not those of a KL16.
    """
    levels = [name for i in range(99) if (name := f"encoder.down.{i}.block.0.conv1.weight") in state]
    channels = tensor_shape(state, "quant_conv.weight", 4, source)[0] // 2
    if (len(levels), channels) != (_KL16_LEVELS, _KL16_CHANNELS):
        raise CodaError(
            f"{source} has {len(levels)} levels and {channels} latent channels; MAR's KL16 has {_KL16_LEVELS} and "
            f"{_KL16_CHANNELS} (convert other autoencoders to a diffusers directory)"
        )
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * (_KL16_LEVELS - 1) + ("AttnDownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",) * _KL16_LEVELS,
        block_out_channels=tuple(tensor_shape(state, name, 4, source)[0] for name in levels),
        layers_per_block=2,
        latent_channels=_KL16_CHANNELS,
        sample_size=256,
        scaling_factor=_KL16_SCALE,
    )
    renamed = {kl16_name(name): tensor for name, tensor in state.items()}
    for name, tensor in renamed.items():
        if "attentions" in name and tensor.ndim == 4:  # a 1×1 convolution as published, a Linear in diffusers
            renamed[name] = tensor[:, :, 0, 0]
    load_state_dict_strict(autoencoder, renamed, source)
    return autoencoder


def taesd_files(folder: Path) -> tuple[Path, Path] | None:
    """Files of the encoder and decoder of the TAESD family in a folder; None if it has neither.

    Raises:
        CodaError: If it has several, or one without the other.
    """
    encoders = sorted(p for p in folder.glob("*_encoder.*") if p.suffix in (".pth", ".safetensors"))
    if not encoders:
        return None
    if len(encoders) > 1:
        raise CodaError(f"{folder} holds several encoders ({', '.join(p.name for p in encoders)}); keep one")
    decoder = encoders[0].with_name(encoders[0].name.replace("_encoder.", "_decoder."))
    if not decoder.is_file():
        raise CodaError(f"{folder} holds {encoders[0].name} but not {decoder.name}")
    return encoders[0], decoder


def taesd_from_files(encoder: Path, decoder: Path) -> AutoencoderTiny:
    """An autoencoder of the TAESD family from its published files, two numbered sequences of layers."""
    encoder_state = {f"encoder.layers.{name}": tensor for name, tensor in read_tensors(encoder).items()}
    # The published decoder counts a clamp as its layer 0.
    decoder_state = {_shifted(name, decoder): tensor for name, tensor in read_tensors(decoder).items()}
    return taesd_from_state({**encoder_state, **decoder_state}, encoder.parent)


def is_taesd(state: State) -> bool:
    """Whether the tensors are named as in diffusers' AutoencoderTiny."""
    return "encoder.layers.0.weight" in state and "decoder.layers.0.weight" in state


def taesd_from_state(state: State, source: object) -> AutoencoderTiny:
    """An autoencoder of the TAESD family from tensors named as in diffusers' AutoencoderTiny."""
    channels = tensor_shape(state, "decoder.layers.0.weight", 4, source)[1]
    pooled = any(".pool." in name for name in state)
    cls = AutoencoderTinyMidNorm if pooled else AutoencoderTiny
    autoencoder = cls(latent_channels=channels)
    load_state_dict_strict(autoencoder, state, source)
    return autoencoder


def _shifted(name: str, source: Path) -> str:
    index, _, rest = name.partition(".")
    if not index.isdigit():
        raise CodaError(f"{source} holds {name}; a decoder of the TAESD family has numbered layers")
    return f"decoder.layers.{int(index) - 1}.{rest}"
