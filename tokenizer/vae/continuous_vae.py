"""A continuous VAE with one face: images in [-1, 1] to normalised latents and back.

Shapes: B images of H × W pixels, C latent channels, h × w the latent's grid, H = factor · h.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_utils import ModelMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import nn

from ..foundation.errors import CodaError
from ..foundation.hub import fetch, local_path
from ..foundation.reading import read_json
from ..foundation.strict_loading import load_strictly, read_tensors
from .autoencoders import SPECS, Autoencoder, autoencoder_class, from_config, published_normalization, to_config
from .published_formats import is_kl16, is_taesd, kl16_from_state, taesd_files, taesd_from_files, taesd_from_state
from .tiling import check_tiles, in_tiles

_FOREIGN_WEIGHTS = (".safetensors", ".pth", ".ckpt", ".pt")


class ContinuousVAE(ModelMixin, ConfigMixin):
    """One of diffusers' autoencoders behind normalised latents and images in [-1, 1].

    Args:
        architecture: The autoencoder, or what `to_config` says of one (which is what the config keeps).
        shift: One number or C; None where nobody knows yet.
        scale: One number or C. Normalised latents are `(z - shift) * scale`.
        image_range: What the autoencoder itself calls black and white: "-1,1" or "0,1".
    """

    @register_to_config
    def __init__(
        self,
        architecture: Autoencoder | Mapping[str, Any],
        shift: Sequence[float] | None = None,
        scale: Sequence[float] | None = None,
        image_range: str = "-1,1",
    ) -> None:
        super().__init__()
        given = isinstance(architecture, nn.Module)
        description = to_config(architecture) if given else dict(architecture)
        self.register_to_config(architecture=description)
        self.autoencoder: Autoencoder = architecture if given else from_config(description)
        self.spec = SPECS[description["_class_name"]]
        self._tiles: tuple[int, int] | None = None  # side and overlap in pixels, where images go through in tiles
        self._check_config()

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one axis."""
        return self.spec.factor(self.autoencoder.config)

    @property
    def latent_channels(self) -> int:
        """C."""
        return self.autoencoder.config[self.spec.latent_channels]

    @property
    def is_unnormalized(self) -> bool:
        """Whether shift and scale are unknown, so that latents come as they are; see `measure_normalization`."""
        return self.config.scale is None

    @property
    def last_layer(self) -> torch.Tensor:
        """Weight of the decoder's last layer (for the adaptive weight of an adversarial loss)."""
        weights = [m.weight for m in self.autoencoder.decoder.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        return weights[-1]

    def encode(
        self,
        images: torch.Tensor,
        sample: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
    ) -> torch.Tensor:
        """Normalised latents (B, C, h, w) of images (B, 3, H, W) in [-1, 1].

        Args:
            images: H and W are multiples of `factor`.
            sample: Draw from the posterior instead of taking its mode, where the VAE has one.
            generator: For the drawing; a list holds one per image.

        Raises:
            CodaError: The images' shape does not fit.
        """
        mean, logvar = self.encode_moments(images)
        if sample and logvar is not None:
            noise = randn_tensor(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
            mean = mean + torch.exp(0.5 * logvar) * noise
        return self.normalize(mean)

    def encode_moments(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mean and log-variance (clamped to [-30, 20]) of the posterior, both (B, C, h, w) and not normalised.

        The log-variance is None where the autoencoder has no posterior.
        """
        self._check_images(images)
        if self.config.image_range == "0,1":
            images = (images + 1) / 2
        images = images.to(self.dtype)
        if self._tiles is None:
            moments = self._moments(images)
        else:
            moments = in_tiles(self._moments, images, *self._tiles, Fraction(1, self.factor))
        mean, logvar = moments.split([self.latent_channels, moments.shape[1] - self.latent_channels], dim=1)
        return mean, logvar if logvar.shape[1] else None

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, H, W) of normalised latents (B, C, h, w): about [-1, 1], not clamped."""
        z = self.denormalize(latents.to(self.dtype))
        if self._tiles is None:
            images = self._images(z)
        else:
            tile, overlap = (pixels // self.factor for pixels in self._tiles)
            images = in_tiles(self._images, z, tile, overlap, Fraction(self.factor))
        return images * 2 - 1 if self.config.image_range == "0,1" else images

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images through the latent and back, (B, 3, H, W) to the same."""
        return self.decode(self.encode(images))

    def enable_tiling(self, tile: int = 512, overlap: int = 64) -> None:
        """Encode and decode large images in overlapping tiles, see `CodaTokenizer.enable_tiling`."""
        check_tiles(tile, overlap, self.factor)
        self._tiles = (tile, overlap)

    def disable_tiling(self) -> None:
        """Encode and decode images whole."""
        self._tiles = None

    def normalize(self, z: torch.Tensor) -> torch.Tensor:
        """The autoencoder's own latents, normalised."""
        if self.is_unnormalized:
            return z
        return (z - self._per_channel("shift", z)) * self._per_channel("scale", z)

    def denormalize(self, latents: torch.Tensor) -> torch.Tensor:
        """The inverse of `normalise`."""
        if self.is_unnormalized:
            return latents
        return latents / self._per_channel("scale", latents) + self._per_channel("shift", latents)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> ContinuousVAE:
        """Load what `save_pretrained` wrote, frozen and in evaluation mode.

        Raises:
            CodaError: It is not there, damaged, or weights are missing.
        """
        subfolder = kwargs.pop("subfolder", None) or ""
        hub = {key: kwargs.pop(key) for key in _HUB_OPTIONS if key in kwargs}
        folder = local_path(pretrained_model_name_or_path)
        if folder is None:
            prefix = f"{subfolder}/" if subfolder else ""
            folder = fetch(str(pretrained_model_name_or_path), [f"{prefix}*.json", f"{prefix}*.safetensors"], **hub)
        folder = folder / subfolder
        config = read_json(folder / "config.json") if folder.is_dir() else {}
        if config.get("_class_name") != cls.__name__:
            raise CodaError(f"{folder} holds a {config.get('_class_name')}, not a {cls.__name__}")
        return _frozen(load_strictly(cls, folder, **kwargs))

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> None:
        """Write config and weights, for `from_pretrained`."""
        if any(".lora_A." in name for name, _ in self.named_parameters()):
            raise CodaError("a VAE is saved with its LoRA merged: call merge_lora first")
        super().save_pretrained(str(save_directory), **kwargs)

    def _per_channel(self, key: str, like: torch.Tensor) -> torch.Tensor:
        """Shift or scale from the config, to work on a latent."""
        return torch.tensor(self.config[key], device=like.device, dtype=like.dtype).reshape(1, -1, 1, 1)

    def _moments(self, images: torch.Tensor) -> torch.Tensor:
        """Mean and, where there is one, log-variance (B, C or 2 C, h, w) of images in the autoencoder's own range."""
        encoded = self.autoencoder.encode(images, return_dict=False)[0]
        if isinstance(encoded, DiagonalGaussianDistribution):
            return torch.cat([encoded.mean, encoded.logvar], dim=1)
        return cast(torch.Tensor, encoded)

    def _images(self, z: torch.Tensor) -> torch.Tensor:
        return cast(torch.Tensor, self.autoencoder.decode(z, return_dict=False)[0])

    def _check_images(self, images: torch.Tensor) -> None:
        if images.ndim != 4 or images.shape[1] != 3:
            raise CodaError(f"images have shape {tuple(images.shape)}, expected (B, 3, H, W)")
        height, width = images.shape[-2:]
        fixed = self.spec.fixed_size(self.autoencoder.config) if self.spec.fixed_size else None
        if fixed is not None and (height, width) != (fixed, fixed):
            raise CodaError(f"images are {height}x{width}; this VAE takes {fixed}x{fixed} alone")
        if height % self.factor or width % self.factor or not height or not width:
            raise CodaError(f"images are {height}x{width}; this VAE takes multiples of {self.factor}")

    def _check_config(self) -> None:
        channels = self.autoencoder.config.get("in_channels") or self.autoencoder.config.get("num_channels")
        if channels != 3:
            raise CodaError(f"the {type(self.autoencoder).__name__} takes {channels} colour channels, not 3")
        if self.config.image_range not in ("-1,1", "0,1"):
            raise CodaError(f"image_range is {self.config.image_range!r}; it is '-1,1' or '0,1'")
        if (self.config.shift is None) != (self.config.scale is None):
            raise CodaError("shift and scale are known together or not at all")
        for key in ("shift", "scale"):
            values = self.config[key]
            if values is not None and len(values) not in (1, self.latent_channels):
                raise CodaError(f"{key} has {len(values)} numbers; it is 1 or {self.latent_channels}")


_HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")


def load_vae(
    path_or_name: str | Path,
    subfolder: str | None = None,
    torch_dtype: torch.dtype | None = None,
    variant: str | None = None,
    **hub: Any,
) -> ContinuousVAE:
    """Load a continuous VAE, frozen and in evaluation mode, with its latents normalised as it states.

    Args:
        path_or_name: A directory: of `ContinuousVAE`, of a diffusers autoencoder, of a pipeline or tokenizer with one
            under `vae/`, with `*_encoder.pth` and `*_decoder.pth` of the TAESD family (TAEF2), with `kl16.*`. Or a
            file: MAR's `kl16.safetensors` (`.ckpt`, `.pth`), `taef2.safetensors`. Or a hub id of any of these.
        subfolder: Where in it the autoencoder is.
        torch_dtype: Of the weights; float32 if None.
        variant: Of diffusers weight files, such as "fp16".
        **hub: `revision`, `cache_dir`, `token`, `local_files_only`, `force_download` for hub ids.

    Raises:
        CodaError: It is not there, damaged, incomplete, or of a kind that cannot be adapted.
    """
    unknown = sorted(hub.keys() - set(_HUB_OPTIONS))
    if unknown:
        raise TypeError(f"load_vae() has no argument {unknown[0]!r}")
    path = local_path(path_or_name)
    if path is None:
        path = _fetch_vae(str(path_or_name), subfolder, variant, hub)
    path = path / subfolder if subfolder else path
    if not path.exists():
        raise CodaError(f"{path}: no such directory")
    if path.is_file():
        return _finished(_read_file(path), torch_dtype)
    if (path / "vae" / "config.json").is_file() and not (path / "config.json").is_file():
        path = path / "vae"  # a pipeline's, or a tokenizer's
    if (path / "config.json").is_file():
        name = read_json(path / "config.json").get("_class_name")
        options = {"torch_dtype": torch_dtype, "variant": variant}
        if name == ContinuousVAE.__name__:
            return ContinuousVAE.from_pretrained(path, **options)
        return _finished(load_strictly(autoencoder_class(name, path), path, **options), None)
    return _finished(_read_foreign_folder(path), torch_dtype)


@torch.no_grad()
def measure_normalization(vae: ContinuousVAE, batches: Iterable[torch.Tensor]) -> ContinuousVAE:
    """The same VAE with shift and scale measured on images; shares its weights with `vae`.

    The shift is each channel's mean; the scale is one for all channels, the inverse of their common standard deviation
    about those means. Distances between latents stay what the decoder makes of them: dividing each channel by its own
    deviation would turn a channel that carries next to nothing into one that costs as many codes as any.

    Args:
        vae: Any; what it states itself is not used.
        batches: Images (B, 3, H, W) in [-1, 1].

    Raises:
        CodaError: There are no images.
    """
    count, total, squares = 0, torch.zeros(vae.latent_channels).double(), torch.zeros(vae.latent_channels).double()
    for images in batches:
        z = vae.encode_moments(images.to(vae.device))[0].double().cpu().movedim(1, 0).flatten(1)  # (C, B·h·w)
        count, total, squares = count + z.shape[1], total + z.sum(1), squares + z.square().sum(1)
    if count == 0:
        raise CodaError("there are no images to measure the latents on")
    mean = total / count
    variance = (squares / count - mean.square()).mean().clamp(min=1e-12)
    measured = copy.copy(vae)  # its own config, the same modules
    measured.register_to_config(shift=mean.tolist(), scale=[float(variance.rsqrt())])
    return measured


def _fetch_vae(name: str, subfolder: str | None, variant: str | None, hub: dict[str, Any]) -> Path:
    """The parts of a hub repository that hold its VAE, and no more: pipelines are large."""
    prefix = f"{subfolder}/" if subfolder else ""
    root = fetch(name, [f"{prefix}config.json", "vae/config.json"], **hub)
    if not (root / prefix / "config.json").is_file():
        if not (root / "vae" / "config.json").is_file():  # no diffusers layout: the small published files
            return fetch(name, [f"{prefix}*_encoder.*", f"{prefix}*_decoder.*", f"{prefix}kl16.*", "taef2.*"], **hub)
        prefix = "vae/"
    stem = f"{prefix}diffusion_pytorch_model"
    ending = f".{variant}" if variant else ""
    patterns = [f"{prefix}config.json", f"{stem}{ending}.safetensors", f"{stem}{ending}-*.safetensors"]
    root = fetch(name, [*patterns, f"{stem}.safetensors.index*.json"], **hub)
    if not list((root / prefix).glob("*.safetensors")):
        fetch(name, [f"{stem}{ending}.bin"], **hub)
    return root


def _read_foreign_folder(folder: Path) -> Autoencoder:
    pair = taesd_files(folder)
    if pair is not None:
        return taesd_from_files(*pair)
    files = sorted(p for p in folder.glob("*") if p.stem in ("kl16", "taef2") and p.suffix in _FOREIGN_WEIGHTS)
    if len(files) == 1:
        return _read_file(files[0])
    raise CodaError(
        f"{folder} holds no VAE: expected config.json, vae/config.json, *_encoder.pth with *_decoder.pth, or kl16.*"
    )


def _read_file(path: Path) -> Autoencoder:
    if path.suffix not in _FOREIGN_WEIGHTS:
        raise CodaError(f"{path} is no file of weights ({', '.join(_FOREIGN_WEIGHTS)})")
    if pair := path.stem.endswith(("_encoder", "_decoder")) and taesd_files(path.parent):
        return taesd_from_files(*pair)
    state = read_tensors(path)
    if is_kl16(state):
        return kl16_from_state(state, path)
    if is_taesd(state):
        return taesd_from_state(state, path)
    raise CodaError(f"{path} is neither MAR's KL16 nor of the TAESD family; give a diffusers directory")


def _finished(autoencoder: Autoencoder, dtype: torch.dtype | None) -> ContinuousVAE:
    """An autoencoder behind its face."""
    shift, scale = published_normalization(autoencoder) or (None, None)
    vae = ContinuousVAE(autoencoder, shift, scale, SPECS[type(autoencoder).__name__].image_range)
    if dtype is not None:
        nn.Module.to(vae, dtype)  # diffusers' own `to` warns of nothing
    return _frozen(vae)


def _frozen(vae: ContinuousVAE) -> ContinuousVAE:
    return vae.requires_grad_(False).eval()
