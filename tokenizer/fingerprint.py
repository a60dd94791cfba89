"""What tells one tokenizer from another, and where it is written down."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from .foundation.errors import CodaError
from .foundation.reading import read_json

if TYPE_CHECKING:
    from .quantizer.residual_quantizer import ResidualQuantizer
    from .vae.continuous_vae import ContinuousVAE

MANIFEST = "coda_tokenizer.json"


def fingerprint_of(vae: ContinuousVAE, quantizer: ResidualQuantizer) -> str:
    """SHA-256 over all that decides which codes an image has, and which image codes have.

    That is: every weight as float32, with its name and shape; the autoencoder's description; the latents'
    normalisation and the image range; layout and norm of the quantizer. Settings of the training (β, …) are left out.
    """
    config = {
        "autoencoder": vae.config.architecture,
        "shift": vae.config.shift,
        "scale": vae.config.scale,
        "image_range": vae.config.image_range,
        "layout": quantizer.layout.to_json(),
        "norm": quantizer.config.norm,
    }
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for part in (vae, quantizer):
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
            values = tensor.detach().float() if tensor.is_floating_point() else tensor  # as they will be loaded
            digest.update(values.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def saved_fingerprint(directory: str | Path) -> str:
    """The fingerprint of a saved tokenizer, read without loading it.

    Raises:
        CodaError: There is none.
    """
    manifest = Path(directory) / MANIFEST
    if not manifest.is_file():
        raise CodaError(f"{directory} holds no tokenizer: it has no {MANIFEST}")
    return str(read_json(manifest).get("fingerprint"))
