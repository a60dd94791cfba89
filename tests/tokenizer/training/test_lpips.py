from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from coda.tokenizer import CodaError
from coda.tokenizer.settings import VaeSettings
from coda.tokenizer.training.losses import ReconstructionLoss
from coda.tokenizer.training.lpips import Lpips, load_lpips

CONVOLUTIONS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of torchvision's vgg16().features
WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
LAST, HEADS = (2, 7, 14, 21, 28), (64, 128, 256, 512, 512)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """VGG-16 in torch's cache and the package lpips, both with random weights of the published names and shapes."""
    vgg = {"classifier.0.bias": torch.zeros(1)}
    for index, before, channels in zip(CONVOLUTIONS, WIDTHS, WIDTHS[1:], strict=False):
        vgg[f"features.{index}.weight"] = torch.randn(channels, before, 3, 3) * (2 / before / 9) ** 0.5
        vgg[f"features.{index}.bias"] = 0.1 * torch.randn(channels)
    vgg_path = tmp_path / "hub" / "checkpoints" / "vgg16-397923af.pth"
    heads_path = tmp_path / "site" / "lpips" / "weights" / "v0.1" / "vgg.pth"
    for path in (vgg_path, heads_path):
        path.parent.mkdir(parents=True)
    torch.save(vgg, vgg_path)
    torch.save({f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate(HEADS)}, heads_path)
    (tmp_path / "site" / "lpips" / "__init__.py").write_text("raise ImportError('no torchvision')")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path / "site")
    return vgg_path, heads_path


def test_the_distance_is_that_of_the_publication(installed: tuple[Path, Path], images: torch.Tensor) -> None:
    others = (images + 0.3 * torch.randn_like(images)).requires_grad_()
    network = ReconstructionLoss(VaeSettings(perceptual="lpips")).features
    assert isinstance(network, Lpips)
    found = network(others, images)
    vgg, heads = (torch.load(path, weights_only=True) for path in installed)

    def maps(pixels: torch.Tensor) -> list[torch.Tensor]:
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x, kept = (pixels - shift[:, None, None]) / scale[:, None, None], []
        for index in CONVOLUTIONS:
            x = F.conv2d(x, vgg[f"features.{index}.weight"], vgg[f"features.{index}.bias"], padding=1).relu()
            if index in LAST:
                kept.append(x / x.square().sum(1, keepdim=True).sqrt())
                x = F.max_pool2d(x, 2)
        return kept

    levels = enumerate(zip(maps(others), maps(images), strict=True))
    each = [(heads[f"lin{i}.model.1.weight"] * (a - b).square()).sum(1).mean((1, 2)) for i, (a, b) in levels]
    torch.testing.assert_close(found, torch.stack(each).sum(0).mean())
    found.backward()
    assert others.grad is not None and not any(p.requires_grad for p in network.parameters())
    assert float(network(images, images)) == 0
    assert network(images[..., :8, :8], images[..., :8, :8]).isfinite()


def test_what_is_missing_is_named(
    installed: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vgg_path, heads_path = installed
    vgg_path.write_bytes(b"<html>not found</html>")
    with pytest.raises(CodaError, match=r"vgg16-397923af\.pth is damaged"):
        load_lpips()
    vgg_path.unlink()
    vgg_path.mkdir()  # cannot be read, and is not downloaded
    with pytest.raises(
        CodaError, match=r"vgg16-397923af\.pth, which cannot be read: .* had at https://download\.pytorch"
    ):
        load_lpips()
    heads_path.unlink()
    with pytest.raises(CodaError, match=r"lpips needs .*vgg.pth, which cannot be read"):
        load_lpips()
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p != str(tmp_path / "site")])
    with pytest.raises(CodaError, match=r"pip install 'coda\[lpips\]'"):
        load_lpips()
