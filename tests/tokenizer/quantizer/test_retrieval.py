"""Tiled retrieval against a dense implementation of the same mathematics, by autograd in float64."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coda.tokenizer import ResidualQuantizer
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.quantizer import retrieval
from coda.tokenizer.quantizer.retrieval import argmax_codes, retrieval_backend, retrieve

ALWAYS, NEVER = 1, 10**9  # values of _FEW: whether near pairs are kept


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


def inputs(n, k, d, c, dtype=torch.float64, spread=1.0, device="cpu"):
    generator = torch.Generator().manual_seed(n * 7919 + k)
    shapes = [(n, d), (k, d), (k, c), (n, c)]
    q, keys, v, g = (torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype) for shape in shapes)
    return [(q * spread).requires_grad_(), keys.requires_grad_(), v.requires_grad_()], g


def losses_and_gradients(function, leaves, g, weights, *settings):
    codes, values, sample, batch = function(*leaves, *settings)
    loss = (values * g).sum() + weights[0] * sample + weights[1] * batch
    return codes, [values, sample, batch, *torch.autograd.grad(loss, leaves)]


def assert_equal_to_dense(leaves, g, weights, temperature, tile, tolerance, function=retrieve):
    codes, found = losses_and_gradients(function, leaves, g, weights, temperature, tile)
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
    few=st.sampled_from([ALWAYS, NEVER]),
)
def test_equals_dense_autograd_over_shapes_and_settings(n, k, d, c, temperature, weights, tile, few):
    leaves, g = inputs(n, k, d, c)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_FEW", few)
        assert_equal_to_dense(leaves, g, weights, temperature, tile, 1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
@pytest.mark.parametrize(("temperature", "few"), [(0.1, NEVER), (0.01, ALWAYS), (0.01, NEVER)])
def test_equals_dense_autograd_at_4096_codes_and_1000_tokens(monkeypatch, dtype, tolerance, temperature, few):
    monkeypatch.setattr(retrieval, "_FEW", few)
    leaves, g = inputs(1000, 4096, 16, 8, dtype, spread=0.25)
    assert_equal_to_dense(leaves, g, (1.0, -1.0), temperature, None, tolerance)


def test_near_pairs_are_kept_only_if_they_are_few():
    q, k = torch.randn(300, 16) / 4, torch.randn(4096, 16)
    _, tops = retrieval._search(q, k, (128, 512))
    peak = tops.amax(dim=0)[:, None]
    near = retrieval._near(q, k, peak, tops, 0.001, (128, 512))
    x = (q @ k.T - peak) / 0.001
    assert near is not None
    assert len(near.x) == int((x > retrieval._floor(k)).sum())
    torch.testing.assert_close(near.x, x[near.tokens, near.codes], rtol=0, atol=0.01)
    assert retrieval._near(q, k, peak, tops, 1.0, (128, 512)) is None


def test_ties_go_to_the_first_code_whatever_the_tile():
    q = torch.randint(-9, 9, (50, 4)).float()  # whole numbers: equal logits are equal to the bit in every tile
    k = torch.randint(-9, 9, (6, 4)).float().repeat(5, 1)  # every key five times
    for tile in [(50, 30), (7, 6), (16, 4), (1, 1)]:
        assert int(argmax_codes(q, k, tile)[0].max()) < 6, tile


@pytest.mark.parametrize("temperature", [1e-4, 1e-12])
def test_extreme_temperature_stays_finite(monkeypatch, temperature):
    monkeypatch.setattr(retrieval, "_FEW", ALWAYS)
    leaves, g = inputs(64, 128, 8, 4, torch.float32, spread=100.0)
    _, found = losses_and_gradients(retrieve, leaves, g, (1.0, -1.0), temperature)
    assert all(bool(tensor.isfinite().all()) for tensor in found)


@pytest.fixture(scope="module")
def fused(kernel_device):
    """The fused kernels."""
    from coda.tokenizer.quantizer import fused_retrieval

    return fused_retrieval


SMALL = (16, 32)  # tokens and codes of a block, for many blocks in small tensors


@pytest.mark.parametrize(
    ("n", "k", "d", "c"),
    [
        (37, 70, 3, 5),  # no multiples of a block
        (1, 100, 16, 16),  # one token
        (64, 64, 16, 16),  # all multiples of a block
        (16, 1, 4, 4),  # one code
        (5, 2500, 8, 17),  # codes split among programs
    ],
)
@pytest.mark.parametrize("temperature", [0.01, 1.0])
@pytest.mark.gpu
def test_fused_equals_dense_autograd(fused, kernel_device, n, k, d, c, temperature):
    leaves, g = inputs(n, k, d, c, torch.float32, device=kernel_device)
    settings = (temperature, fused.Blocks(*SMALL), 1e-4, fused.fused_retrieve)
    assert_equal_to_dense(leaves, g, (0.7, -1.3), *settings)


@pytest.mark.gpu
def test_fused_on_bfloat16_accumulates_in_float32(fused, kernel_device):
    leaves, g = inputs(20, 150, 16, 8, torch.bfloat16, device=kernel_device)
    codes, found = losses_and_gradients(fused.fused_retrieve, leaves, g, (1.0, -1.0), 0.1, fused.Blocks(*SMALL))
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    expected_codes, expected = losses_and_gradients(dense, exact, g.double(), (1.0, -1.0), 0.1)
    assert torch.equal(codes, expected_codes)
    for ours, theirs in zip(found[1:3], expected[1:3], strict=True):  # the entropies leave the kernel in float32
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found[3:], expected[3:], strict=True):  # and gradients are rounded once, at the end
        assert (ours.double() - theirs).abs().max() <= 2**-8 * theirs.abs().max()


@pytest.mark.gpu
def test_fused_ties_go_to_the_first_code_within_blocks_across_them_and_across_splits(fused, kernel_device):
    q = torch.randint(-9, 9, (50, 4)).float().to(kernel_device)
    for count, copies in [(6, 5), (32, 4), (700, 4)]:
        k = torch.randint(-9, 9, (count, 4)).float().repeat(copies, 1).to(kernel_device)
        codes, peaks = fused.fused_argmax_codes(q, k, fused.Blocks(*SMALL))
        expected = argmax_codes(q, k, (50, len(k)))
        assert torch.equal(codes, expected[0]) and torch.equal(peaks, expected[1])


@pytest.mark.gpu
@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_fused_at_extreme_temperatures_stays_finite(fused, kernel_device, temperature):
    leaves, g = inputs(33, 128, 8, 4, torch.float32, 100.0, kernel_device)
    block = fused.Blocks(*SMALL)
    _, found = losses_and_gradients(fused.fused_retrieve, leaves, g, (1.0, -1.0), temperature, block)
    assert all(bool(tensor.isfinite().all()) for tensor in found)
    assert found[1].item() == pytest.approx(0.0 if temperature < 1 else math.log(128), abs=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("kernels", [False, True])
def test_the_same_call_gives_the_same_bits(fused, kernel_device, kernels):
    leaves, g = inputs(33, 2100, 8, 4, torch.float32, device=kernel_device if kernels else "cpu")
    function = fused.fused_retrieve if kernels else retrieve
    first, second = (losses_and_gradients(function, leaves, g, (1.0, -1.0), 0.01) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first[1], second[1], strict=True))


COMPILE_ALL = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from coda.tokenizer.quantizer import fused_retrieval

SMALL, WIDE = dict(d=16, d_pad=16, c=16, c_pad=16), dict(d=60, d_pad=64, c=32, c_pad=32)
for kernel in ("_search", "_mean_weights", "_expected", "_grad_queries", "_grad_keys"):
    for inputs, precision, widths in (("fp32", "ieee", SMALL), ("bf16", "tf32", SMALL), ("fp32", "ieee", WIDE)):
        blocks = dict(tokens=64, width=64, weigh=True) | widths
        function, types, constants = getattr(fused_retrieval, kernel), {}, {}
        kinds = dict.fromkeys(("queries", "keys", "values"), "*" + inputs) | {"codes": "*i64", "inverse_tau": "fp32"}
        kinds |= dict.fromkeys(("n", "k", "split_codes"), "i32")
        for place, name in enumerate(function.arg_names):
            fixed = (blocks | {"precision": precision}).get(name)
            types[name] = kinds.get(name, "*fp32") if fixed is None else "constexpr"
            if fixed is not None:
                constants[(place,)] = fixed
        compiled = compile(ASTSource(function, types, constants), target=GPUTarget("cuda", 90, 32))
        most = fused_retrieval.shared_memory(widths["d"], widths["c"])
        print(kernel, inputs, widths["d"], "cubin" in compiled.asm, compiled.metadata.shared, most)
"""


