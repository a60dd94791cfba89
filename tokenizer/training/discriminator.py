"""Patch discriminator: tells images from reconstructions patch by patch, and its training.

After Isola et al., *Image-to-Image Translation with Conditional Adversarial Networks*, 2017, as VQGAN and the published
CODA use it.

Shapes: images (B, 3, H, W) in [-1, 1]; logits (B, 1, h, w), one per overlapping patch, high for images.
"""

from __future__ import annotations

import torch
from accelerate import Accelerator
from torch import nn

from ..foundation.seeding import derived_seed
from .losses import hinge_discriminator_loss, hinge_generator_loss
from .optimization import OptimizerWithEMA


class PatchDiscriminator(nn.Module):
    """A stack of convolutions: `depth` of 4×4 with stride 2, then two of 3×3.

    The published discriminators have 4×4 throughout, too much for small images. Group normalization replaces their
    batch normalization: it has no running statistics, so images and reconstructions need not share a batch, and
    processes need not be synchronized.

    Args:
        width: Channels of the first layer; each next layer doubles them, up to eight times `width`.
        depth: Number of halvings of the resolution; 3 gives patches of 54 pixels.
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


class DiscriminatorTrainer:
    """A discriminator and its own training.

    In the published training the discriminator's step also applies gradients of the generator's loss. Here the
    discriminator is frozen in `generator_loss`, so that its step uses its own gradients only.

    Args:
        accelerator: The training's accelerator.
        seed: Seed of the initial weights.
    """

    def __init__(self, accelerator: Accelerator, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed("discriminator", seed))
            self._discriminator = PatchDiscriminator()
        self._accelerator = accelerator
        self._prepared = accelerator.prepare(self._discriminator)
        self.optimizer = OptimizerWithEMA(self._discriminator, betas=(0.5, 0.9))

    def generator_loss(self, reconstructions: torch.Tensor) -> torch.Tensor:
        """Loss of the tokenizer: low if the discriminator takes `reconstructions` for images."""
        self._discriminator.requires_grad_(False)
        return hinge_generator_loss(self._discriminator(reconstructions))

    def step(self, images: torch.Tensor, reconstructions: torch.Tensor, lr: float) -> torch.Tensor:
        """One step of the discriminator; returns its loss, without gradient."""
        self._discriminator.requires_grad_(True)
        # One pass for both: processes average their gradients once per backward pass.
        real, fake = self._prepared(torch.cat([images, reconstructions.detach()])).chunk(2)
        loss = hinge_discriminator_loss(real, fake)
        self._accelerator.backward(loss)
        self.optimizer.step(lr)
        return loss.detach()
