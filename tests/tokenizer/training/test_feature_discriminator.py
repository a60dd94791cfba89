from pathlib import Path
from typing import Any

import pytest
import torch

from coda.tokenizer import CodaError
from coda.tokenizer.settings import AdaptSettings
from coda.tokenizer.training.discriminator import DiscriminatorTrainer, adversarial_weight
from coda.tokenizer.training.optimization import start_accelerator


def vit_config(**changes: Any) -> Any:
    from transformers import ViTConfig

    tiny = dict(hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=48)
    return ViTConfig(**(tiny | {"image_size": 32, "patch_size": 8, "initializer_range": 0.2} | changes))


@pytest.fixture
def vit(tmp_path: Path) -> str:
    """A directory with a tiny ViT with random weights, as transformers saves it."""
    from transformers import ViTModel

    ViTModel(vit_config(), add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    return str(tmp_path / "vit")


def trainer(**changes: Any) -> DiscriminatorTrainer:
    return DiscriminatorTrainer(start_accelerator("cpu"), AdaptSettings(adversarial_weight=1.0, **changes))


@pytest.mark.parametrize(("kind", "size"), [("dino", 48), ("dino", 24), ("projected", 32)])
def test_the_heads_learn_and_the_network_stays_frozen(vit: str, kind: str, size: int) -> None:
    learner = trainer(discriminator=kind, dino=vit)
    discriminator = learner._discriminator
    frozen = {name: p.clone() for name, p in discriminator.features.state_dict().items()}
    images = torch.linspace(-1, 1, size).expand(4, 3, size, size)
    fakes = (images + 0.5 * torch.randn(4, 3, size, size)).requires_grad_()
    losses = []
    for step in range(20):
        losses.append(float(learner.backward(images, fakes, step)))
        learner.step(2e-3)
    assert losses[-1] < 0.5 * losses[0]
    assert fakes.grad is None
    generator_loss = learner.generator_loss(fakes, 0)
    generator_loss.backward()
    assert fakes.grad is not None and all(p.grad is None for p in discriminator.parameters())
    after = discriminator.features.state_dict()
    assert all(torch.equal(frozen[name], after[name]) for name in frozen)
    assert not any("features" in name for name in learner.state_tensors())


def test_each_image_is_judged_alone(vit: str) -> None:
    discriminator = trainer(discriminator="dino", dino=vit)._discriminator.eval()
    pair = torch.rand(2, 3, 40, 40) * 2 - 1
    assert discriminator(pair).shape == (2, 5 * 16)  # the ViT's input and four of its blocks, 4 × 4 tokens each
    torch.testing.assert_close(discriminator(pair)[:1], discriminator(pair[:1]))


def test_half_of_the_steps_see_a_crop_of_images_and_reconstructions_alike(vit: str) -> None:
    learner = trainer(discriminator="dino", dino=vit)
    images = torch.rand(1, 3, 48, 40)
    views = [learner._view(images, step) for step in range(40)]
    crops = [view for view in views if view.shape[-1] == 32]
    assert 8 < len(crops) < 32 and len({float(crop[0, 0, 0, 0]) for crop in crops}) > 5
    assert all(torch.equal(view, learner._view(images, step)) for step, view in enumerate(views))


def test_what_is_not_a_vit_is_refused(vit: str, tmp_path: Path) -> None:
    with pytest.raises(CodaError, match="of the dino discriminator cannot be loaded"):
        trainer(discriminator="dino", dino=str(tmp_path / "nothing"))
    weights = Path(vit) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:300])
    with pytest.raises(CodaError, match="of the dino discriminator cannot be loaded"):
        trainer(discriminator="dino", dino=vit)


def test_the_adversarial_weight_rises_over_a_share_of_the_run() -> None:
    def weights(**changes: Any) -> list[float]:
        settings = AdaptSettings(steps=10, adversarial_weight=2.0, **changes)
        return [adversarial_weight(step, settings) for step in (0, 2, 5, 9)]

    assert weights() == [2.0, 2.0, 2.0, 2.0]
    assert weights(adversarial_ramp=1.0) == pytest.approx([0.0, 0.4, 1.0, 1.8])
    assert weights(adversarial_start=2, adversarial_ramp=0.4) == pytest.approx([0.0, 0.0, 1.5, 2.0])
