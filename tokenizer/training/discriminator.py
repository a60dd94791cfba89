"""A network that tells photographs from reconstructions, patch by patch, and its training.

After Isola et al., *Image-to-Image Translation with Conditional Adversarial Networks*, 2017: the critic of VQGAN and of
the published CODA.

Shapes: images (B, 3, H, W) in [-1, 1]; logits (B, 1, h, w), one per overlapping patch, high for photographs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import nn

from ..foundation.seeding import derived_seed
from .losses import hinge_discriminator_loss, hinge_generator_loss
from .optimization import TrainedParameters


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


class Adversary:
    """A discriminator and its training, beside that of what it judges.

    The published training lets the discriminator's step apply gradients that the other step left in it. Here the
    discriminator is frozen while it judges for the other's sake, and starts its own step without any.

    Args:
        accelerator: Of the training.
        seed: Of the initial weights.
    """

    _PREFIX = "discriminator"

    def __init__(self, accelerator: Accelerator, seed: int) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed("discriminator", seed))
            self._critic = PatchDiscriminator()
        self._accelerator = accelerator
        self._prepared = accelerator.prepare(self._critic)
        self._trained = TrainedParameters(list(self._critic.named_parameters()), betas=(0.5, 0.9))

    def deceived(self, reconstructions: torch.Tensor) -> torch.Tensor:
        """The loss of the maker of `reconstructions`: low where they pass for photographs."""
        self._critic.requires_grad_(False)
        return hinge_generator_loss(self._critic(reconstructions))

    def learn(self, images: torch.Tensor, reconstructions: torch.Tensor, rate: float, largest_gradient: float) -> float:
        """One step of the discriminator; returns its loss."""
        self._critic.requires_grad_(True)
        self._trained.optimizer.zero_grad()
        # One pass for both: processes average their gradients once per backward pass.
        real, fake = self._prepared(torch.cat([images, reconstructions.detach()])).chunk(2)
        loss = hinge_discriminator_loss(real, fake)
        self._accelerator.backward(loss)
        self._trained.update(rate, largest_gradient)
        return float(loss.detach())

    def tensors(self) -> dict[str, torch.Tensor]:
        """Its part of a checkpoint."""
        return self._trained.tensors(self._PREFIX)

    def load(self, tensors: Mapping[str, torch.Tensor], updates: int) -> None:
        """Take back what `tensors` gave after that many calls of `learn`."""
        self._trained.load(self._PREFIX, tensors, updates)
