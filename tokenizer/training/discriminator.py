"""Discriminators tell images from reconstructions: one that sees patches, and the training of this or another.

The patch discriminator is after Isola et al., *Image-to-Image Translation with Conditional Adversarial Networks*, 2017,
as VQGAN uses it. The published CODA uses the one in `feature_discriminator`.

Shapes: images (B, 3, H, W) in [-1, 1]; logits (B, 1, h, w), one per overlapping patch, high for images.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from torch import nn

from ..foundation.seeding import derived_seed, step_generator
from ..settings import AdaptSettings
from .feature_discriminator import dino_discriminator, load_vit, projected_discriminator
from .losses import hinge_discriminator_loss, hinge_generator_loss
from .optimization import OptimizerWithEMA, synchronize_gradients


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
        settings: Which discriminator, its optimizer, and the seed of its initial weights.
    """

    def __init__(self, accelerator: Accelerator, settings: AdaptSettings) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed("discriminator", settings.seed))
            self._discriminator = _build(settings)
        self._trained = [p for p in self._discriminator.parameters() if p.requires_grad]
        self._accelerator, self._settings = accelerator, settings
        self._prepared = accelerator.prepare(self._discriminator)
        self._estimates = {n: b for n, b in self._discriminator.named_buffers() if ".parametrizations." in n}
        self._optimizer = OptimizerWithEMA(
            self._discriminator,
            betas=(0.5, 0.9),
            weight_decay=settings.weight_decay / 10,
            decay_all=True,
            max_gradient_norm=settings.max_gradient_norm,
        )

    def generator_loss(self, reconstructions: torch.Tensor, step: int) -> torch.Tensor:
        """Loss of the tokenizer: low if the discriminator takes `reconstructions` for images."""
        self._train(False)
        return hinge_generator_loss(self._discriminator(self._view(reconstructions, step)))

    def backward(
        self, images: torch.Tensor, reconstructions: torch.Tensor, step: int, last: bool = True
    ) -> torch.Tensor:
        """Add the gradients of one part of the step's batch; returns the discriminator's loss, without gradient."""
        self._train(True)
        synchronize_gradients(self._prepared, last)
        # One pass for both: processes average their gradients once per backward pass.
        both = self._view(torch.cat([images, reconstructions.detach()]), step)
        real, fake = self._prepared(both).chunk(2)
        loss = hinge_discriminator_loss(real, fake)
        self._accelerator.backward(loss / self._settings.accumulation)
        return loss.detach()

    def step(self, lr: float) -> None:
        """Update the discriminator with the gradients so far."""
        self._optimizer.step(lr)

    def state_tensors(self) -> dict[str, torch.Tensor]:
        """Weights, moments, and the estimates of spectral norms, for a checkpoint."""
        estimates = {f"discriminator.estimate.{name}": buffer for name, buffer in self._estimates.items()}
        return self._optimizer.state_tensors("discriminator") | estimates

    def load_state_tensors(self, tensors: Mapping[str, torch.Tensor], step: int) -> None:
        """Restore what `state_tensors` returned after `step` steps of the training."""
        updates = max(0, step - self._settings.adversarial_start)
        self._optimizer.load_state_tensors("discriminator", tensors, updates)
        for name, buffer in self._estimates.items():
            buffer.copy_(tensors[f"discriminator.estimate.{name}"])

    def _train(self, mode: bool) -> None:
        self._discriminator.train(mode)
        for parameter in self._trained:
            parameter.requires_grad_(mode)

    def _view(self, images: torch.Tensor, step: int) -> torch.Tensor:
        """The whole images or, in half of the steps, a random crop of them of the size that a frozen network sees."""
        size = getattr(self._discriminator, "crop_size", None)
        if size is None or min(images.shape[-2:]) <= size:
            return images
        whole, *place = torch.rand(3, generator=step_generator(self._settings.seed, step, "discriminator")).tolist()
        if whole < 0.5:
            return images
        top, left = (int(share * (length - size + 1)) for share, length in zip(place, images.shape[-2:], strict=True))
        return images[..., top : top + size, left : left + size]


def adversarial_weight(step: int, settings: AdaptSettings) -> float:
    """Weight of the discriminator's loss on the tokenizer at `step`, before the adaptive weight."""
    done, length = step - settings.adversarial_start, settings.adversarial_ramp * settings.steps
    if done < 0:
        return 0.0
    return settings.adversarial_weight * (min(1.0, done / length) if length else 1.0)


def _build(settings: AdaptSettings) -> nn.Module:
    if settings.discriminator == "dino":
        return dino_discriminator(load_vit(settings.dino))
    return projected_discriminator() if settings.discriminator == "projected" else PatchDiscriminator()
