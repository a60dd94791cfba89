"""Import of checkpoints that the published code (LeapLabTHU/CODA) writes.

    directory/
      vae_ema.pth         or vae.pth: base weights, and `<conv>.lora_layer.{down,up}.weight` beside them
      quantizer_ema.pth   or quantizer.pth
      config.json         optional: diffusers' config of the VAE, if it is an AutoencoderKL

The VAE is either MAR's KL16, with latent diffusion's names, or FLUX.1's AutoencoderKL, with diffusers' names. The LoRA
is merged into the base weights: `W + up · down`, scale 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn

from .foundation.errors import CodaError
from .foundation.reading import read_json
from .foundation.strict_loading import load_state_dict_strict, read_tensors, tensor_shape
from .layout import Grid, default_sides
from .quantizer.residual_quantizer import ResidualQuantizer
from .tokenizer import CodaTokenizer
from .vae.autoencoders import from_config, published_normalization
from .vae.continuous_vae import ContinuousVAE
from .vae.published_formats import is_kl16, kl16_from_state

# Shift and scale of FLUX.1's latents in the published code.
_FLUX = {"shift_factor": 0.1159, "scaling_factor": 0.3611}
_PUBLISHED_SIZE = 256  # pixels; determines the default sides


def quantizer_from_official(
    state_dict: Mapping[str, torch.Tensor],
    sides: Sequence[int | Sequence[int]],
    beta: float = 0.05,
    entropy_temperature: float = 0.01,
    sample_entropy_weight: float = 1.0,
    batch_entropy_weight: float = 1.0,
) -> ResidualQuantizer:
    """Make a ResidualQuantizer from a state of the published code's `CODAQuantizer`.

    Args:
        state_dict: Its state; K, C, the attention width, the norm and the dtype are read from the tensors.
        sides: Grids of the levels, which the state does not contain.
        beta: β, see `ResidualQuantizer`.
        entropy_temperature: τ.
        sample_entropy_weight: w_s.
        batch_entropy_weight: w_b.

    Raises:
        CodaError: If tensors are missing, unexpected or misshapen.
    """
    state = {name.removeprefix("attn.").replace("codebooks.", "codebook."): t for name, t in state_dict.items()}
    needed = ("codebook.weight", "to_q.weight", "to_v.weight")
    if missing := [name for name in needed if name not in state]:
        raise CodaError(f"this is not a published quantizer: {', '.join(missing)} missing")
    codebook, to_q, to_v = (tensor_shape(state, name, 2, "the published quantizer") for name in needed)
    norm = None
    if "norm_q.weight" in state:
        norm = "layer_norm" if "norm_q.bias" in state else "rms_norm"
    quantizer = ResidualQuantizer(
        latent_channels=to_v[0],
        codebook_size=codebook[0],
        sides=sides,
        attention_dim=to_q[0],
        norm=norm,
        codebook_dim=codebook[1],
        beta=beta,
        entropy_temperature=entropy_temperature,
        sample_entropy_weight=sample_entropy_weight,
        batch_entropy_weight=batch_entropy_weight,
    )
    nn.Module.to(quantizer, state["codebook.weight"].dtype)  # diffusers' `to` logs a warning here
    load_state_dict_strict(quantizer, state, "the published quantizer")
    return quantizer


def tokenizer_from_official(
    directory: str | Path, sides: Sequence[int | Sequence[int]] | None = None, **settings: Any
) -> CodaTokenizer:
    """Load a published checkpoint as a tokenizer, frozen and in evaluation mode.

    Args:
        directory: Directory with `vae_ema.pth` and `quantizer_ema.pth`, or `vae.pth` and `quantizer.pth`.
        sides: Grids of the levels; the published ones for images of 256 pixels if None.
        **settings: Further arguments of `quantizer_from_official`.

    Raises:
        CodaError: If the files are missing or damaged, or are not a published checkpoint.
    """
    folder = Path(directory).expanduser()
    if not folder.is_dir():
        raise CodaError(f"{folder}: no such directory")
    autoencoder = _autoencoder(folder)
    shift, scale = published_normalization(autoencoder) or (None, None)
    vae = ContinuousVAE(autoencoder, shift, scale).requires_grad_(False).eval()
    grid = _PUBLISHED_SIZE // vae.factor
    chosen: Sequence[int | Sequence[int]] | Sequence[Grid] = default_sides(grid, grid) if sides is None else sides
    quantizer = quantizer_from_official(read_tensors(_either(folder, "quantizer")), chosen, **settings)
    return CodaTokenizer(vae, quantizer.requires_grad_(False).eval()).eval()


def _either(folder: Path, part: str) -> Path:
    """File of a part's averaged weights, or of its last ones if there is no average."""
    for name in (f"{part}_ema.pth", f"{part}.pth"):
        if (folder / name).is_file():
            return folder / name
    raise CodaError(f"{folder} holds no published checkpoint: neither {part}_ema.pth nor {part}.pth is there")


def _autoencoder(folder: Path) -> AutoencoderKL:
    path = _either(folder, "vae")
    state = _merge_lora(read_tensors(path), path)
    if is_kl16(state):
        return kl16_from_state(state, path)
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        arguments = {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}
        autoencoder = from_config({"_class_name": "AutoencoderKL", **arguments})
    else:
        autoencoder = _flux_autoencoder(state, path)
    load_state_dict_strict(autoencoder, state, path)
    return autoencoder


def _merge_lora(state: Mapping[str, torch.Tensor], source: Path) -> dict[str, torch.Tensor]:
    """Base weights plus `up · down`, added in double precision."""
    merged = {name: tensor for name, tensor in state.items() if ".lora_layer." not in name}
    for name, down in state.items():
        convolution, found, ending = name.partition(".lora_layer.")
        if not found or ending == "up.weight":
            continue
        up = state.get(f"{convolution}.lora_layer.up.weight")
        base = merged.get(f"{convolution}.weight")
        if ending != "down.weight" or up is None or base is None or down.ndim != 4 or base.ndim != 4 or up.ndim < 2:
            raise CodaError(f"{source}: {name} has no weights to go with it")
        update = torch.einsum("or,rikl->oikl", up.double().flatten(1), down.double())
        merged[f"{convolution}.weight"] = (base.double() + update).to(base.dtype)
    return merged


def _flux_autoencoder(state: Mapping[str, torch.Tensor], source: Path) -> AutoencoderKL:
    """FLUX.1's VAE at the widths of its tensors (128 256 512 512 as published)."""
    firsts = [n for i in range(99) if (n := f"encoder.down_blocks.{i}.resnets.0.conv1.weight") in state]
    if not firsts or "decoder.conv_in.weight" not in state:
        raise CodaError(f"{source} is neither MAR's KL16 nor an AutoencoderKL")
    layers = sum(f"encoder.down_blocks.0.resnets.{j}.conv1.weight" in state for j in range(99))
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(firsts),
        up_block_types=("UpDecoderBlock2D",) * len(firsts),
        block_out_channels=tuple(tensor_shape(state, name, 4, source)[0] for name in firsts),
        layers_per_block=layers,
        latent_channels=tensor_shape(state, "decoder.conv_in.weight", 4, source)[1],
        use_quant_conv="quant_conv.weight" in state,
        use_post_quant_conv="post_quant_conv.weight" in state,
        **_FLUX,
    )
