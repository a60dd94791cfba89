import pytest
import torch

from coda.tokenizer import CodaError, ContinuousVAE
from coda.tokenizer.vae.sensitivity import decoder_metric


def test_the_metric_is_the_root_of_the_mean_squared_jacobian(small_autoencoder):
    torch.manual_seed(0)
    vae = ContinuousVAE(small_autoencoder(), [0.0], [2.0]).eval().requires_grad_(False)
    latent = torch.randn(1, vae.latent_channels, 4, 4)
    jacobian = torch.autograd.functional.jacobian(vae.decode, latent).flatten(0, 4).flatten(2)  # (pixels, C, cells)
    exact = torch.einsum("pci,pdi->cd", jacobian, jacobian)
    metric = decoder_metric(vae, latent.expand(400, -1, -1, -1))
    assert torch.linalg.eigvalsh(metric).min() > 0
    torch.testing.assert_close(metric.square().sum(), torch.tensor(float(len(metric))), rtol=1e-4, atol=0.0)
    exact = exact * len(metric) / exact.trace()
    assert (metric @ metric - exact).norm() < 0.1 * exact.norm()
    assert torch.equal(metric, decoder_metric(vae, latent.expand(400, -1, -1, -1)))


def test_channels_that_the_decoder_ignores_count_a_little(small_autoencoder):
    vae = ContinuousVAE(small_autoencoder(), [0.0], [1.0]).eval().requires_grad_(False)
    vae.autoencoder.post_quant_conv.weight[:, 0] = 0.0
    values = torch.linalg.eigvalsh(decoder_metric(vae, torch.randn(8, vae.latent_channels, 4, 4))).square()
    assert float(values[0] / values[-1]) == pytest.approx(1e-3, rel=1e-3)


def test_a_decoder_without_a_gradient_is_refused(small_autoencoder):
    vae = ContinuousVAE(small_autoencoder(), [0.0], [1.0]).eval().requires_grad_(False)
    vae.autoencoder.post_quant_conv.weight.zero_()
    with pytest.raises(CodaError, match="gradient is zero"):
        decoder_metric(vae, torch.randn(8, vae.latent_channels, 4, 4))
