"""The host does not wait for the device within a training step, and once in a sampling step."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from coda.generator import MaskGitScheduler, MaskGitTransformer
from coda.generator.masking import draw_training
from coda.generator.objective import MaskedCodeObjective
from coda.tokenizer import ResidualQuantizer
from coda.tokenizer.training.optimization import OptimizerWithEMA

Waits = Callable[[Callable[[], object], torch.device], int]


@pytest.fixture
def transformer(device: torch.device) -> MaskGitTransformer:
    return MaskGitTransformer([1, 2, 4], 64, 4, num_classes=4, hidden_size=32, depth=2, num_heads=2).to(device)


def test_training_a_generator(transformer: MaskGitTransformer, device: torch.device, waits: Waits) -> None:
    objective = MaskedCodeObjective(transformer).train()
    optimizer = OptimizerWithEMA(transformer, (0.9, 0.96), 0.999, fused=True)
    codes, labels = torch.randint(64, (8, 21)).to(device), torch.randint(4, (8,)).to(device)
    draw = draw_training(transformer.layout, 8, torch.Generator(), corruption=0.5, class_dropout=0.2).to(device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = objective(codes, labels, draw).loss
        loss.backward()
        optimizer.step(1e-3)

    assert waits(step, device) == 0


@pytest.mark.gpu
def test_training_a_quantizer(cuda: torch.device, waits: Waits) -> None:
    """On CUDA alone: the tiles that a CPU uses depend on the data, and latents are checked there."""
    quantizer = ResidualQuantizer(8, 2048, [1, 2, 4], norm="rms_norm").to(cuda).train()
    latents = torch.randn(4, 8, 4, 4, device=cuda, requires_grad=True)

    def step() -> None:
        output = quantizer(latents)
        (output.quantized.square().mean() + output.quantization_loss + output.entropy_loss).backward()

    assert waits(step, cuda) == 0


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling(transformer: MaskGitTransformer, device: torch.device, waits: Waits, guidance: float) -> None:
    predict, sampler = transformer.predictor([0, 1]), MaskGitScheduler(step_share="equal", guidance_scale=guidance)

    def sample(steps: int) -> Any:
        generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
        layout, table = transformer.layout, transformer.value_table
        return sampler.sample(predict, layout, table, generators, num_inference_steps=[1, 1, steps])

    few, many = (waits(partial(sample, steps), device) for steps in (3, 11))
    assert many - few <= 8
