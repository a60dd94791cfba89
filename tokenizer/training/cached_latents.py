"""The phases of `adapt` in which the encoder does not change: its latents are computed once and kept.

First the quantizer alone learns to give the latents back, on its own losses, with no VAE at work. Then quantizer and
decoder learn to give the images back. Both are optional, and cost much less per image than training the encoder too.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from ..foundation.atomic_io import save_tensors
from ..foundation.launcher import rank_and_world_size
from ..foundation.progress import progress
from ..foundation.seeding import EndlessOrder, derived_seed, step_generator
from ..images import ImageSource, to_unit
from ..images.loading import ImageDataset, Request, read_batches
from ..quantizer.residual_quantizer import ResidualQuantizer
from ..settings import AdaptSettings, RunOptions
from .losses import ReconstructionLoss
from .monitoring import Monitor
from .optimization import check_finite, learning_rate, synchronize_gradients
from .run_directory import Checkpoint, RunDirectory
from .trainable_tokenizer import ForwardOutput, TrainableTokenizer

_LARGEST_CACHE = 1 << 30  # bytes of latents


def train_on_cached_latents(
    tokenizer: TrainableTokenizer,
    source: ImageSource,
    directory: RunDirectory,
    checkpoint: Checkpoint | None,
    checkpoint_every: int,
    settings: AdaptSettings,
    monitor: Monitor,
    run: RunOptions,
    accelerator: Accelerator,
) -> None:
    """Do what is left of `settings.quantizer_steps` and `settings.decoder_steps`, if anything.

    Each phase has its own optimizer, learning rates and average of the weights, from which the next phase starts.
    Steps are counted over all phases.
    """
    done = 0 if checkpoint is None else checkpoint.step
    phases = {"quantizer": settings.quantizer_steps, "decoder": settings.decoder_steps}
    if done >= sum(phases.values()):
        return
    cache = LatentCache(tokenizer, source, directory, settings, run, accelerator)
    before = 0
    for name, steps in phases.items():
        if steps and done < before + steps:
            resumed = checkpoint if checkpoint is not None and done >= before else None
            _train_phase(
                name,
                before,
                steps,
                tokenizer,
                cache,
                directory,
                resumed,
                checkpoint_every,
                settings,
                monitor,
                accelerator,
            )
        before += steps
    tokenizer.train_only("all")


def _train_phase(
    name: str,
    before: int,
    steps: int,
    tokenizer: TrainableTokenizer,
    cache: LatentCache,
    directory: RunDirectory,
    checkpoint: Checkpoint | None,
    checkpoint_every: int,
    settings: AdaptSettings,
    monitor: Monitor,
    accelerator: Accelerator,
) -> None:
    """One phase of `steps` steps after `before` of others, from its newest checkpoint to its averaged weights."""
    phase: _QuantizerPhase | _DecoderPhase
    if name == "quantizer":
        phase = _QuantizerPhase(tokenizer.quantizer).to(accelerator.device)
    else:
        phase = _DecoderPhase(tokenizer, settings).to(accelerator.device)
    tokenizer.train_only(name)
    model = accelerator.prepare(phase)
    optimizer = tokenizer.optimizer(settings)
    parts = settings.accumulation if name == "decoder" else 1
    start = 0
    if checkpoint is not None:
        start = checkpoint.step - before
        optimizer.load_state_tensors("tokenizer", checkpoint.tensors, updates=start)

    def save(done: int) -> None:
        tensors = optimizer.state_tensors("tokenizer") | monitor.state_tensors()
        directory.save(before + done, tensors, tokenizer.normalization)

    def reconstruct(images: torch.Tensor) -> torch.Tensor:
        with optimizer.averaged(), accelerator.autocast():
            return tokenizer.reconstruct(images)

    if checkpoint is None:
        save(0)
    if before == 0:
        monitor.begin(reconstruct, tokenizer.quantizer)
    batches = cache.batches(name, start, steps, with_images=name == "decoder")
    with progress(f"Training the {name}", total=steps, completed=start) as bar:
        for step, (latents, pixels) in enumerate(batches, start):
            latents, images = latents.to(accelerator.device), to_unit(pixels.to(accelerator.device))
            lr = learning_rate(step, steps, settings.lr, settings.warmup)
            generator = step_generator(settings.seed, before + step, "perturbed codes")
            for part in range(parts):
                synchronize_gradients(model, part == parts - 1)
                some, their_images = latents.chunk(parts)[part], images.chunk(parts)[part]
                output = model(some, generator)
                monitor.count(output.codes)
                reconstruction, figures = phase.reconstruction_loss(output, some, their_images)
                loss = reconstruction + output.quantization_loss + settings.entropy_weight * output.entropy_loss
                accelerator.backward(loss / parts)
            gradient = optimizer.step(lr)

            done = step + 1
            bar.advance()
            if monitor.is_due(before + done) or done == steps:
                shown = {
                    **check_finite(before + done, loss=loss, gradient=gradient),
                    **figures(),
                    "quantization": float(output.quantization_loss.detach()),
                    "entropy": float(output.entropy_loss.detach()),
                    "codes": output.codes.unique().numel(),
                    **monitor.look(before + done, reconstruct, tokenizer.quantizer),
                }
                bar.advance(0, loss=shown["loss"], codes=shown["codes"], **monitor.shown)
                monitor.log(before + done, **shown, lr=lr)
            if done % checkpoint_every == 0 and done < steps:
                save(done)
    optimizer.use_average()


class _QuantizerPhase(nn.Module):
    """The quantizer alone; its reconstructions are latents."""

    def __init__(self, quantizer: ResidualQuantizer) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, latents: torch.Tensor, _: torch.Generator) -> ForwardOutput:
        """Quantize latents."""
        out = self.quantizer(latents)
        return ForwardOutput(out.quantized, out.codes, out.quantization_loss, out.entropy_loss)

    def reconstruction_loss(
        self, output: ForwardOutput, latents: torch.Tensor, _: torch.Tensor
    ) -> tuple[torch.Tensor, Callable[[], dict[str, float]]]:
        """Zero, since the quantizer's own losses are enough, and figures for the log."""
        error = (output.reconstructions - latents).detach().square().mean()
        return torch.zeros_like(error), lambda: {"latent_error": float(error)}


