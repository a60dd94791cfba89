from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from coda.tokenizer.images import open_images
from coda.tokenizer.images.decoding import decode_image
from coda.tokenizer.images.imagenet import imagenet_classes
from coda.tokenizer.images.pixel_range import to_unit
from coda.tokenizer.training.perceptual import LiteFeatures, perceptual_loss


@pytest.fixture(scope="module")
def features() -> LiteFeatures:
    return LiteFeatures()


@pytest.fixture(scope="module")
def photos(shared_data: Path) -> torch.Tensor:
    source = open_images(shared_data / "imagenet-sample-256")
    return torch.stack([to_unit(decode_image(source.read(i), 256)) for i in range(0, 800, 50)])


def test_photos_are_recognized(features: LiteFeatures, shared_data: Path, photos: torch.Tensor) -> None:
    source = open_images(shared_data / "imagenet-sample-256")
    labels = torch.tensor([source.label(i) for i in range(0, 800, 50)])
    assert source.num_classes == len(imagenet_classes())
    with torch.no_grad():
        top5 = features.logits(photos).topk(5).indices
    assert (top5 == labels[:, None]).any(dim=1).float().mean() > 0.7


def test_the_network_is_frozen_and_stays_in_evaluation_mode(features: LiteFeatures) -> None:
    features.train()
    assert not any(module.training for module in features.modules())
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_maps_halve_and_pooled_features_have_their_width(features: LiteFeatures) -> None:
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    sizes = [(16, 32, 48), (24, 16, 24), (40, 8, 12), (112, 4, 6), (320, 2, 3)]
    assert [tuple(m.shape[1:]) for m in features.maps(images)] == sizes
    assert features.pooled(images).shape == (2, 1280)
    assert features.logits(images).shape == (2, 1000)


def test_the_loss_ranks_distortions(features: LiteFeatures, photos: torch.Tensor) -> None:
    images = F.interpolate(photos[:4], size=64, mode="area")
    small = F.interpolate(F.interpolate(images, size=32, mode="area"), size=64, mode="bicubic")
    smaller = F.interpolate(F.interpolate(images, size=12, mode="area"), size=64, mode="bicubic")
    distances = [float(perceptual_loss(features, other, images)) for other in (images, small, smaller)]
    assert distances[0] == 0
    assert distances[0] < distances[1] < distances[2]


def test_gradients_reach_the_images_only(features: LiteFeatures) -> None:
    images, targets = (torch.rand(1, 3, 32, 32).requires_grad_() for _ in range(2))
    perceptual_loss(features, images, targets).backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert targets.grad is None
