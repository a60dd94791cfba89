"""What users rely on in the quantizer: round trips, partial decoding, independence of the batch, bounded memory."""

from __future__ import annotations

import pytest
import torch

from coda.tokenizer import CodaError, ResidualQuantizer

SIDES = [1, 2, 4, 8]


@pytest.fixture
def quantizer() -> ResidualQuantizer:
    return ResidualQuantizer(6, 64, SIDES, attention_dim=12, norm="rms_norm").eval()


def test_decoding_the_codes_gives_what_forward_gave(quantizer):
    latents = torch.randn(3, 6, 8, 8)
    out = quantizer(latents)
    assert torch.equal(out.codes, quantizer.encode(latents))
    torch.testing.assert_close(quantizer.decode(out.codes), out.quantized.detach(), rtol=0, atol=1e-5)


def test_decoding_by_level_adds_one_level_at_a_time(quantizer):
    codes = quantizer.encode(torch.randn(2, 6, 8, 8))
    assert torch.equal(quantizer.decode(codes, levels=0), torch.zeros(2, 6, 8, 8))
    altered = codes.clone()
    altered[:, quantizer.layout.offsets[2] :] = 0  # what later levels say cannot matter
    assert torch.equal(quantizer.decode(codes, levels=2), quantizer.decode(altered, levels=2))
    assert torch.equal(quantizer.decode(codes, levels=4), quantizer.decode(codes))
    with pytest.raises(CodaError, match="levels is 5"):
        quantizer.decode(codes, levels=5)


def test_batch_size_changes_no_code(quantizer):
    latents = torch.randn(5, 6, 8, 8)
    alone = torch.cat([quantizer.encode(latent[None]) for latent in latents])
    assert torch.equal(quantizer.encode(latents), alone)


def test_non_square_latents_round_trip():
    quantizer = ResidualQuantizer(4, 16, [(1, 1), (2, 3), (4, 6)])
    latents = torch.randn(2, 4, 4, 6)
    codes = quantizer.encode(latents)
    assert codes.shape == (2, 1 + 6 + 24)
    assert quantizer.decode(codes).shape == latents.shape


def test_a_wider_codebook_than_the_latent():
    quantizer = ResidualQuantizer(4, 16, [1, 2], attention_dim=8, codebook_dim=10)
    quantizer(torch.randn(2, 4, 2, 2)).quantized.sum().backward()
    assert quantizer.codebook.weight.grad.abs().sum() > 0
    assert quantizer.value_table().shape == (16, 4)


def test_what_cannot_be_codes_or_latents_is_refused(quantizer):
    with pytest.raises(CodaError, match=r"expected \(B, 6, h, w\)"):
        quantizer.encode(torch.randn(1, 5, 8, 8))
    with pytest.raises(CodaError, match="codes reach from 0 to 64"):
        quantizer.decode(torch.arange(85)[None].clamp(max=64))
    with pytest.raises(CodaError, match="rms_norm"):
        ResidualQuantizer(4, 16, [1, 2], norm="batch_norm")


def test_save_and_load_give_the_same_codes(quantizer, tmp_path):
    quantizer.save_pretrained(tmp_path)
    loaded = ResidualQuantizer.from_pretrained(tmp_path)
    latents = torch.randn(2, 6, 8, 8)
    assert torch.equal(loaded.encode(latents), quantizer.encode(latents))


PREPARE = """
from coda.tokenizer import ResidualQuantizer

def step(size, sides, batch):
    quantizer = ResidualQuantizer(16, size, sides, attention_dim=32, norm="rms_norm")
    latents = torch.randn(batch, 16, sides[-1], sides[-1], requires_grad=True)
    out = quantizer(latents)
    (out.quantization_loss + 0.05 * out.entropy_loss + out.quantized.square().mean()).backward()

step(256, [1, 2], 1)
"""


def test_the_published_flux_shape_trains_in_little_memory(mebibytes):
    """K = 65,536 at 2,240 codes a picture, batch of 4: under 0.6 GB, where a dense step takes some 16 GB."""
    assert mebibytes(PREPARE, "step(65536, [1, 2, 3, 4, 6, 9, 13, 18, 24, 32], 4)") < 600
