"""Training and sampling of one peer: the same loop, clock and optimizer for all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from coda.tokenizer.code_cache import CodeCache, ShuffledBatches
from coda.tokenizer.foundation.atomic_io import write_json
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.foundation.seeding import derived_seed
from coda.tokenizer.images import to_pil, to_uint8, to_unit, training_batches
from coda.tokenizer.images.grid import labelled_grid
from coda.tokenizer.settings import RunOptions
from coda.tokenizer.training.optimization import LOG_EVERY, OptimizerWithEMA, check_finite, learning_rate
from coda.tokenizer.training.run_directory import RunDirectory

from ..features.distances import FeatureSet, Statistics, frechet_distance
from ..features.extractors import FeatureExtractor
from ..image_sets.image_set import SourceSet
from ..image_sets.known_images import KnownImages
from ..settings import PEERS, PeersSettings
from .amused import AmusedPeer
from .flow_unet import FlowUNetPeer
from .maskgit import FlattenedPeer, LevelPeer
from .muse import MusePeer
from .peer import Peer, PeerSetup

GRID_IMAGES = 16  # of each peer, in its picture
SAMPLES = "samples.png"
_FIGURES = "figures.json"
_CHECKPOINT_SECONDS = 120.0  # of training
_ENDLESS = 1 << 40  # steps
_PARTS = 10_000  # of the training, for the learning rate
_WARMUP_PARTS = _PARTS // 20

_CODE_PEERS: dict[str, Callable[[PeerSetup], Peer]] = {
    "ours": LevelPeer,
    "flattened": FlattenedPeer,
    "amused": AmusedPeer,
    "muse": MusePeer,
}

Batches = Iterator[tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class PeerFigures:
    """Figures of one peer.

    Attributes:
        title: Its name in the table.
        parameters: Weights that are trained.
        steps: Optimizer steps.
        images_seen: Images of all steps.
        training_seconds: Time of all steps, without loading data, checkpoints and measurements.
        sampling_steps: Steps that a sample takes.
        sampling_seconds: Per image, from classes to pixels: codes are decoded, too.
        distance: Fréchet distance of its samples to the reference.
        loss: Training loss, mean of the last few logged steps. Each peer has its own.
        held_out_loss: Bound in nats per code on held-out codes; None for a peer on pixels, or if none are held out.
    """

    title: str
    parameters: int
    steps: int
    images_seen: int
    training_seconds: float
    sampling_steps: int
    sampling_seconds: float
    distance: float
    loss: float
    held_out_loss: float | None

    @property
    def seconds_per_step(self) -> float:
        """Training time of one step."""
        return self.training_seconds / self.steps


@dataclass(frozen=True)
class Wanted:
    """Samples and measurements that are the same for all peers.

    Attributes:
        labels: Class of each sample, -1 for none.
        shown: Each class in words, for the picture.
        reference: Statistics of the reference's features.
        network: Feature extractor.
        tokenizer: Decodes codes to images.
    """

    labels: Sequence[int]
    shown: dict[int, str]
    reference: Statistics
    network: FeatureExtractor
    tokenizer: Any


def make_peer(name: str, setup: PeerSetup) -> Peer:
    """A peer of `PEERS` with weights that the seed draws; the U-Net gets about as many as ours."""
    assert name in PEERS
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("peer", setup.settings.seed))
        if name == "unet":
            return FlowUNetPeer(setup, LevelPeer(setup).num_parameters)
        return _CODE_PEERS[name](setup)


def code_batches(
    cache: CodeCache, samples: torch.Tensor, settings: PeersSettings, start: int, device: torch.device
) -> Batches:
    """Codes (B, T) and labels (B,) of the steps from `start` on, of these samples of the cache."""
    batches = ShuffledBatches(cache, settings.batch_size, settings.seed, samples=samples)
    for step in range(start, _ENDLESS):
        codes, labels = batches[step]
        yield codes.to(device), labels.to(device)


def image_batches_of(
    images: SourceSet, flip: bool, settings: PeersSettings, run: RunOptions, start: int, device: torch.device
) -> Batches:
    """Images (B, 3, H, W) in [-1, 1] and class indices (B,), -1 for none, of the steps from `start` on.

    Images are cropped at their center, as those of a code cache.
    """
    assert images.size is not None
    for batch in training_batches(
        images.source, images.size, settings.batch_size, settings.seed, start, _ENDLESS, "center", flip,
        workers=run.workers, strict=run.strict,
    ):  # fmt: skip
        labels = [-1] * len(batch)
        if isinstance(images, KnownImages):
            labels = images.class_indices(batch.labels.tolist())
        yield to_unit(batch.pixels.to(device)), torch.tensor(labels, device=device)


def train_and_measure(
    peer: Peer,
    batches: Callable[[int], Batches],
    cache: CodeCache,
    held_out: torch.Tensor,
    wanted: Wanted,
    directory: RunDirectory,
    accelerator: Accelerator,
) -> None:
    """Train a peer from its newest checkpoint to the end, sample it, and finish its directory.

    Args:
        peer: The peer, with its first weights.
        batches: From the number of the first step to the batches.
        cache: The codes.
        held_out: Samples of the cache to measure the loss on.
        wanted: What is sampled and how it is measured.
        directory: The peer's own.
        accelerator: Device and precision.

    Raises:
        CodaError: If the loss is NaN or infinite.
    """
    settings, device = peer.setup.settings, accelerator.device
    peer.to(device).train()
    steps, seconds = _train(peer, batches, directory, accelerator)
    peer.eval()
    with accelerator.autocast():
        bound = peer.held_out_loss(cache, held_out)
    distance, each, picture = _sample(peer, wanted, accelerator)
    last = [line["loss"] for line in directory.read_log()[-LOG_EVERY:]]
    figures = PeerFigures(
        title=peer.title,
        parameters=peer.num_parameters,
        steps=steps,
        images_seen=steps * settings.batch_size,
        training_seconds=seconds,
        sampling_steps=peer.sampling_steps,
        sampling_seconds=each,
        distance=distance,
        loss=sum(last) / len(last),
        held_out_loss=bound,
    )

    def write(folder: Path) -> None:
        write_json(folder / _FIGURES, asdict(figures))
        picture.save(folder / SAMPLES)

    directory.finish(write)


def read_figures(folder: Path) -> PeerFigures:
    """The figures of a finished peer."""
    return PeerFigures(**json.loads((folder / _FIGURES).read_text()))


def _train(
    peer: Peer, batches: Callable[[int], Batches], directory: RunDirectory, accelerator: Accelerator
) -> tuple[int, float]:
    """Train until the time is over or the steps are done: steps and seconds. Leaves the averaged weights."""
    settings, device = peer.setup.settings, accelerator.device
    optimizer = OptimizerWithEMA(
        peer, (0.9, 0.96), settings.ema_decay,
        weight_decay=peer.setup.generator_settings.weight_decay, fused=device.type in ("cpu", "cuda"),
    )  # fmt: skip
    done, seconds = 0, 0.0
    if (checkpoint := directory.latest()) is not None:
        done, seconds = checkpoint.step, checkpoint.state["seconds"]
        optimizer.load_state_tensors("peer", checkpoint.tensors, updates=done)
    directory.forget_log_after(done)
    saved, source = seconds, batches(done)

    def part_done() -> float:
        return done / settings.steps if settings.steps else seconds / (60 * settings.minutes)

    with progress(f"Training {peer.title}", total=settings.steps, completed=done) as bar:
        while part_done() < 1:
            batch, labels = next(source)
            began = _now(device)
            with accelerator.autocast():
                loss = peer.loss(batch, labels, done)
            loss.backward()
            lr = learning_rate(int(_PARTS * part_done()), _PARTS, settings.lr, _WARMUP_PARTS, floor=0.01)
            gradient = optimizer.step(lr)
            seconds += _now(device) - began
            done += 1
            bar.advance()
            if done % LOG_EVERY == 0 or part_done() >= 1 or done == 1:
                figures = check_finite(done, loss=loss, gradient=gradient)
                bar.advance(0, loss=figures["loss"], done=f"{100 * min(1.0, part_done()):.0f} %")
                directory.log(done, **figures, lr=lr, seconds=seconds)
            if part_done() >= 1 or seconds - saved >= _CHECKPOINT_SECONDS:
                directory.save(done, optimizer.state_tensors("peer"), {"seconds": seconds})
                saved = seconds
    optimizer.use_average()
    return done, seconds


def _sample(peer: Peer, wanted: Wanted, accelerator: Accelerator) -> tuple[float, float, Any]:
    """Fréchet distance of the samples, seconds per sample, and a picture of the first ones."""
    settings, device = peer.setup.settings, accelerator.device
    seeds = range(settings.seed, settings.seed + len(wanted.labels))
    features, seconds = FeatureSet(), 0.0
    shown: list[torch.Tensor] = []
    with progress(f"Sampling {peer.title}", total=len(seeds), unit="images") as bar:
        for start in range(0, len(seeds), settings.batch_size):
            part = slice(start, start + settings.batch_size)
            began = _now(device)
            with accelerator.autocast():
                samples = peer.sample(wanted.labels[part], seeds[part])
            if peer.learns == "codes":
                with torch.no_grad():
                    samples = wanted.tokenizer.decode(samples)
            pixels = to_uint8(samples)
            seconds += _now(device) - began
            pixels = pixels.cpu()
            features.append(wanted.network(pixels))
            shown += list(pixels[: max(0, GRID_IMAGES - len(shown))])
            bar.advance(len(pixels))
    words = [wanted.shown.get(label, "") for label in wanted.labels[: len(shown)]]
    picture = labelled_grid([to_pil(image) for image in shown], words)
    distance = frechet_distance(Statistics.of(features.pooled), wanted.reference)
    return distance, seconds / len(seeds), picture


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