class _DecoderPhase(nn.Module):
    """Quantizer and decoder, on the losses of the joint training."""

    def __init__(self, tokenizer: TrainableTokenizer, settings: AdaptSettings) -> None:
        super().__init__()
        self.tokenizer, self._loss = tokenizer, ReconstructionLoss(settings)

    def forward(self, latents: torch.Tensor, generator: torch.Generator) -> ForwardOutput:
        """Quantize and decode latents."""
        return self.tokenizer.from_latents(latents, generator)

    def reconstruction_loss(
        self, output: ForwardOutput, _: torch.Tensor, images: torch.Tensor
    ) -> tuple[torch.Tensor, Callable[[], dict[str, float]]]:
        """Loss of the images, and figures for the log."""
        found = self._loss(output.reconstructions, images)
        return found.total, found.figures


class LatentCache:
    """Latents of randomly cropped and mirrored images, encoded once and kept in a file of the run directory.

    Args:
        tokenizer: Its VAE encodes.
        source: Images.
        directory: Where the file lies until the run is complete.
        settings: With the size known.
        run: Workers and strictness.
        accelerator: The first process encodes for all.

    Attributes:
        latents: (N, C, h, w).
    """

    def __init__(
        self,
        tokenizer: TrainableTokenizer,
        source: ImageSource,
        directory: RunDirectory,
        settings: AdaptSettings,
        run: RunOptions,
        accelerator: Accelerator,
    ) -> None:
        self._tokenizer, self._source, self._settings, self._run = tokenizer, source, settings, run
        path = directory.scratch_file("latents.safetensors")
        with accelerator.main_process_first():
            if not path.exists():
                save_tensors(path, {"latents": self._encode()})
        self.latents = load_file(path)["latents"]

    def batches(
        self, stream: str, start: int, steps: int, with_images: bool
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This process's latents, and pixels as uint8, of the steps `start` … `steps` − 1.

        Args:
            stream: Seed of the order, with that of the settings.
            start: Steps done before.
            steps: Steps in total.
            with_images: Read the images too; otherwise the pixels are empty.
        """
        (rank, count), size = rank_and_world_size(), self._settings.batch_size

        def chosen() -> Iterator[list[int]]:
            order = EndlessOrder(len(self.latents), derived_seed(stream, self._settings.seed))
            for step in range(start, steps):
                yield order.items(range(step * size + rank, (step + 1) * size, count)).tolist()

        if with_images:
            for places, pixels in zip(chosen(), self._pixels(chosen()), strict=True):
                yield self.latents[places], pixels
        else:
            yield from ((self.latents[places], torch.empty(0, dtype=torch.uint8)) for places in chosen())

    @torch.no_grad()
    def _encode(self) -> torch.Tensor:
        """Latents of as many images as asked for, as fit, and as will be seen."""
        settings, vae = self._settings, self._tokenizer.vae
        fit = _LARGEST_CACHE // (4 * vae.latent_channels * math.prod(self._tokenizer.quantizer.layout.grid))
        seen = settings.batch_size * max(settings.quantizer_steps, settings.decoder_steps)
        total = min(settings.cached_images or min(len(self._source), max(1, fit)), seen)
        starts = range(0, total, settings.batch_size)
        parts = ([*range(start, min(start + settings.batch_size, total))] for start in starts)
        latents = []
        with progress("Encoding images", total=total, unit="images") as bar:
            for pixels in self._pixels(parts):
                latents.append(vae.encode(to_unit(pixels.to(vae.device))).float().cpu())
                bar.advance(len(pixels))
        return torch.cat(latents)

    def _pixels(self, places: Iterator[list[int]]) -> Iterator[torch.Tensor]:
        """The images at these places of the cache; each place has one crop and may be mirrored."""
        settings = self._settings
        dataset = ImageDataset(self._source, settings.size, crop="random", flip=True, seed=settings.seed)
        order = EndlessOrder(len(self._source), settings.seed)

        def requests() -> Iterator[Request]:
            for batch in places:
                yield [(int(order.items(range(place, place + 1))), place) for place in batch]

        for batch in read_batches(dataset, requests(), self._run.workers, self._run.strict, replace=True):
            yield batch.pixels
