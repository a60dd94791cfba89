"""Checkpoints that the published code (LeapLabTHU/CODA) writes, as tokenizers of ours.

    directory/
      vae_ema.pth         or vae.pth: base weights, and `<conv>.lora_layer.{down,up}.weight` beside them
      quantizer_ema.pth   or quantizer.pth
      config.json         optional: diffusers' config of the VAE, where it is an AutoencoderKL

The VAE is either MAR's KL16, under latent diffusion's names, or FLUX.1's AutoencoderKL under diffusers' names. The LoRA
is folded into the base weights: `W + up · down`, scale 1.
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
from .foundation.strict_loading import load_state_dict_strict, read_tensors
from .layout import Side, default_sides
from .quantizer.residual_quantizer import ResidualQuantizer
from .tokenizer import CodaTokenizer
from .vae.autoencoders import from_config, published_normalization
from .vae.continuous_vae import ContinuousVAE
from .vae.published_formats import is_kl16, kl16_from_state

# FLUX.1's VAE, whose latents the published code shifts and scales by these.
_FLUX = {"shift_factor": 0.1159, "scaling_factor": 0.3611}
_PUBLISHED_SIZE = 256  # pixels, where the sides are not given


def quantizer_from_official(
    state_dict: Mapping[str, torch.Tensor],
    sides: Sequence[int | Sequence[int]],
    beta: float = 0.05,
    entropy_temperature: float = 0.01,
    sample_entropy_weight: float = 1.0,
    batch_entropy_weight: float = 1.0,
) -> ResidualQuantizer:
    """The published code's `CODAQuantizer` as a ResidualQuantizer.

    Args:
        state_dict: Its state; K, C, the attention width, the norm and the number type are read from the tensors.
        sides: Grids of the levels, which the state does not tell.
        beta: As `ResidualQuantizer` has it; so the rest.
        entropy_temperature: τ.
        sample_entropy_weight: w_s.
        batch_entropy_weight: w_b.

    Raises:
        CodaError: Tensors are missing, left over or misshapen.
    """
    state = {name.removeprefix("attn.").replace("codebooks.", "codebook."): t for name, t in state_dict.items()}
    needed = {"codebook.weight", "to_q.weight", "to_v.weight"} - state.keys()
    if needed:
        raise CodaError(f"this is no published quantizer: {', '.join(sorted(needed))} missing")
    codebook_size, codebook_dim = state["codebook.weight"].shape
    norm = None
    if "norm_q.weight" in state:
        norm = "layer_norm" if "norm_q.bias" in state else "rms_norm"
    quantizer = ResidualQuantizer(
        latent_channels=state["to_v.weight"].shape[0],
        codebook_size=codebook_size,
        sides=sides,
        attention_dim=state["to_q.weight"].shape[0],
        norm=norm,
        codebook_dim=codebook_dim,
        beta=beta,
        entropy_temperature=entropy_temperature,
        sample_entropy_weight=sample_entropy_weight,
        batch_entropy_weight=batch_entropy_weight,
    )
    nn.Module.to(quantizer, state["codebook.weight"].dtype)  # diffusers' own `to` warns of nothing
    load_state_dict_strict(quantizer, state, "the published quantizer")
    return quantizer


def tokenizer_from_official(
    directory: str | Path, sides: Sequence[int | Sequence[int]] | None = None, **settings: Any
) -> CodaTokenizer:
    """A published checkpoint as a tokenizer, frozen and in evaluation mode.

    Args:
        directory: With `vae_ema.pth` and `quantizer_ema.pth`, or `vae.pth` and `quantizer.pth`.
        sides: Grids of the levels; the published ones for images of 256 pixels if None.
        **settings: As `quantizer_from_official` takes them.

    Raises:
        CodaError: The files are missing, damaged, or hold something else.
    """
    folder = Path(directory).expanduser()
    if not folder.is_dir():
        raise CodaError(f"{folder}: no such directory")
    autoencoder = _autoencoder(folder)
    shift, scale = published_normalization(autoencoder) or (None, None)
    vae = ContinuousVAE(autoencoder, shift, scale).requires_grad_(False).eval()
    grid = _PUBLISHED_SIZE // vae.factor
    chosen: Sequence[int | Sequence[int]] | Sequence[Side] = default_sides(grid, grid) if sides is None else sides
    quantizer = quantizer_from_official(read_tensors(_either(folder, "quantizer")), chosen, **settings)
    return CodaTokenizer(vae, quantizer.requires_grad_(False).eval()).eval()


def _either(folder: Path, part: str) -> Path:
    """The averaged weights of a part, or the last ones where there is no average."""
    for name in (f"{part}_ema.pth", f"{part}.pth"):
        if (folder / name).is_file():
            return folder / name
    raise CodaError(f"{folder} holds no published checkpoint: neither {part}_ema.pth nor {part}.pth is there")


def _autoencoder(folder: Path) -> AutoencoderKL:
    path = _either(folder, "vae")
    state = _lora_folded(read_tensors(path), path)
    if is_kl16(state):
        return kl16_from_state(state, path)
    if (folder / "config.json").is_file():
        config = read_json(folder / "config.json")
        description = {key: value for key, value in config.items() if key == "_class_name" or not key.startswith("_")}
        autoencoder = from_config({"_class_name": "AutoencoderKL", **description})
    else:
        autoencoder = _flux_autoencoder(state, path)
    load_state_dict_strict(autoencoder, state, path)
    return autoencoder


def _lora_folded(state: Mapping[str, torch.Tensor], source: Path) -> dict[str, torch.Tensor]:
    """Base weights with `up · down` added, in double precision; no LoRA left."""
    folded = {name: tensor for name, tensor in state.items() if ".lora_layer." not in name}
    for name, down in state.items():
        convolution, found, ending = name.partition(".lora_layer.")
        if not found or ending == "up.weight":
            continue
        up = state.get(f"{convolution}.lora_layer.up.weight")
        base = folded.get(f"{convolution}.weight")
        if ending != "down.weight" or up is None or base is None:
            raise CodaError(f"{source}: {name} has no weights to go with it")
        update = torch.einsum("or,rikl->oikl", up.double().flatten(1), down.double())
        folded[f"{convolution}.weight"] = (base.double() + update).to(base.dtype)
    return folded


def _flux_autoencoder(state: Mapping[str, torch.Tensor], source: Path) -> AutoencoderKL:
    """FLUX.1's VAE at the widths that the tensors have (128 256 512 512 as published)."""
    firsts = [n for i in range(99) if (n := f"encoder.down_blocks.{i}.resnets.0.conv1.weight") in state]
    if not firsts or "decoder.conv_in.weight" not in state:
        raise CodaError(f"{source} is neither MAR's KL16 nor an AutoencoderKL")
    layers = sum(f"encoder.down_blocks.0.resnets.{j}.conv1.weight" in state for j in range(99))
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(firsts),
        up_block_types=("UpDecoderBlock2D",) * len(firsts),
        block_out_channels=tuple(state[name].shape[0] for name in firsts),
        layers_per_block=layers,
        latent_channels=state["decoder.conv_in.weight"].shape[1],
        use_quant_conv="quant_conv.weight" in state,
        use_post_quant_conv="post_quant_conv.weight" in state,
        **_FLUX,
    )