def test_fused_kernels_compile_without_a_gpu(fused, tmp_path):
    """Checks what the interpreter does not: types, layouts and the shared memory of a block."""
    script = tmp_path / "compile_all.py"
    script.write_text(COMPILE_ALL)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path / "cache")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 15 and all(cubin == "True" for *_, cubin, _, _ in lines)
    assert all(int(shared) <= int(most) for *_, shared, most in lines)  # that larger widths go to tiles is known before
    assert all(int(shared) < 48 * 1024 for *_, d, _, shared, _ in lines if d == "16")  # as every GPU of a decade has


def test_kernels_that_need_more_shared_memory_than_the_device_has_are_not_chosen(fused, monkeypatch):
    consumer = SimpleNamespace(shared_memory_per_block=48 << 10, shared_memory_per_block_optin=99 << 10)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: consumer)
    monkeypatch.delenv("CODA_RETRIEVAL", raising=False)
    cuda = torch.device("cuda")
    assert retrieval_backend(cuda, torch.float32, 64, 32) == "fused"
    assert retrieval_backend(cuda, torch.float32, 128, 64) == "tiled"


def test_the_setting_names_the_backend(fused, monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv("CODA_RETRIEVAL", raising=False)
    assert retrieval_backend(cpu, torch.float32) == "tiled"
    assert retrieval_backend(cuda, torch.float32) == "fused"
    assert retrieval_backend(cuda, torch.float64) == "tiled"  # the kernels accumulate in float32
    assert retrieval_backend(cuda, torch.float32, 256) == "tiled"
    monkeypatch.setenv("CODA_RETRIEVAL", "tiled")
    assert retrieval_backend(cuda, torch.float32) == "tiled"
    monkeypatch.setenv("CODA_RETRIEVAL", "fused")
    with pytest.raises(CodaError, match=r"CODA_RETRIEVAL is fused, which needs .*; here are cuda, float64, 16 and 16"):
        retrieval_backend(cuda, torch.float64)
    monkeypatch.setenv("CODA_RETRIEVAL", "fast")
    with pytest.raises(CodaError, match="CODA_RETRIEVAL is 'fast'; it is auto, tiled or fused"):
        retrieval_backend(cpu, torch.float32)


@pytest.mark.gpu
def test_a_quantizer_with_fused_kernels_finds_the_same(fused, kernel_device, monkeypatch):
    quantizer = ResidualQuantizer(8, 200, [1, 2, 4], norm="rms_norm").to(kernel_device)
    latents = torch.randn(2, 8, 4, 4, device=kernel_device)
    found = {}
    for backend in ("tiled", "fused"):
        monkeypatch.setenv("CODA_RETRIEVAL", backend)
        quantizer.zero_grad()
        output = quantizer(latents)
        (output.quantized.square().mean() + output.quantization_loss + output.entropy_loss).backward()
        gradients = [parameter.grad.clone() for parameter in quantizer.parameters()]
        found[backend] = [output.codes, quantizer.encode(latents), output.entropy_loss.detach(), *gradients]
    for tiled, kernels in zip(found["tiled"], found["fused"], strict=True):
        torch.testing.assert_close(kernels, tiled, rtol=1e-4, atol=1e-5)
