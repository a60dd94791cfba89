"""Losses of `train_vae` and `adapt`, as pure functions of tensors.

Shapes: images and reconstructions (B, 3, H, W), [-1, 1] (reconstructions not clamped); latents (B, C, h, w).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from ..foundation.distributed import mean_over_processes
from ..settings import AdaptSettings, VaeSettings
from .lpips import Lpips, load_lpips
from .perceptual import LiteFeatures, perceptual_loss


@dataclass(frozen=True)
class ReconstructionOutput:
    """Difference between reconstructions and images.

    Attributes:
        total: The weighted sum, a scalar with gradients.
        l1, l2, perceptual: The terms before weighting, scalars without gradients.
    """

    total: torch.Tensor
    l1: torch.Tensor
    l2: torch.Tensor
    perceptual: torch.Tensor

    def figures(self) -> dict[str, float]:
        """Figures for the log, of all processes' images: PSNR in dB, l1, perceptual. All processes call it."""
        l1, l2, perceptual = mean_over_processes(torch.stack([self.l1, self.l2, self.perceptual]).float()).tolist()
        psnr = 10 * math.log10(4 / max(l2, 1e-12))  # images span [-1, 1]
        return {"psnr": psnr, "l1": l1, "perceptual": perceptual}


class ReconstructionLoss(nn.Module):
    """Weighted sum of mean absolute, mean squared and perceptual loss; the network of the last is loaded if needed."""

    def __init__(self, weights: AdaptSettings | VaeSettings) -> None:
        super().__init__()
        self.weights = weights
        self.features: LiteFeatures | Lpips | None = None
        if weights.perceptual_weight:
            self.features = load_lpips() if weights.perceptual == "lpips" else LiteFeatures()

    def forward(self, reconstructions: torch.Tensor, images: torch.Tensor) -> ReconstructionOutput:
        """Loss of reconstructions of images."""
        l1, l2 = F.l1_loss(reconstructions, images), F.mse_loss(reconstructions, images)
        perceptual = torch.zeros_like(l1)
        w = self.weights
        if self.features is not None:
            seen = enlarge(reconstructions, w.perceptual_size), enlarge(images, w.perceptual_size)
            if isinstance(self.features, Lpips):
                perceptual = self.features(*seen)
            else:
                perceptual = perceptual_loss(self.features, *seen)
        total = w.l1_weight * l1 + w.l2_weight * l2 + w.perceptual_weight * perceptual
        return ReconstructionOutput(total, l1.detach(), l2.detach(), perceptual.detach())


def enlarge(images: torch.Tensor, size: int) -> torch.Tensor:
    """Images whose short side is at least `size` pixels."""
    short = min(images.shape[-2:])
    if short >= size:
        return images
    height, width = (round(side * size / short) for side in images.shape[-2:])
    return F.interpolate(images, size=(height, width), mode="bicubic")


def kl_loss(mean: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL divergence of N(mean, exp logvar) from N(0, 1), in nats per latent element: a scalar."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()


def hinge_discriminator_loss(real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
    """Loss of the discriminator: 0 if all logits of images are above 1, of reconstructions below -1."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def hinge_generator_loss(fake: torch.Tensor) -> torch.Tensor:
    """Adversarial loss of the tokenizer: the negated mean logit of its reconstructions."""
    return -fake.mean()


def adaptive_weight(
    last_layer: nn.Module,
    layer_input: torch.Tensor,
    reconstruction_gradient: torch.Tensor,
    adversarial_gradient: torch.Tensor,
    maximum: float = 1e4,
) -> torch.Tensor:
    """Weight that makes the adversarial loss as strong as the reconstruction loss at the decoder's last layer.

    VQGAN's λ = |∂L_rec/∂W| / (|∂L_adv/∂W| + 1e-4) with W the weight of the *last* layer (Esser et al., 2021, Eq 7).
    The layer may be frozen, as with LoRA: the gradients of its weight are computed here from the gradients at its
    output, without a backward pass through the rest of the decoder. They are the mean over all processes.

    Args:
        last_layer: The decoder's last convolution or linear layer.
        layer_input: Its input.
        reconstruction_gradient: ∂L_rec/∂(its output).
        adversarial_gradient: ∂L_adv/∂(its output).
        maximum: Largest weight.

    Returns:
        A scalar without gradients.
    """
    weight = last_layer.get_parameter("weight").detach().float().requires_grad_()
    with torch.enable_grad(), torch.autocast(layer_input.device.type, enabled=False):
        output = torch.func.functional_call(last_layer, {"weight": weight}, (layer_input.detach().float(),))
    norms = [
        mean_over_processes(torch.autograd.grad(output, weight, gradient.detach().float(), retain_graph=True)[0]).norm()
        for gradient in (reconstruction_gradient, adversarial_gradient)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=maximum)
