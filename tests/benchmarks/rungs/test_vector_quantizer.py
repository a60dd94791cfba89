from __future__ import annotations

import pytest
import torch

from coda.benchmarks.rungs.confidence import top_confidences
from coda.benchmarks.rungs.vector_quantizer import VectorQuantizer
from coda.tokenizer import CodeLayout, ResidualQuantizer
from coda.tokenizer.quantizer.kmeans import initialize_nearest_neighbor

LAYOUT = CodeLayout([1, 2, 4], 16)


@pytest.fixture
def latents() -> torch.Tensor:
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def codebook() -> torch.Tensor:
    return torch.randn(16, 3, generator=torch.Generator().manual_seed(1))


def test_codes_are_those_of_attention_that_retrieves_the_nearest(latents: torch.Tensor, codebook: torch.Tensor) -> None:
    attention = ResidualQuantizer(3, 16, [1, 2, 4], attention_dim=8, norm="rms_norm")
    initialize_nearest_neighbor(attention, codebook)
    quantizer = VectorQuantizer(codebook, LAYOUT)
    codes = quantizer.encode(latents)
    assert torch.equal(codes, attention.encode(latents))
    torch.testing.assert_close(quantizer.decode(codes), attention.decode(codes))
    out = quantizer.eval()(latents)
    assert torch.equal(out.codes, codes)
    torch.testing.assert_close(out.quantized, quantizer.decode(codes))


@pytest.mark.parametrize("decay", [0.9, None], ids=["moving average", "gradient"])
def test_the_codebook_learns(latents: torch.Tensor, codebook: torch.Tensor, decay: float | None) -> None:
    quantizer = VectorQuantizer(codebook, LAYOUT, decay=decay)
    optimizer = torch.optim.Adam([quantizer.codebook.requires_grad_()], lr=0.02) if decay is None else None
    losses = []
    for _ in range(100):
        loss = quantizer(latents).quantization_loss
        if optimizer is not None:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_gradients_pass_straight_through(latents: torch.Tensor, codebook: torch.Tensor) -> None:
    given = latents.requires_grad_()
    VectorQuantizer(codebook, LAYOUT)(given).quantized.square().sum().backward()
    assert given.grad is not None and float(given.grad.abs().max()) > 0


def test_confidences_fall_and_are_probabilities(latents: torch.Tensor, codebook: torch.Tensor) -> None:
    found = top_confidences(VectorQuantizer(codebook * 100, LAYOUT), 100 * latents)
    assert len(found) == 16 and found == sorted(found, reverse=True)
    assert sum(found) == pytest.approx(1)  # all 16 codes
    assert found[0] > 0.9  # far apart: certain
