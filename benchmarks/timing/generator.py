"""Time of a generator with random weights: a training step, and sampling.

Shares of the machine: a training step's operations per second over the rate of a large matrix product in the same type
(model FLOP utilization, PaLM, arXiv 2204.02311, Appendix B); and sampling's time over that of its bare forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from coda.generator import MaskGitScheduler, MaskGitTransformer
from coda.generator.masking import draw_training
from coda.generator.objective import MaskedCodeObjective
from coda.generator.presets import resolve_preset
from coda.generator.settings import MaskGitSettings
from coda.generator.train_maskgit import new_transformer
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.layout import CodeLayout
from coda.tokenizer.training.optimization import OptimizerWithEMA

from ..reports.report import Cell, Figure, Table
from .measure import matmul_rate, measure
from .quantizer import QuantizerShape

_CLASSES = 1000
_BACKWARD = 3  # forward and backward, relative to forward


@dataclass(frozen=True)
class SamplingShape:
    """How a generator is sampled: images at once, steps of all levels together, guidance scale."""

    batch_size: int
    steps: int
    guidance: float


def time_generators(
    presets: Sequence[str],
    shape: QuantizerShape,
    samplings: Sequence[SamplingShape],
    batch_size: int,
    repeats: int,
    seed: int,
    device: torch.device,
) -> tuple[list[Figure], list[Table]]:
    """Time training and sampling; in bfloat16 on CUDA, in float32 elsewhere, as the commands do.

    Args:
        presets: Names of `coda.generator.presets`.
        shape: Codes that they generate: sides, K, C.
        samplings: How each is sampled.
        batch_size: Images of a training step.
        repeats: Repetitions.
        seed: Seed for weights, codes and samples.
        device: Where to run.
    """
    if not presets:
        return [], []
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rate = matmul_rate(device, dtype, repeats)
    name = str(dtype).removeprefix("torch.")
    figures = [Figure(f"matrix product for generators, {name}", rate / 1e9, "GFLOP/s")]
    training: list[Sequence[Cell]] = []
    sampling: list[Sequence[Cell]] = []
    with progress("Timing generators", total=len(presets), unit="presets") as bar:
        for preset in presets:
            transformer = _make_transformer(preset, shape, seed).to(device)
            step, operations = _training_step(transformer, batch_size, seed, dtype)
            taken = measure(step, device, repeats)
            share = 100 * operations / taken.seconds / rate
            figures.append(Figure(f"{preset}: training, share of the matrix product's rate", share, "%", note="MFU"))
            training.append([preset, batch_size, taken.seconds, batch_size / taken.seconds, share, taken.peak_mib])
            transformer.to(dtype).eval()
            for chosen in samplings:
                sampled, forwards = (
                    measure(work, device, repeats) for work in _sampling(transformer, chosen, seed, device)
                )
                over = sampled.seconds / forwards.seconds
                cells = chosen.batch_size, chosen.steps, chosen.guidance
                sampling.append([preset, *cells, sampled.seconds, chosen.batch_size / sampled.seconds, over])
            bar.advance(preset=preset)
    columns = ("preset", "images", "seconds", "images/s", "% of the matrix product", "peak MiB")
    tables = [Table(f"Training steps, {shape.name}", columns, training)]
    if sampling:
        heads = ("preset", "images", "steps", "guidance", "seconds", "images/s", "× bare forwards")
        tables.append(Table(f"Sampling, {shape.name}", heads, sampling))
    return figures, tables


def sampling_shapes(batch_sizes: Sequence[int], levels: int) -> list[SamplingShape]:
    """One and four steps per level, with and without guidance, in every batch size."""
    return [SamplingShape(*each) for each in product(batch_sizes, (levels, 4 * levels), (1.0, 3.0))]


def _make_transformer(preset: str, shape: QuantizerShape, seed: int) -> MaskGitTransformer:
    sizes = {name: resolve_preset(preset)[name] for name in ("hidden_size", "depth", "num_heads")}
    values = torch.randn(shape.codebook_size, shape.latent_channels, generator=torch.Generator().manual_seed(seed))
    layout = CodeLayout(shape.sides, shape.codebook_size)
    return new_transformer(layout, values, _CLASSES, MaskGitSettings(**sizes, seed=seed))


def _training_step(
    transformer: MaskGitTransformer, batch_size: int, seed: int, dtype: torch.dtype
) -> tuple[Callable[[], object], float]:
    """A training step as `train_maskgit` does it, and its floating-point operations."""
    layout, device = transformer.layout, transformer.device
    objective = MaskedCodeObjective(transformer).train()
    optimizer = OptimizerWithEMA(transformer, (0.9, 0.96), 0.9995, weight_decay=0.03, fused=True)
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(layout.codebook_size, (batch_size, layout.num_tokens), generator=generator).to(device)
    labels = torch.randint(_CLASSES, (batch_size,), generator=generator).to(device)
    draw = draw_training(layout, batch_size, generator, corruption=0.2, class_dropout=0.1).to(device)

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = objective(codes, labels, draw).loss
        loss.backward()
        optimizer.step(1e-4)

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        prefixes = [transformer.value_table.new_zeros(batch_size, transformer.value_table.shape[1], *layout.grid)]
        transformer(codes, prefixes * layout.num_levels, labels)
    head = 2 * len(draw.cells) * layout.codebook_size * transformer.code_embedding.embedding_dim
    return step, _BACKWARD * (counter.get_total_flops() + head)


def _sampling(
    transformer: MaskGitTransformer, shape: SamplingShape, seed: int, device: torch.device
) -> list[Callable[[], object]]:
    """Sampling, and the forward passes in it alone."""
    layout, table = transformer.layout, transformer.value_table
    scheduler = MaskGitScheduler(num_inference_steps=shape.steps, step_share="equal", guidance_scale=shape.guidance)
    predict = transformer.predictor([0] * shape.batch_size)
    calls: list[Any] = []

    def remembered(*inputs: Any) -> Any:
        calls.append(inputs)
        return predict(*inputs)

    def sample(predict: Any = predict) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(seed + i) for i in range(shape.batch_size)]
        return scheduler.sample(predict, layout, table, generators)

    sample(remembered)

    @torch.no_grad()
    def forwards() -> None:
        for inputs in calls:
            for _ in predict(*inputs):
                pass

    return [torch.no_grad()(partial(sample)), forwards]
