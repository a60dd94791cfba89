"""Tells photographs from reconstructions, patch by patch.

After Isola et al., *Image-to-Image Translation with Conditional Adversarial Networks*, 2017: the critic of VQGAN and of
the published CODA.

Shapes: images (B, 3, H, W) in [-1, 1]; logits (B, 1, h, w), one per overlapping patch, high for photographs.
"""

from __future__ import annotations

import torch
from torch import nn


class PatchDiscriminator(nn.Module):
    """A stack of convolutions, the first `depth` of them 4×4 with stride 2, then two of 3×3.

    The published ones have 4×4 throughout, which leaves nothing of small pictures. Group normalisation takes the place
    of their batch normalisation: it has no running statistics, so that photographs and reconstructions need not share a
    batch, and processes need not be synchronised.

    Args:
        width: Channels of the first layer; they double at each of the next, up to eight times that.
        depth: Halvings of the resolution; 3 gives patches of 54 pixels.
    """

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        channels = width
        for number in range(1, depth + 1):
            wider = width * min(2**number, 8)
            kernel, stride = (4, 2) if number < depth else (3, 1)
            layers += [
                nn.Conv2d(channels, wider, kernel, stride=stride, padding=1, bias=False),
                nn.GroupNorm(max(1, wider // 16), wider),
                nn.LeakyReLU(0.2),
            ]
            channels = wider
        layers.append(nn.Conv2d(channels, 1, 3, padding=1))
        self.layers = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1, h, w) of images (B, 3, H, W) in [-1, 1]."""
        return self.layers(images)
