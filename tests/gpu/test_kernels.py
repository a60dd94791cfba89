"""The fused kernels at full size against tiles in float64; at a small size in Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coda.tokenizer import ResidualQuantizer
from coda.tokenizer.quantizer.retrieval import retrieve

FULL = [(2240, 65_536, 32, 16), (1001, 65_537, 33, 17), (1, 65_536, 32, 16), (3, 100_003, 5, 128)]


def outputs_and_gradients(function: Any, dtype: torch.dtype, device: torch.device, shape: tuple[int, ...]) -> Any:
    """Codes, and values, entropies and all gradients, from the same numbers in any type."""
    n, k, d, c = shape
    draw = torch.Generator().manual_seed(n + k)
    leaves = [torch.randn(size, generator=draw) for size in ((n, d), (k, d), (k, c))]
    leaves[0] /= d**0.5
    q, keys, values = (leaf.to(device, dtype).requires_grad_() for leaf in leaves)
    seen = torch.randn(n, c, generator=draw).to(device, dtype)
    codes, found, sample, batch = function(q, keys, values, 0.05)
    loss = (found * seen).sum() + 0.7 * sample - 1.3 * batch
    return codes, [found, sample, batch, *torch.autograd.grad(loss, (q, keys, values))]


def assert_equal_to_float64(device: torch.device, shape: tuple[int, ...]) -> None:
    from coda.tokenizer.quantizer.fused_retrieval import fused_retrieve

    codes, found = outputs_and_gradients(fused_retrieve, torch.float32, device, shape)
    exact_codes, exact = outputs_and_gradients(retrieve, torch.float64, device, shape)
    assert (codes != exact_codes).float().mean() <= 1e-3  # where two logits are equal in float32
    same = codes == exact_codes
    assert torch.equal(found[0][same], exact[0][same].float())
    for ours, theirs in zip(found[1:], exact[1:], strict=True):
        assert (ours - theirs).norm() <= 2e-3 * theirs.norm()


def test_small_shapes(kernel_device: torch.device) -> None:
    assert_equal_to_float64(kernel_device, (37, 130, 5, 17))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", FULL, ids=str)
def test_full_size(cuda: torch.device, shape: tuple[int, ...]) -> None:
    assert_equal_to_float64(cuda, shape)


@pytest.mark.gpu
def test_the_published_flux_shape_trains_in_little_memory(cuda: torch.device) -> None:
    """K 65,536, 2,240 codes per image, batch 4: under 256 MiB beside the weights; one level's logits are 1 GiB."""
    quantizer = ResidualQuantizer(16, 65_536, [1, 2, 3, 4, 6, 9, 13, 18, 24, 32], attention_dim=32, norm="rms_norm")
    quantizer, latents = quantizer.to(cuda), torch.randn(4, 16, 32, 32, device=cuda, requires_grad=True)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = quantizer(latents)
    (output.quantization_loss + 0.05 * output.entropy_loss + output.quantized.square().mean()).backward()
    assert torch.cuda.max_memory_allocated() - before < 256 * 2**20
