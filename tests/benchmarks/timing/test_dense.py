"""The quantizer gives the outputs and gradients of the benchmark's dense one: the ratios compare equal work."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coda.benchmarks.timing.dense import dense_forward
from coda.tokenizer import ResidualQuantizer

SIDES = st.sampled_from([(1,), (1, 2), (1, 2, 4), (2, (3, 4)), ((1, 2), (3, 5)), (1, 2, 3, 4, 6)])


def outputs_and_gradients(quantizer: ResidualQuantizer, latents: torch.Tensor, forward: Any) -> dict[str, torch.Tensor]:
    quantizer.zero_grad()
    inputs = latents.clone().requires_grad_()
    found = forward(inputs)
    (found.quantization_loss + 0.7 * found.entropy_loss + found.quantized.square().mean()).backward()
    assert inputs.grad is not None
    values = {"latents": inputs.grad, "quantized": found.quantized, "codes": found.codes}
    values |= {name: getattr(found, name) for name in ("quantization_loss", "entropy_loss")}
    return values | {name: p.grad for name, p in quantizer.named_parameters() if p.grad is not None}


def assert_equal_to_dense(quantizer: ResidualQuantizer, latents: torch.Tensor, tolerance: float) -> None:
    ours = outputs_and_gradients(quantizer, latents, quantizer)
    exact = quantizer.double()
    dense = outputs_and_gradients(exact, latents.double(), lambda inputs: dense_forward(exact, inputs))
    assert torch.equal(ours.pop("codes"), dense.pop("codes"))
    assert ours.keys() == dense.keys()
    for name, expected in dense.items():
        error = (ours[name].detach() - expected.detach()).abs().max()
        assert error <= tolerance * max(1.0, float(expected.detach().abs().max())), name


@settings(deadline=None, max_examples=40)
@given(
    sides=SIDES,
    batch=st.integers(1, 3),
    channels=st.integers(1, 6),
    codebook_size=st.integers(2, 50),
    attention_dim=st.sampled_from([None, 1, 5, 12]),
    codebook_dim=st.sampled_from([None, 3]),
    norm=st.sampled_from([None, "layer_norm", "rms_norm"]),
    temperature=st.sampled_from([0.01, 0.3, 5.0]),
    weights=st.tuples(st.sampled_from([0.0, 1.0, 2.5]), st.sampled_from([0.0, 1.0, 0.3])),
    beta=st.sampled_from([0.0, 0.05, 1.0]),
)
def test_equal_over_shapes_norms_temperatures_and_weights(
    sides, batch, channels, codebook_size, attention_dim, codebook_dim, norm, temperature, weights, beta
):
    quantizer = ResidualQuantizer(
        channels,
        codebook_size,
        sides,
        attention_dim=attention_dim,
        codebook_dim=codebook_dim,
        norm=norm,
        beta=beta,
        entropy_temperature=temperature,
        sample_entropy_weight=weights[0],
        batch_entropy_weight=weights[1],
    ).double()
    with torch.no_grad():
        for parameter in quantizer.parameters():  # the norms' weights start at one, which hides where they are left out
            parameter.add_(0.3 * torch.randn_like(parameter))
    latents = torch.randn(batch, channels, *quantizer.layout.grid, dtype=torch.float64)
    assert_equal_to_dense(quantizer, latents, 1e-9)
    assert torch.equal(quantizer.encode(latents), dense_forward(quantizer, latents).codes)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize("norm", [None, "layer_norm", "rms_norm"])
def test_equal_at_4096_codes_and_1000_tokens(norm: str | None, dtype: torch.dtype, tolerance: float) -> None:
    quantizer = ResidualQuantizer(16, 4096, (1, 2, 4, 8, 16), attention_dim=32, norm=norm).to(dtype)  # 341 codes each
    assert_equal_to_dense(quantizer, torch.randn(3, 16, 16, 16).to(dtype), tolerance)
