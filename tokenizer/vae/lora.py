"""Low-rank adaptation of a VAE's layers, encoder and decoder (paper, Section 3.4), by peft.

An adapted convolution is `y = conv(x) + up(down(x))`, scale 1: `down` has the convolution's kernel, stride and padding
and `rank` outputs, drawn from N(0, 1/rank²); `up` is 1×1 and starts at zero, so that nothing changes at first. The base
weights do not change until `merge_lora` adds the product to them.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn

from ..foundation.errors import CodaError
from .autoencoders import lora_targets
from .continuous_vae import ContinuousVAE

_ADAPTER = "default"  # name of the only adapter


def add_lora(vae: ContinuousVAE, rank: int, seed: int = 0) -> list[str]:
    """Add LoRA to the layers that the published training adapts; only its parameters are trainable afterwards.

    Args:
        vae: Changed in place.
        rank: Rank of the update.
        seed: Seed of the initial values.

    Returns:
        Names of the adapted layers within the autoencoder.

    Raises:
        CodaError: If the rank is not positive, or the VAE already has a LoRA.
    """
    if rank < 1:
        raise CodaError(f"LoRA rank {rank}: expected at least 1")
    if _layers(vae):
        raise CodaError("this VAE already has a LoRA: call merge_lora first")
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        init_lora_weights="gaussian",
        target_modules=list(lora_targets(vae.autoencoder)),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, vae.autoencoder, _ADAPTER)
    vae.requires_grad_(False)
    for layer in _layers(vae).values():
        _pad_alike(layer)
    for parameter in lora_parameters(vae):
        parameter.requires_grad_(True)
    return list(_layers(vae))


def lora_parameters(vae: ContinuousVAE) -> list[torch.Tensor]:
    """Parameters of the LoRA, `down` before `up`, layer by layer; empty if there is none."""
    return [weight for layer in _layers(vae).values() for weight in (_down(layer).weight, _up(layer).weight)]


def merge_lora(vae: ContinuousVAE) -> ContinuousVAE:
    """Add the LoRA to the base weights and remove it, leaving plain, frozen layers. Returns `vae`."""
    for name, layer in _layers(vae).items():
        layer.merge(safe_merge=True)  # raises if the result is not finite
        parent, _, child = name.rpartition(".")
        setattr(vae.autoencoder.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(vae.autoencoder, "peft_config"):
        del vae.autoencoder.peft_config
    return vae.requires_grad_(False)


def _layers(vae: ContinuousVAE) -> dict[str, LoraLayer]:
    return {name: module for name, module in vae.autoencoder.named_modules() if isinstance(module, LoraLayer)}


def _down(layer: LoraLayer) -> nn.Conv2d | nn.Linear:
    return layer.lora_A[_ADAPTER]


def _up(layer: LoraLayer) -> nn.Conv2d | nn.Linear:
    return layer.lora_B[_ADAPTER]


def _pad_alike(layer: LoraLayer) -> None:
    """Give `down` the padding mode of its convolution, as merging requires; peft does not."""
    base, down = layer.get_base_layer(), _down(layer)
    if isinstance(base, nn.Conv2d) and isinstance(down, nn.Conv2d):
        down.padding_mode = base.padding_mode
