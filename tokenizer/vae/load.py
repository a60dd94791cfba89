"""Loading a continuous VAE: a directory, a file or a hub id, in any published layout that is known."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..foundation.errors import CodaError
from ..foundation.hub import HUB_OPTIONS, fetch, local_path
from ..foundation.reading import read_json
from ..foundation.strict_loading import check_weights_finite, load_strictly, read_tensors
from .autoencoders import SPECS, Autoencoder, autoencoder_class, check_architecture, published_normalization
from .continuous_vae import ContinuousVAE
from .published_formats import is_kl16, is_taesd, kl16_from_state, taesd_files, taesd_from_files, taesd_from_state

_WEIGHT_SUFFIXES = (".safetensors", ".pth", ".ckpt", ".pt")


def load_vae(
    path_or_name: str | Path,
    subfolder: str | None = None,
    torch_dtype: torch.dtype | None = None,
    variant: str | None = None,
    **hub: Any,
) -> ContinuousVAE:
    """Load a continuous VAE, frozen and in evaluation mode; latents are normalized as its config says.

    Args:
        path_or_name: A directory (a `ContinuousVAE`, a diffusers autoencoder, a pipeline or tokenizer with one under
            `vae/`, `*_encoder.pth` and `*_decoder.pth` of the TAESD family, or `kl16.*`), a file (MAR's
            `kl16.safetensors`, `.ckpt` or `.pth`; `taef2.safetensors`), or a hub id of any of these.
        subfolder: Folder of the autoencoder within it.
        torch_dtype: Type of the weights; float32 if None.
        variant: Variant of diffusers weight files, such as "fp16".
        **hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download` for hub ids.

    Raises:
        CodaError: If it is missing, damaged or incomplete, or cannot be adapted.
    """
    unknown = sorted(hub.keys() - set(HUB_OPTIONS))
    if unknown:
        raise TypeError(f"load_vae() has no argument {unknown[0]!r}")
    path = local_path(path_or_name)
    if path is None:
        path = _fetch_vae(str(path_or_name), subfolder, variant, hub)
    path = path / subfolder if subfolder else path
    if not path.exists():
        raise CodaError(f"{path}: no such directory")
    if path.is_file():
        return _wrap(_read_file(path), torch_dtype)
    if (path / "vae" / "config.json").is_file() and not (path / "config.json").is_file():
        path = path / "vae"  # a pipeline's, or a tokenizer's
    if (path / "config.json").is_file():
        config = read_json(path / "config.json")
        options = {"torch_dtype": torch_dtype, "variant": variant}
        if config.get("_class_name") == ContinuousVAE.__name__:
            return ContinuousVAE.from_pretrained(path, **options)
        cls = autoencoder_class(config.get("_class_name"), path)
        check_architecture(config, path)
        return _wrap(load_strictly(cls, path, **options), None)
    return _wrap(_read_published_folder(path), torch_dtype)


def vae_to_train(vae: str | Path | ContinuousVAE) -> ContinuousVAE:
    """A VAE to train, frozen, in float32 and evaluation mode: a copy of a loaded one, or what `load_vae` reads.

    Raises:
        CodaError: As `load_vae`, or if its weights are not finite.
    """
    loaded = load_vae(vae) if isinstance(vae, str | Path) else copy.deepcopy(vae)
    loaded = loaded.float().eval().requires_grad_(False)
    check_weights_finite(loaded.state_dict(), "the VAE")
    return loaded


def _fetch_vae(name: str, subfolder: str | None, variant: str | None, hub: dict[str, Any]) -> Path:
    """Download only the VAE's part of a hub repository: pipelines are large."""
    prefix = f"{subfolder}/" if subfolder else ""
    root = fetch(name, [f"{prefix}config.json", "vae/config.json"], **hub)
    if not (root / prefix / "config.json").is_file():
        if not (root / "vae" / "config.json").is_file():  # not a diffusers layout: the small published files
            return fetch(name, [f"{prefix}*_encoder.*", f"{prefix}*_decoder.*", f"{prefix}kl16.*", "taef2.*"], **hub)
        prefix = "vae/"
    stem = f"{prefix}diffusion_pytorch_model"
    ending = f".{variant}" if variant else ""
    patterns = [f"{prefix}config.json", f"{stem}{ending}.safetensors", f"{stem}{ending}-*.safetensors"]
    root = fetch(name, [*patterns, f"{stem}.safetensors.index*.json"], **hub)
    if not list((root / prefix).glob("*.safetensors")):
        fetch(name, [f"{stem}{ending}.bin"], **hub)
    return root


def _read_published_folder(folder: Path) -> Autoencoder:
    pair = taesd_files(folder)
    if pair is not None:
        return taesd_from_files(*pair)
    files = sorted(p for p in folder.glob("*") if p.stem in ("kl16", "taef2") and p.suffix in _WEIGHT_SUFFIXES)
    if len(files) == 1:
        return _read_file(files[0])
    raise CodaError(
        f"{folder} holds no VAE: expected config.json, vae/config.json, *_encoder.pth with *_decoder.pth, or kl16.*"
    )


def _read_file(path: Path) -> Autoencoder:
    if path.suffix not in _WEIGHT_SUFFIXES:
        raise CodaError(f"{path} is not a file of weights ({', '.join(_WEIGHT_SUFFIXES)})")
    if pair := path.stem.endswith(("_encoder", "_decoder")) and taesd_files(path.parent):
        return taesd_from_files(*pair)
    state = read_tensors(path)
    if is_kl16(state):
        return kl16_from_state(state, path)
    if is_taesd(state):
        return taesd_from_state(state, path)
    raise CodaError(f"{path} is neither MAR's KL16 nor of the TAESD family; give a diffusers directory")


def _wrap(autoencoder: Autoencoder, dtype: torch.dtype | None) -> ContinuousVAE:
    shift, scale = published_normalization(autoencoder) or (None, None)
    vae = ContinuousVAE(autoencoder, shift, scale, SPECS[type(autoencoder).__name__].image_range)
    if dtype is not None:
        nn.Module.to(vae, dtype)  # diffusers' `to` logs a warning here
    return vae.requires_grad_(False).eval()
