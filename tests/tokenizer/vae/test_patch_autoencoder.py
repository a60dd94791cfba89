import pytest
import torch
import torch.nn.functional as F

from coda.tokenizer import CodaError, load_vae
from coda.tokenizer.images import image_batches, open_images, to_unit
from coda.tokenizer.vae.continuous_vae import ContinuousVAE
from coda.tokenizer.vae.patch_autoencoder import (
    AutoencoderPatch,
    initialize_from_principal_components,
    principal_components,
)


def reconstruct_linearly(images, factor, channels):
    """Patches projected on their own principal components, by a singular value decomposition."""
    height, width = images.shape[-2:]
    patches = F.unfold(images.double(), factor, stride=factor).movedim(1, -1)  # (B, h·w, 3·f²)
    flat = patches.flatten(0, 1)
    mean = flat.mean(0)
    components = torch.linalg.svd(flat - mean, full_matrices=False)[2][:channels]
    projected = (patches - mean) @ components.T @ components + mean
    return F.fold(projected.movedim(-1, 1), (height, width), factor, stride=factor).float()


def smooth_images(count, size):
    """Generated images with most of their power at low frequencies, in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, size // 4, size // 4, generator=generator) * 2 - 1
    fine = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    return 0.8 * F.interpolate(coarse, scale_factor=4.0, mode="bilinear") + 0.2 * fine


def started(images, factor, channels, width=16):
    halvings = factor.bit_length() - 1
    autoencoder = AutoencoderPatch(3, channels, [width] * halvings, [1] * halvings)
    initialize_from_principal_components(autoencoder, images.split(16))
    return autoencoder.eval()


@pytest.mark.parametrize(("factor", "channels", "width"), [(2, 5, 16), (4, 8, 48), (8, 16, 16), (16, 12, 16)])
def test_the_start_is_the_linear_optimum(factor, channels, width):
    images = smooth_images(40, 32)
    autoencoder = started(images, factor, channels, width)
    with torch.no_grad():
        latents = autoencoder.encode(images).latent
        found = autoencoder.decode(latents).sample
    torch.testing.assert_close(found, reconstruct_linearly(images, factor, channels), atol=1e-4, rtol=0)
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(channels), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.square().mean(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_the_start_is_the_linear_optimum_for_photographs(shared_data):
    source = open_images(f"{shared_data}/tiny-imagenet/val-00000.parquet[:100]")
    (batch,) = image_batches(source, 64, 100)
    images = to_unit(batch.pixels)
    with torch.no_grad():
        found = started(images, 8, 16)(images).sample
    torch.testing.assert_close(found, reconstruct_linearly(images, 8, 16), atol=1e-4, rtol=0)


def test_every_parameter_learns():
    """A start of zeros must not be one that no gradient leaves."""
    images = smooth_images(8, 16)
    autoencoder = started(images, 4, 4).train()
    optimizer = torch.optim.SGD(autoencoder.parameters(), lr=1e-2)
    for _ in range(3):  # the last convolution, then the last of each block, then all
        optimizer.zero_grad()
        F.mse_loss(autoencoder(images).sample, images).backward()
        optimizer.step()
    assert not [name for name, p in autoencoder.named_parameters() if not p.grad.any()]


def test_saved_and_loaded_equal(tmp_path):
    images = smooth_images(16, 16)
    vae = ContinuousVAE(started(images, 4, 4))
    expected = vae(images)
    vae.save_pretrained(tmp_path / "vae")
    assert torch.equal(load_vae(tmp_path / "vae")(images), expected)
    vae.autoencoder.save_pretrained(tmp_path / "plain")
    plain = AutoencoderPatch.from_pretrained(tmp_path / "plain")
    assert torch.equal(plain(images).sample, expected)
    assert torch.equal(load_vae(tmp_path / "plain")(images), expected)


def test_components_do_not_depend_on_batches():
    images = smooth_images(12, 16)
    whole, parts = principal_components([images], 2, 4), principal_components(images.split(5), 2, 4)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
    with pytest.raises(CodaError, match="no images"):
        principal_components([], 2, 4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"latent_channels": 13, "block_out_channels": [16], "layers_per_block": [1]}, "1 to the 12 values"),
        ({"block_out_channels": [16, 16], "layers_per_block": [1]}, "layers_per_block 1: expected 2 numbers"),
        ({"block_out_channels": [], "layers_per_block": []}, "block_out_channels is empty"),
        ({"block_out_channels": [20], "layers_per_block": [1], "latent_channels": 4}, "multiple of 16"),
    ],
)
def test_an_impossible_config_is_refused(config, message):
    with pytest.raises(CodaError, match=message):
        AutoencoderPatch(**config)
