"""LPIPS with VGG-16: the perceptual loss of the paper (Zhang et al., 2018, version 0.1).

Neither half of its weights is part of coda. The heads are in the package `lpips` (`pip install 'coda[lpips]'`), VGG-16
is downloaded once into torch's cache, from where torchvision has it. Both are read as files: the package is not
imported, and torchvision is not needed.

Shapes: images (B, 3, H, W) in [-1, 1]; feature maps (B, C, h, w).
"""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..foundation.errors import CodaError, first_line

VGG16_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels and convolutions, halved in between
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]
_SMALLEST = 16  # pixels; the network halves four times


class Lpips(nn.Module):
    """The network, frozen; its weights are random until they are loaded."""

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(_SHIFT).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).reshape(1, 3, 1, 1), persistent=False)
        before = 3
        self.stages = nn.ModuleList()
        for channels, count in _STAGES:
            stage = nn.ModuleList()
            for _ in range(count):
                stage.append(nn.Conv2d(before, channels, 3, padding=1))
                before = channels
            self.stages.append(stage)
        self.heads = nn.ModuleList([nn.Conv2d(channels, 1, 1, bias=False) for channels, _ in _STAGES])
        self.requires_grad_(False)

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps at 1, 1/2, … 1/16 of the images' size, each cell's channels of length 1."""
        if (short := min(images.shape[-2:])) < _SMALLEST:
            images = F.interpolate(images, scale_factor=_SMALLEST / short, mode="bilinear", recompute_scale_factor=True)
        x, found = (images - self.shift) / self.scale, []
        for number, stage in enumerate(self.stages):
            x = F.max_pool2d(x, 2) if number else x
            for convolution in stage:  # type: ignore[attr-defined]
                x = F.relu(convolution(x))
            found.append(F.normalize(x, dim=1, eps=1e-10))
        return found

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean distance of `images` from `targets`, a scalar; gradients flow to `images` only."""
        with torch.no_grad():
            expected = self.maps(targets)
        pairs = zip(self.heads, self.maps(images), expected, strict=True)
        return torch.stack([head((a - b).square()).mean() for head, a, b in pairs]).sum()


def load_lpips() -> Lpips:
    """LPIPS with its published weights.

    Raises:
        CodaError: If the package `lpips` is not installed, or VGG-16 is not in torch's cache and cannot be downloaded.
    """
    spec = importlib.util.find_spec("lpips")
    if spec is None or spec.origin is None:
        raise CodaError("the perceptual loss lpips needs the package lpips: pip install 'coda[lpips]'")
    heads_path = Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth"
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(VGG16_URL).name
    network = Lpips()
    try:
        heads = torch.load(heads_path, map_location="cpu", weights_only=True)
        vgg = torch.hub.load_state_dict_from_url(
            VGG16_URL, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
        network.load_state_dict(_renamed(vgg, heads))
    except OSError as error:
        missing = heads_path if not heads_path.is_file() else cached
        hint = "" if missing == heads_path else f"; it is to be had at {VGG16_URL}"
        raise CodaError(f"lpips needs {missing}, which cannot be read: {first_line(error)}{hint}") from error
    except (RuntimeError, KeyError, pickle.UnpicklingError, EOFError) as error:
        raise CodaError(f"{heads_path} or {cached} is damaged: {first_line(error)}") from error
    return network


def _renamed(vgg: dict[str, Any], heads: dict[str, Any]) -> dict[str, Any]:
    """Keys of torchvision's VGG-16 and of the package `lpips` as those of `Lpips`."""
    state, index = {}, 0
    for stage, (_, count) in enumerate(_STAGES):
        for layer in range(count):
            for kind in ("weight", "bias"):
                state[f"stages.{stage}.{layer}.{kind}"] = vgg[f"features.{index}.{kind}"]
            index += 2  # each convolution is followed by its ReLU
        index += 1  # the pooling
        state[f"heads.{stage}.weight"] = heads[f"lin{stage}.model.1.weight"]
    return state
