"""Tiled retrieval against a dense implementation of the same mathematics, by autograd in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coda.tokenizer.retrieval import best_codes, retrieve


def dense(q, k, v, temperature):
    """The published formulation: all tokens × all codes."""
    logits = q @ k.T
    p = logits.softmax(dim=1)
    codes = logits.argmax(dim=1)
    onehot = torch.nn.functional.one_hot(codes, len(k)).to(p)
    values = (onehot - p.detach() + p) @ v
    log_pi = (logits / temperature).log_softmax(dim=1)
    mean = log_pi.exp().mean(dim=0)
    return codes, values, -(log_pi.exp() * log_pi).sum(dim=1).mean(), -(mean * (mean + 1e-5).log()).sum()


def inputs(n, k, d, c, dtype=torch.float64, spread=1.0):
    generator = torch.Generator().manual_seed(n * 7919 + k)
    shapes = [(n, d), (k, d), (k, c), (n, c)]
    q, keys, v, g = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return [(q * spread).requires_grad_(), keys.requires_grad_(), v.requires_grad_()], g


def losses_and_gradients(function, leaves, g, weights, *settings):
    codes, values, sample, batch = function(*leaves, *settings)
    loss = (values * g).sum() + weights[0] * sample + weights[1] * batch
    return codes, [values, sample, batch, *torch.autograd.grad(loss, leaves)]


def assert_equal_to_dense(leaves, g, weights, temperature, tile, tolerance):
    codes, found = losses_and_gradients(retrieve, leaves, g, weights, temperature, tile)
    expected_codes, expected = losses_and_gradients(
        dense, [leaf.detach().double().requires_grad_() for leaf in leaves], g.double(), weights, temperature
    )
    assert torch.equal(codes, expected_codes)
    for ours, theirs in zip(found, expected, strict=True):
        error = (ours.detach() - theirs.detach()).abs().max()
        assert error <= tolerance * max(1.0, float(theirs.detach().abs().max()))


@settings(deadline=None, max_examples=40)
@given(
    n=st.integers(1, 40),
    k=st.integers(2, 70),
    d=st.integers(1, 9),
    c=st.integers(1, 6),
    temperature=st.sampled_from([0.01, 0.1, 1.0, 10.0]),
    weights=st.tuples(st.sampled_from([0.0, 0.7, 1.0]), st.sampled_from([0.0, -1.3, -1.0])),
    tile=st.tuples(st.integers(1, 17), st.integers(1, 23)),
)
def test_equals_dense_autograd_over_shapes_and_settings(n, k, d, c, temperature, weights, tile):
    leaves, g = inputs(n, k, d, c)
    assert_equal_to_dense(leaves, g, weights, temperature, tile, 1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_equals_dense_autograd_at_4096_codes_and_1000_tokens(dtype, tolerance):
    leaves, g = inputs(1000, 4096, 16, 8, dtype, spread=0.25)
    assert_equal_to_dense(leaves, g, (1.0, -1.0), 0.1, None, tolerance)


def test_ties_go_to_the_first_code_whatever_the_tile():
    q = torch.randint(-9, 9, (50, 4)).float()  # whole numbers: equal logits are equal to the bit in every tile
    k = torch.randint(-9, 9, (6, 4)).float().repeat(5, 1)  # every key five times
    for tile in [(50, 30), (7, 6), (16, 4), (1, 1)]:
        assert int(best_codes(q, k, tile)[0].max()) < 6, tile


def test_tile_size_changes_nothing():
    leaves, g = inputs(100, 333, 8, 5)
    whole = losses_and_gradients(retrieve, leaves, g, (1.0, -1.0), 0.05, (100, 333))
    for tile in [(1, 333), (100, 1), (13, 64), (64, 50)]:
        codes, found = losses_and_gradients(retrieve, leaves, g, (1.0, -1.0), 0.05, tile)
        assert torch.equal(codes, whole[0])
        for ours, theirs in zip(found, whole[1], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_extreme_temperature_stays_finite():
    leaves, g = inputs(64, 128, 8, 4, torch.float32, spread=100.0)
    _, found = losses_and_gradients(retrieve, leaves, g, (1.0, -1.0), 1e-4)
    assert all(bool(tensor.isfinite().all()) for tensor in found)


def test_the_same_call_gives_the_same_bits():
    leaves, g = inputs(300, 700, 8, 4, torch.float32)
    first = losses_and_gradients(retrieve, leaves, g, (1.0, -1.0), 0.01)
    second = losses_and_gradients(retrieve, leaves, g, (1.0, -1.0), 0.01)
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))
