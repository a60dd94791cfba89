"""Training of one rung. All rungs share the images, their order, the losses and the schedule; see `train_rung`.

A rung whose parameters get no gradient from the decoder (VQ on an unchanged VAE) skips the decoder: the result is the
same.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch

from coda.tokenizer import CodaTokenizer
from coda.tokenizer.foundation.atomic_io import write_json
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.foundation.seeding import derived_seed, step_generator
from coda.tokenizer.images import to_unit, training_batches
from coda.tokenizer.layout import CodeLayout
from coda.tokenizer.quantizer.kmeans import initialize_nearest_neighbor
from coda.tokenizer.quantizer.perturbation import perturb_codes
from coda.tokenizer.quantizer.residual_quantizer import ResidualQuantizer
from coda.tokenizer.settings import AdaptSettings
from coda.tokenizer.training.losses import ReconstructionLoss
from coda.tokenizer.training.optimization import OptimizerWithEMA, check_finite, learning_rate
from coda.tokenizer.training.run_directory import RunDirectory
from coda.tokenizer.vae.continuous_vae import ContinuousVAE
from coda.tokenizer.vae.lora import add_lora, merge_lora

from .confidence import top_confidences
from .figures import Figures, TestImages
from .rung import Rung
from .starts import Starts
from .vector_quantizer import VectorQuantizer

_CHECKPOINT_EVERY = 100  # steps


class RungModel(torch.nn.Module):
    """VAE and quantizer of a rung, and the loss of a training step.

    Args:
        vae: The continuous VAE, with LoRA or frozen.
        quantizer: Its quantizer.
        settings: Weights of the losses.
        perturbed: Share of the codes that the decoder sees replaced by near ones.

    Attributes:
        adapts_vae: Whether the VAE has LoRA, so that latents change.
    """

    def __init__(
        self,
        vae: ContinuousVAE,
        quantizer: ResidualQuantizer | VectorQuantizer,
        settings: AdaptSettings,
        perturbed: float = 0.0,
    ) -> None:
        super().__init__()
        self.vae, self.quantizer, self._settings, self._perturbed = vae, quantizer, settings, perturbed
        self.adapts_vae = any(p.requires_grad for p in vae.parameters())
        needs_decoder = self.adapts_vae or isinstance(quantizer, ResidualQuantizer)
        self._reconstruction = ReconstructionLoss(settings).to(vae.device) if needs_decoder else None

    def forward(self, images: torch.Tensor, latents: torch.Tensor | None, generator: torch.Generator) -> torch.Tensor:
        """Loss of images (B, 3, H, W) in [-1, 1], a scalar; latents are computed if they are not known."""
        if latents is None:
            latents = self.vae.encode(images)
        out = self.quantizer(latents)
        loss = out.quantization_loss + self._settings.entropy_weight * out.entropy_loss
        if self._reconstruction is not None:
            quantized = out.quantized
            if self._perturbed and isinstance(self.quantizer, ResidualQuantizer):
                codes = perturb_codes(self.quantizer, out.codes, self._perturbed, generator)
                quantized = quantized + (self.quantizer.decode(codes) - quantized).detach()
            loss = loss + self._reconstruction(self.vae.decode(quantized), images).total
        return loss

    def measure(self, test: TestImages, perturbed: bool) -> Figures:
        """Figures of the model as it is."""
        self.quantizer.eval()
        found = test.measure_codes(self.vae, self.quantizer, perturbed)
        confidences = top_confidences(self.quantizer, test.latents(self.vae)[0])
        self.quantizer.train()
        return Figures(**vars(found) | {"confidences": confidences})


def train_rung(
    rung: Rung, seed: int, starts: Starts, folder: Path, measurements: int, test: TestImages
) -> list[Figures]:
    """Train a rung and measure it on the way. Rerun the same call to resume.

    A rung without k-means also trains on as many images as k-means sees, so that all rungs see equally many.

    Args:
        rung: What is trained.
        seed: Seed of start, order of the images and LoRA.
        starts: The VAE, the images, the settings, and codebooks for rungs that start from data.
        folder: Where checkpoints and figures are kept.
        measurements: Measurements on the way: after one half, one quarter, … of the steps.
        test: The images to measure on.

    Returns:
        Figures, in the order of the images seen; the last are those of the finished rung.
    """
    settings = starts.settings
    steps, seen_before = settings.steps, starts.images
    if rung.start != "data":
        steps, seen_before = rung.budget * (steps + -(-starts.images // settings.batch_size)), 0
    stops = sorted({steps >> k for k in range(measurements + 1)} | ({0} if rung.start == "data" else set()))
    record = {"rung": asdict(rung), "seed": seed, "steps": steps, "stops": stops}
    directory = RunDirectory(folder, "ablation rung benchmark", record)
    files = [folder / f"figures-{stop:08d}.json" for stop in stops]
    if not directory.complete:
        model, seconds = _initialize(rung, seed, starts)
        training = _Training(model, directory, starts, seed, steps, seconds)
        for stop, file in zip(stops, files, strict=True):
            training.run_until(stop)
            if not file.exists():
                with training.averaged_weights():
                    found = model.measure(test, perturbed=stop == steps)
                seen = seen_before + stop * settings.batch_size
                write_json(file, asdict(found) | {"images_seen": seen, "seconds": training.seconds})
        directory.finish(training.write)
    return [Figures(**json.loads(file.read_text())) for file in files]


def _initialize(rung: Rung, seed: int, starts: Starts) -> tuple[RungModel, float]:
    """The model before training, and the seconds that its start took."""
    settings, seconds, codebook, metric = starts.settings, 0.0, None, None
    layout, vae = CodeLayout(rung.sides, settings.codebook_size), starts.vae
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("rung", seed))
        if rung.start == "scratch":
            vae = ContinuousVAE(vae.config.architecture, [0.0], [1.0], vae.config.image_range).to(starts.device)
            codebook = starts.drawn_codebook(vae, layout.codebook_size, seed)
        elif rung.start == "data":
            codebook, metric, seconds = starts.codebook(layout, seed, rung.metric)
        quantizer = _make_quantizer(rung, layout, vae.latent_channels, codebook, metric, settings)
    if rung.lora_rank:
        vae = copy.deepcopy(vae)
        add_lora(vae, rung.lora_rank, seed=derived_seed("lora", seed))
    return RungModel(vae, quantizer, settings, rung.perturbed).to(starts.device), seconds


def _make_quantizer(
    rung: Rung,
    layout: CodeLayout,
    channels: int,
    codebook: torch.Tensor | None,
    metric: torch.Tensor | None,
    settings: AdaptSettings,
) -> ResidualQuantizer | VectorQuantizer:
    """The quantizer, which retrieves the nearest code of the codebook if there is one, and is random otherwise."""
    if rung.quantizer == "attention":
        width = settings.attention_dim or 2 * channels
        sides = [list(side) for side in layout.sides]
        attention = ResidualQuantizer(channels, layout.codebook_size, sides, width, settings.norm)
        if codebook is not None:
            initialize_nearest_neighbor(attention, codebook.cpu(), metric=metric)
        return attention
    values = torch.randn(layout.codebook_size, channels) if codebook is None else codebook
    return VectorQuantizer(values, layout, decay=None if rung.quantizer == "vq gradient" else 0.99)


class _Training:
    """The training of one rung, which stops where it is measured.

    Attributes:
        seconds: Spent on the start and on training so far, without measuring.
    """

    def __init__(
        self, model: RungModel, directory: RunDirectory, starts: Starts, seed: int, steps: int, seconds: float
    ) -> None:
        self._model, self._directory, self._starts = model, directory, starts
        self._seed, self._steps = seed, steps
        self.done, self.seconds = 0, seconds
        self._optimizer: OptimizerWithEMA | None = None
        if any(p.requires_grad for p in model.parameters()):
            self._optimizer = OptimizerWithEMA(model, betas=(0.5, 0.9), ema_decay=starts.settings.ema_decay)
        if checkpoint := directory.latest():
            self.done, self.seconds = checkpoint.step, checkpoint.state["seconds"]
            for name, tensor in self._averages().items():
                tensor.copy_(checkpoint.tensors[name])
            if self._optimizer is not None:
                self._optimizer.load_state_tensors("rung", checkpoint.tensors, self.done)

    def run_until(self, stop: int) -> None:
        """Train until `stop` steps are done, and leave a checkpoint."""
        if self.done >= stop:
            return
        settings, began = self._starts.settings, time.perf_counter()
        assert settings.size is not None
        batches = training_batches(
            self._starts.source, settings.size, settings.batch_size, self._seed, self.done, stop,
            workers=self._starts.run.workers, strict=self._starts.run.strict,
        )  # fmt: skip
        with progress("Training", total=self._steps, completed=self.done) as bar:
            for step, batch in enumerate(batches, self.done):
                images, latents = to_unit(batch.pixels.to(self._starts.device)), None
                if not self._model.adapts_vae:
                    latents, saved = self._starts.encode_step(images, self._seed, step)
                    self.seconds += saved
                loss = self._model(images, latents, step_generator(self._seed, step, "perturbed codes"))
                if self._optimizer is not None:
                    loss.backward()
                    self._optimizer.step(learning_rate(step, self._steps, settings.lr, settings.warmup))
                bar.advance()
                if (step + 1) % _CHECKPOINT_EVERY == 0 or step + 1 == stop:
                    bar.advance(0, **check_finite(step + 1, loss=loss))
                    now = time.perf_counter()
                    self.done, self.seconds, began = step + 1, self.seconds + now - began, now
                    self._save()

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Replace the weights by their average for a while."""
        if self._optimizer is None:
            yield
            return
        kept = {name: tensor.detach().clone() for name, tensor in self._optimizer.state_tensors("rung").items()}
        self._optimizer.use_average()
        yield
        self._optimizer.load_state_tensors("rung", kept, self.done)

    def write(self, folder: Path) -> None:
        """The finished tokenizer, if it is one of CODA's."""
        if self._optimizer is not None:
            self._optimizer.use_average()
        model = self._model.cpu()
        if isinstance(model.quantizer, ResidualQuantizer):
            CodaTokenizer(merge_lora(model.vae), model.quantizer).save_pretrained(folder / "tokenizer")
        self._starts.vae.to(self._starts.device)

    def _averages(self) -> dict[str, torch.Tensor]:
        """State of the quantizer that no gradient trains: the moving averages of VQ."""
        state = self._model.quantizer.state_dict(keep_vars=True)
        return {f"quantizer.{name}": tensor for name, tensor in state.items() if not tensor.requires_grad}

    def _save(self) -> None:
        tensors = self._averages()
        if self._optimizer is not None:
            tensors |= self._optimizer.state_tensors("rung")
        self._directory.save(self.done, tensors, {"seconds": self.seconds})
