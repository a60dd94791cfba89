"""Time of other generators of one width and depth, on the same codes: a training step, and sampling.

They are those of `compare_peers` that learn codes, with random weights. All of them train and sample as they do there;
flattened ones see the codes of all levels as one sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from coda.generator.presets import resolve_preset
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.layout import CodeLayout
from coda.tokenizer.training.optimization import OptimizerWithEMA

from ..peers.peer import Peer, PeerSetup
from ..peers.training import make_peer
from ..reports.report import Cell, Table
from ..settings import PeersSettings
from .measure import measure
from .quantizer import QuantizerShape

_CLASSES = 1000
_STEPS_PER_LEVEL = 4


def time_peers(
    names: Sequence[str],
    presets: Sequence[str],
    shape: QuantizerShape,
    batch_size: int,
    repeats: int,
    seed: int,
    device: torch.device,
) -> list[Table]:
    """One table per preset, with a row per generator; in bfloat16 on CUDA, in float32 elsewhere.

    Args:
        names: Peers of `compare_peers` that learn codes; without any there is no table.
        presets: Names of `coda.generator.presets`: width, depth and heads.
        shape: Codes that they generate: sides, K, C.
        batch_size: Images of a training step, and images sampled at once.
        repeats: Repetitions.
        seed: Seed for weights, codes and samples.
        device: Where to run.
    """
    tables: list[Table] = []
    if not names:
        return tables
    with progress("Timing peers", total=len(presets) * len(names), unit="generators") as bar:
        for preset in presets:
            rows: list[Sequence[Cell]] = []
            for name in names:
                peer = make_peer(name, _setup(preset, shape, batch_size, seed)).to(device)
                rows.append(_row(peer, batch_size, repeats, seed, device))
                bar.advance(preset=preset)
            columns = (
                "generator", "parameters", "training step, seconds", "images/s", "peak MiB",
                "sampling steps", "sampling, seconds", "samples/s",
            )  # fmt: skip
            tables.append(Table(f"Peers of the size of {preset}, {shape.name}, {batch_size} images", columns, rows))
    return tables


def _setup(preset: str, shape: QuantizerShape, batch_size: int, seed: int) -> PeerSetup:
    chosen, layout = resolve_preset(preset), CodeLayout(shape.sides, shape.codebook_size)
    generator = torch.Generator().manual_seed(seed)
    settings = PeersSettings(
        width=chosen["hidden_size"],
        depth=chosen["depth"],
        heads=chosen["num_heads"],
        batch_size=batch_size,
        sampling_steps=_STEPS_PER_LEVEL * layout.num_levels,
        seed=seed,
    )
    values = torch.randn(shape.codebook_size, shape.latent_channels, generator=generator)
    return PeerSetup(layout, values, _CLASSES, size=(0, 0), settings=settings)  # peers on codes have no image size


def _row(peer: Peer, batch_size: int, repeats: int, seed: int, device: torch.device) -> list[Cell]:
    training = measure(_training_step(peer, batch_size, seed, device), device, repeats)
    peer.eval()
    classes, seeds = [0] * batch_size, range(seed, seed + batch_size)
    with _autocast(device):
        sampling = measure(lambda: peer.sample(classes, seeds), device, repeats)
    return [
        peer.title, peer.num_parameters, training.seconds, batch_size / training.seconds, training.peak_mib,
        peer.sampling_steps, sampling.seconds, batch_size / sampling.seconds,
    ]  # fmt: skip


def _training_step(peer: Peer, batch_size: int, seed: int, device: torch.device) -> Callable[[], object]:
    """A training step as `compare_peers` does it."""
    layout, generator = peer.setup.layout, torch.Generator().manual_seed(seed)
    codes = torch.randint(layout.codebook_size, (batch_size, layout.num_tokens), generator=generator).to(device)
    labels = torch.randint(_CLASSES, (batch_size,), generator=generator).to(device)
    optimizer = OptimizerWithEMA(peer.train(), (0.9, 0.96), 0.9995, weight_decay=0.03, fused=True)

    def step() -> None:
        with _autocast(device):
            loss = peer.loss(codes, labels, 0)
        loss.backward()
        optimizer.step(1e-4)

    return step


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
