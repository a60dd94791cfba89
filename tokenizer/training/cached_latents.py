"""The phases of `adapt` in which the encoder does not change: its latents are computed once and kept.

First the quantizer alone learns to give the latents back, on its own losses, with no VAE at work. Then quantizer and
decoder learn to give the images back. Both are optional, and cost much less per image than training the encoder too.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from safetensors.torch import load_file
from torch import nn

from ..foundation.atomic_io import save_tensors
from ..foundation.distributed import mean_over_processes
from ..foundation.launcher import rank_and_world_size
from ..foundation.progress import progress
from ..foundation.seeding import EndlessOrder, derived_seed, step_generator
from ..images import to_unit
from ..images.loading import ImageDataset, Request, read_batches
from ..quantizer.residual_quantizer import ResidualQuantizer
from ..settings import AdaptSettings
from .losses import ReconstructionLoss
from .optimization import check_finite, learning_rate, synchronize_gradients
from .phase import Phase, Training
from .trainable_tokenizer import ForwardOutput, TrainableTokenizer

_LARGEST_CACHE = 1 << 30  # bytes of latents


def train_on_cached_latents(training: Training) -> None:
    """Do what is left of `quantizer_steps` and `decoder_steps`, if anything.

    Each phase has its own optimizer, learning rates and average of the weights, from which the next phase starts.
    Steps are counted over all phases.
    """
    settings, checkpoint = training.settings, training.checkpoint
    done = 0 if checkpoint is None else checkpoint.step
    phases = {"quantizer": settings.quantizer_steps, "decoder": settings.decoder_steps}
    if done >= sum(phases.values()):
        return
    cache = LatentCache(training)
    before = 0
    for part, steps in phases.items():
        if steps and done < before + steps:
            _train_phase(training, cache, part, before, steps)
        before += steps


def _train_phase(training: Training, cache: LatentCache, part: str, before: int, steps: int) -> None:
    """One phase of `steps` steps after `before` of others, from its newest checkpoint to its averaged weights."""
    settings, tokenizer, monitor = training.settings, training.tokenizer, training.monitor
    device = training.accelerator.device
    module = _QuantizerPhase(tokenizer.quantizer) if part == "quantizer" else _DecoderPhase(tokenizer, settings)
    phase = Phase(training, part, before, steps, module.to(device))
    pieces = settings.accumulation if part == "decoder" else 1
    batches = cache.batches(part, phase.start, steps, with_images=part == "decoder")
    with progress(f"Training the {part}", total=steps, completed=phase.start) as bar:
        for step, (latents, pixels) in enumerate(batches, phase.start):
            latents, images = latents.to(device), to_unit(pixels.to(device))
            lr = learning_rate(step, steps, settings.lr, settings.warmup)
            generator = step_generator(settings.seed, before + step, "perturbed codes")
            for piece in range(pieces):
                synchronize_gradients(phase.model, piece == pieces - 1)
                some, their_images = latents.chunk(pieces)[piece], images.chunk(pieces)[piece]
                output = phase.model(some, generator)
                monitor.count(output.codes)
                reconstruction, figures = module.reconstruction_loss(output, some, their_images)
                loss = reconstruction + output.quantization_loss + settings.entropy_weight * output.entropy_loss
                training.accelerator.backward(loss / pieces)
            gradient = phase.optimizer.step(lr)

            done = step + 1
            bar.advance()
            if monitor.is_due(before + done) or done == steps:
                shown = {
                    **check_finite(before + done, loss=loss, gradient=gradient),
                    **figures(),
                    **output.figures(),
                    **monitor.look(before + done, phase.reconstruct, tokenizer.quantizer),
                }
                bar.advance(0, loss=shown["loss"], codes=shown["codes"], **monitor.shown)
                monitor.log(before + done, **shown, lr=lr, skipped=monitor.skipped())
            phase.checkpoint(done)
    phase.optimizer.use_average()


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
        return torch.zeros_like(error), lambda: {"latent_error": float(mean_over_processes(error))}


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

    Of several processes the first encodes for all.

    Attributes:
        latents: (N, C, h, w).
    """

    def __init__(self, training: Training) -> None:
        self._tokenizer, self._source = training.tokenizer, training.source
        self._settings, self._run, self._monitor = training.settings, training.run, training.monitor
        path = training.directory.scratch_file("latents.safetensors")
        with training.accelerator.main_process_first():
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
            self._monitor.count_skipped(batch.skipped)
            yield batch.pixels
