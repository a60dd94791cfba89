"""Fingerprints: hashes that tell one tokenizer, VAE or model from another."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from .foundation.errors import CodaError
from .foundation.reading import read_json

if TYPE_CHECKING:
    from .quantizer.residual_quantizer import ResidualQuantizer
    from .vae.continuous_vae import ContinuousVAE

MANIFEST = "coda_tokenizer.json"


def weights_digest(header: str, *modules: nn.Module) -> str:
    """SHA-256 of a text and of the names, shapes and values (as float32) of the modules' weights."""
    digest = hashlib.sha256(header.encode())
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            values = tensor.detach().float() if tensor.is_floating_point() else tensor
            digest.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def fingerprint_of(vae: ContinuousVAE, quantizer: ResidualQuantizer) -> str:
    """Hash of everything that determines the codes of an image and the image of codes.

    This is: all weights; the autoencoder's config; shift, scale and range of the images; layout and norm of the
    quantizer. Settings of the training (β, …) are left out.
    """
    config = {
        "autoencoder": vae.config.architecture,
        "shift": vae.config.shift,
        "scale": vae.config.scale,
        "image_range": vae.config.image_range,
        "layout": quantizer.layout.to_json(),
        "norm": quantizer.config.norm,
    }
    return weights_digest(json.dumps(config, sort_keys=True), vae, quantizer)


def saved_fingerprint(directory: str | Path) -> str:
    """Fingerprint of a saved tokenizer, read without loading it.

    Raises:
        CodaError: If the directory is not a tokenizer.
    """
    manifest = Path(directory) / MANIFEST
    if not manifest.is_file():
        raise CodaError(f"{directory} holds no tokenizer: it has no {MANIFEST}")
    return str(read_json(manifest).get("fingerprint"))
