import pytest
import torch
from torch import nn

from coda.tokenizer.settings import VaeSettings
from coda.tokenizer.training.discriminator import PatchDiscriminator
from coda.tokenizer.training.losses import (
    ReconstructionLoss,
    adaptive_weight,
    enlarge,
    hinge_discriminator_loss,
    hinge_generator_loss,
    kl_loss,
)


def test_reconstruction_is_the_weighted_sum_of_its_parts() -> None:
    images, others = torch.zeros(2, 3, 8, 8), torch.full((2, 3, 8, 8), 0.5)
    loss = ReconstructionLoss(VaeSettings(l1_weight=2.0, l2_weight=4.0, perceptual_weight=0.0))(others, images)
    assert float(loss.l1) == 0.5 and float(loss.l2) == 0.25
    assert float(loss.total) == 2.0
    assert float(loss.perceptual) == 0.0


def test_only_the_perceptual_loss_sees_enlarged_images() -> None:
    generator = torch.Generator().manual_seed(0)
    images, others = (torch.rand(2, 3, 32, 48, generator=generator) * 2 - 1 for _ in range(2))
    small = ReconstructionLoss(VaeSettings())(others, images)
    large = ReconstructionLoss(VaeSettings(perceptual_size=64))(others, images)
    assert small.l1 == large.l1 and small.l2 == large.l2
    expected = ReconstructionLoss(VaeSettings())(enlarge(others, 64), enlarge(images, 64)).perceptual
    assert large.perceptual == expected != small.perceptual
    assert enlarge(images, 64).shape == (2, 3, 64, 96)
    assert enlarge(images, 32) is images


def test_kl_is_the_divergence_from_the_standard_normal() -> None:
    mean, logvar = torch.randn(3, 4, 2, 2), torch.randn(3, 4, 2, 2)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(kl_loss(mean, logvar), expected)


def test_hinge_losses_stop_at_the_margin() -> None:
    assert float(hinge_discriminator_loss(torch.tensor([3.0]), torch.tensor([-2.0]))) == 0
    assert float(hinge_discriminator_loss(torch.tensor([0.0]), torch.tensor([0.0]))) == 1
    assert float(hinge_generator_loss(torch.tensor([1.0, 3.0]))) == -2


@pytest.mark.parametrize("kind", ["convolution", "linear"])
def test_adaptive_weight_equals_autograd_on_the_last_layer(kind: str) -> None:
    last: nn.Module = nn.Conv2d(5, 3, 3, padding=1) if kind == "convolution" else nn.Linear(5, 3)
    given = torch.randn(2, 5, 6, 6) if kind == "convolution" else torch.randn(2, 7, 5)
    gave = last(given)
    losses = (gave.square().mean(), gave.sin().mean())
    norms = [torch.autograd.grad(loss, last.weight, retain_graph=True)[0].norm() for loss in losses]
    gradients = [torch.autograd.grad(loss, gave, retain_graph=True)[0] for loss in losses]
    last.requires_grad_(False)  # as with LoRA
    weight = adaptive_weight(last, given, *gradients)
    torch.testing.assert_close(weight, norms[0] / (norms[1] + 1e-4))
    assert not weight.requires_grad


def test_adaptive_weight_is_bounded_if_the_adversarial_gradient_is_zero() -> None:
    last, given = nn.Conv2d(2, 3, 1), torch.randn(1, 2, 4, 4)
    zero = torch.zeros(1, 3, 4, 4)
    assert float(adaptive_weight(last, given, torch.ones(1, 3, 4, 4) * 1e3, zero, maximum=7.0)) == 7.0


def test_the_discriminator_learns_and_sees_each_image_alone() -> None:
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=16, depth=2)
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=2e-3)
    ramp = torch.linspace(-1, 1, 32).expand(4, 3, 32, 32)
    losses = []
    for _ in range(15):
        real, fake = discriminator(torch.cat([ramp, ramp + 0.3 * torch.randn(4, 3, 32, 32)])).chunk(2)
        loss = hinge_discriminator_loss(real, fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    pair = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(discriminator(pair)[:1], discriminator(pair[:1]))
