"""The quantizer against golden values of the published code: outputs, all codes, both losses, all gradients.

The smallest cases are in tests/data; the others need ../shared.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from coda.tokenizer import ResidualQuantizer
from coda.tokenizer.official import quantizer_from_official

SHIPPED = ["01_plain", "02_rms_norm", "03_layer_norm"]
CASES = [*SHIPPED, "04_entropy_settings", "05_mar_form", "06_flux_form", "07_nonsquare"]
OURS = {"codebooks.weight": "codebook.weight"}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.fixture(params=CASES)
def folder(request: pytest.FixtureRequest, golden_quantizers: Path) -> tuple[Path, str]:
    """Folder and name of a case."""
    if request.param in SHIPPED:
        return golden_quantizers, request.param
    return request.getfixturevalue("shared_reference") / "quantizer", request.param


def load_case(folder: Path, name: str, dtype: str) -> tuple[dict, dict[str, torch.Tensor]]:
    cases = json.loads((folder / "cases.json").read_text())["cases"]
    case = next(case for case in cases if case["name"] == name)
    return case, load_file(folder / case["files"][dtype])


def build(case: dict, tensors: dict[str, torch.Tensor]) -> ResidualQuantizer:
    settings = case["constructor"]
    parameters = {key.removeprefix("param."): t for key, t in tensors.items() if key.startswith("param.")}
    return quantizer_from_official(
        parameters,
        settings["patch_size_list"],
        beta=settings["beta"],
        entropy_temperature=settings["entropy_temperature"],
        sample_entropy_weight=settings["sample_minimization_weight"],
        batch_entropy_weight=settings["batch_maximization_weight"],
    ).to(tensors["input"])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_golden_values_of_the_published_code(folder: tuple[Path, str], dtype: str, device: torch.device) -> None:
    case, expected = load_case(*folder, dtype)
    expected = {name: tensor.to(device) for name, tensor in expected.items()}
    # In the float64 runs of the published code, its RMSNorm still computes one quantity in float32.
    tolerance = case["tolerance"].get(f"{dtype}_if_rms_variance_in_float64") or case["tolerance"][dtype]
    entropy_tolerance = max(tolerance, case["tolerance"]["float32_sample_entropy_per_level"] * (dtype == "float32"))
    quantizer = build(case, expected)
    latents = expected["input"].clone().requires_grad_()

    out = quantizer(latents)
    for level, codes in enumerate(quantizer.layout.split(out.codes)):
        assert torch.equal(codes, expected[f"idx.{level}"][:, 0]), f"codes of level {level}"
    assert torch.equal(quantizer.encode(latents), out.codes)
    for found, key in [
        (out.quantized.detach(), "f_hat"),
        (out.quantization_loss.detach(), "vq_loss"),
        (out.entropy_loss.detach(), "entropy_loss"),
        (out.quantization_losses, "vq_loss_per_level"),
        (out.batch_entropies, "avg_entropy_per_level"),
    ]:
        assert relative_error(found, expected[key]) <= tolerance, key
    assert relative_error(out.sample_entropies, expected["sample_entropy_per_level"]) <= entropy_tolerance

    total = out.quantization_loss + 0.05 * out.entropy_loss + (out.quantized * expected["probe"]).sum()
    total.backward()
    assert relative_error(total.detach(), expected["total"]) <= tolerance
    gradients = {f"grad.{key}": p.grad for key, p in quantizer.named_parameters()}
    assert relative_error(latents.grad, expected["grad_input"]) <= tolerance
    published = {key for key in expected if key.startswith("grad.")}
    for key in published:
        plain = key.removeprefix("grad.").removeprefix("attn.")
        found = gradients.pop(f"grad.{OURS.get(plain, plain)}")
        if key in case["zero_gradients"]:
            assert found.abs().max() <= case["tolerance"][f"{dtype}_zero_gradients_abs"], key
        else:
            assert relative_error(found, expected[key]) <= tolerance, key
    assert not gradients


def test_golden_logits_and_margins(folder: tuple[Path, str]) -> None:
    case, expected = load_case(*folder, "float32")
    quantizer = build(case, expected)
    levels = []
    quantizer.to_q.register_forward_hook(lambda module, args, result: levels.append(args[0]))
    with torch.no_grad():
        quantizer(expected["input"])
        for index, tokens in enumerate(levels):
            wanted = expected[f"logits.{index}"].movedim(1, -1).flatten(0, 2)
            logits = quantizer.norm_q(quantizer.to_q.forward(tokens)) * quantizer.scale @ quantizer.keys().T
            assert (logits - wanted).abs().max() <= case["tolerance"]["float32_logits_and_margins_abs"]
            best = logits.topk(2).values
            margins = (best[:, 0] - best[:, 1]).reshape(expected[f"margin.{index}"].shape)
            assert (margins - expected[f"margin.{index}"]).abs().max() <= 5e-5
    assert len(levels) == quantizer.layout.num_levels
