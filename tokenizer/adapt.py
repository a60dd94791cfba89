"""Adapt a continuous VAE into a discrete tokenizer: the training of the paper (Sections 3.2 to 3.4).

The codebook comes first: residual k-means on the VAE's latents, and a quantizer set to retrieve the nearest code. Then
quantizer and LoRA are trained together, through one module that encodes, quantizes and decodes, on L1 + L2 + perceptual
distance + the quantizer's own two losses and, if asked for, a discriminator's.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w); codes (B, T).
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import get_peft_model_state_dict

from .foundation.atomic_io import save_tensors
from .foundation.errors import CodaError
from .foundation.launcher import check_batch_size, rank_and_world_size
from .foundation.progress import log_info, progress
from .foundation.seeding import derived_seed
from .images import ImageSource, decode_image, open_images, to_unit, training_batches
from .images.source import BrokenImage
from .layout import CodeLayout, default_sides
from .quantizer.residual_quantizer import ResidualQuantizer
from .tokenizer import CodaTokenizer
from .training.discriminator import Adversary
from .training.losses import reconstruction_loss
from .training.optimization import TrainedParameters, finite, learning_rate, start_accelerator
from .training.perceptual import LiteFeatures
from .training.run_directory import RunDirectory
from .training.trainable_tokenizer import ThroughTheCodes, initialize_from_data
from .vae.continuous_vae import ContinuousVAE, load_vae
from .vae.lora import add_lora, merge_lora

_LARGEST_DEFAULT_SIZE = 256
_VECTORS_PER_CODE = 128  # what the images for k-means give, unless their number is asked for
_LOG_EVERY = 10  # steps
_LARGEST_GRADIENT = 1.0


def adapt(
    vae: str | Path | ContinuousVAE,
    data: str | Path | ImageSource,
    out: str | Path = "runs/tokenizer",
    size: int | tuple[int, int] | None = None,
    sides: Sequence[int | Sequence[int]] | None = None,
    codebook_size: int = 4096,
    attention_dim: int | None = None,
    norm: str = "rms_norm",
    lora_rank: int = 32,
    steps: int = 500,
    batch_size: int = 16,
    lr: float = 5e-4,
    warmup: int = 50,
    kmeans_images: int | None = None,
    l1_weight: float = 1.0,
    l2_weight: float = 1.0,
    perceptual_weight: float = 0.1,
    entropy_weight: float = 0.05,
    adversarial_weight: float = 0.0,
    adversarial_start: int = 0,
    ema_decay: float = 0.995,
    workers: int = 0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
    strict: bool = False,
    checkpoint_every: int = 100,
) -> Path:
    """Make a tokenizer of a VAE; the same call again goes on where an interrupted one stopped.

    Args:
        vae: What `load_vae` takes, or a loaded VAE (which is left as it is).
        data: Images, as `open_images` takes them.
        out: Directory of the tokenizer.
        size: Pixels, one number or (height, width); if None, the short side of the first image, 256 at most.
        sides: Grids of the levels, the last being the latent's own; `default_sides` if None.
        codebook_size: K.
        attention_dim: Width of the retrieval's attention; twice the latent's channels if None.
        norm: Of queries and keys, "rms_norm" or "layer_norm".
        lora_rank: Of the VAE's adaptation; 0 leaves the VAE as it is.
        steps: Steps of the optimizer; 0 keeps the start from k-means.
        batch_size: Images per step, of all processes together.
        lr: Highest learning rate (AdamW, betas 0.5 and 0.9 as published); linear warm-up, cosine down to 0.
        warmup: Steps of the warm-up.
        kmeans_images: Images for the codebook's start; if None, as many as give 128 vectors per code.
        l1_weight: Weight of the mean absolute error.
        l2_weight: Weight of the mean squared error.
        perceptual_weight: Weight of the distance in EfficientNet-Lite0's feature maps.
        entropy_weight: Weight of the quantizer's entropy loss.
        adversarial_weight: Weight of a patch discriminator's loss, times the adaptive weight; 0 trains without one.
        adversarial_start: First step at which there is a discriminator.
        ema_decay: Of the moving average of what is trained, which is what is kept.
        workers: Processes that load images.
        seed: Of every random choice.
        device: "auto", "cpu", "mps", "cuda" or "cuda:N".
        dtype: "auto", "float32" or "bfloat16" (mixed precision; the quantizer stays in float32).
        overwrite: Start anew over what `out` holds.
        strict: Stop at the first image that cannot be read, instead of drawing another.
        checkpoint_every: Steps between checkpoints.

    Returns:
        `out`, which `CodaTokenizer.from_pretrained` reads. Beside the tokenizer, `lora/` keeps the adapter by itself.

    Raises:
        CodaError: The arguments, the VAE, the images or `out` are not as they should be.
    """
    accelerator = start_accelerator(device, dtype)
    check_batch_size(batch_size)
    source = open_images(data)
    loaded = load_vae(vae) if isinstance(vae, str | Path) else copy.deepcopy(vae)
    loaded = loaded.float().eval().requires_grad_(False)
    height, width = _size(size, source, loaded.factor)
    grid = (height // loaded.factor, width // loaded.factor)
    layout = CodeLayout(default_sides(*grid) if sides is None else sides, codebook_size)
    if layout.grid != grid:
        raise CodaError(f"the last side is {layout.grid}, the latent's grid at {height}x{width} pixels is {grid}")
    settings = _Settings(
        vae=_digest(loaded),
        data=source.fingerprint,
        size=(height, width),
        layout=layout.to_json(),
        attention_dim=2 * loaded.latent_channels if attention_dim is None else attention_dim,
        norm=norm,
        lora_rank=lora_rank,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup=warmup,
        kmeans_images=-(-_VECTORS_PER_CODE * codebook_size // layout.num_tokens)
        if kmeans_images is None
        else kmeans_images,
        l1_weight=l1_weight,
        l2_weight=l2_weight,
        perceptual_weight=perceptual_weight,
        entropy_weight=entropy_weight,
        adversarial_weight=adversarial_weight,
        adversarial_start=adversarial_start,
        ema_decay=ema_decay,
        seed=seed,
        precision=accelerator.mixed_precision,
    )
    with accelerator.main_process_first():
        run = RunDirectory(out, "tokenizer", asdict(settings), overwrite=overwrite and accelerator.is_main_process)
    if not run.complete:
        loading = _Loading(source, workers, strict, checkpoint_every)
        _train(_Training(loaded, layout, settings, run, accelerator, loading), settings, run, loading)
    return run.path


@dataclass(frozen=True)
class _Settings:
    """Everything that changes the result; see `adapt`."""

    vae: str
    data: str
    size: tuple[int, int]
    layout: dict[str, Any]
    attention_dim: int
    norm: str
    lora_rank: int
    steps: int
    batch_size: int
    lr: float
    warmup: int
    kmeans_images: int
    l1_weight: float
    l2_weight: float
    perceptual_weight: float
    entropy_weight: float
    adversarial_weight: float
    adversarial_start: int
    ema_decay: float
    seed: int
    precision: str


@dataclass(frozen=True)
class _Loading:
    """What changes only how the result is come by; see `adapt`."""

    source: ImageSource
    workers: int
    strict: bool
    checkpoint_every: int


def _train(training: _Training, settings: _Settings, run: RunDirectory, loading: _Loading) -> None:
    """The training loop, from the newest checkpoint to the finished directory."""
    accelerator, trained, adversary = training.accelerator, training.trained, training.adversary
    skipped, process = 0, rank_and_world_size()
    batches = training_batches(
        loading.source, settings.size, settings.batch_size, settings.seed, training.start, settings.steps,
        workers=loading.workers, strict=loading.strict, process=process,
    )  # fmt: skip
    with progress("Adapting", total=settings.steps, completed=training.start) as bar:
        for step, batch in enumerate(batches, training.start):
            images = to_unit(batch.pixels.to(accelerator.device))
            rate = learning_rate(step, settings.steps, settings.lr, settings.warmup)
            judged: dict[str, float] = {}

            passed = training.model(images)
            distance = reconstruction_loss(
                passed.reconstructions, images, training.features,
                settings.l1_weight, settings.l2_weight, settings.perceptual_weight,
            )  # fmt: skip
            loss = distance.total + passed.quantization_loss + settings.entropy_weight * passed.entropy_loss
            if adversary is not None and step >= settings.adversarial_start:
                deceived = adversary.deceived(passed.reconstructions)
                weight = accelerator.reduce(training.through.adaptive_weight(distance.total, deceived), "mean")
                loss = loss + settings.adversarial_weight * weight * deceived
                judged["adaptive_weight"] = float(weight)
            trained.optimizer.zero_grad()
            accelerator.backward(loss)
            gradient = trained.update(rate, _LARGEST_GRADIENT)
            if adversary is not None and step >= settings.adversarial_start:
                judged["discriminator"] = adversary.learn(images, passed.reconstructions, rate, _LARGEST_GRADIENT)

            done, skipped = step + 1, skipped + len(batch.skipped)
            bar.advance()
            if done % _LOG_EVERY == 0 or done == settings.steps:
                figures = {
                    "loss": finite(loss, done),
                    "psnr": 10 * math.log10(4 / max(float(distance.l2), 1e-12)),
                    "perceptual": float(distance.perceptual),
                    "quantization": float(passed.quantization_loss.detach()),
                    "entropy": float(passed.entropy_loss.detach()),
                    "codes": passed.codes.unique().numel(),  # different ones in this batch
                }
                bar.advance(0, loss=figures["loss"], psnr=figures["psnr"], codes=figures["codes"])
                if accelerator.is_main_process:
                    run.log(done, **figures, **judged, gradient=float(gradient), lr=rate, skipped=skipped)
            if done % loading.checkpoint_every == 0 and done < settings.steps and accelerator.is_main_process:
                run.save(*training.checkpoint(done))
    if skipped:
        log_info(f"{skipped:,} images could not be read and were replaced by others")

    if accelerator.is_main_process:
        trained.use_average()
        training.through.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        run.finish(lambda folder: _write(folder, training.through, settings))
    accelerator.wait_for_everyone()


class _Training:
    """All that is trained, as the newest checkpoint or the start from the data has it."""

    def __init__(
        self,
        vae: ContinuousVAE,
        layout: CodeLayout,
        settings: _Settings,
        run: RunDirectory,
        accelerator: Accelerator,
        loading: _Loading,
    ) -> None:
        quantizer = ResidualQuantizer(
            latent_channels=vae.latent_channels,
            codebook_size=layout.codebook_size,
            sides=[list(side) for side in layout.sides],
            attention_dim=settings.attention_dim,
            norm=settings.norm,
        )
        checkpoint = run.latest()
        if checkpoint is None:
            vae = initialize_from_data(
                vae.to(accelerator.device), quantizer, loading.source, settings.size, settings.kmeans_images,
                settings.batch_size, settings.seed, loading.workers, loading.strict,
            )  # fmt: skip
        else:
            vae.register_to_config(shift=checkpoint.state["shift"], scale=checkpoint.state["scale"])
        if settings.lora_rank:
            add_lora(vae, settings.lora_rank, seed=derived_seed("lora", settings.seed))

        self.accelerator, self.settings = accelerator, settings
        self.through = ThroughTheCodes(vae, quantizer)
        self.model = accelerator.prepare(self.through)
        named = [(name, p) for name, p in self.through.named_parameters() if p.requires_grad]
        self.trained = TrainedParameters(named, betas=(0.5, 0.9), ema_decay=settings.ema_decay)
        self.adversary = Adversary(accelerator, settings.seed) if settings.adversarial_weight else None
        self.features = LiteFeatures().to(accelerator.device) if settings.perceptual_weight else None
        self.start = 0
        if checkpoint is not None:
            self.start = checkpoint.step
            self.trained.load("tokenizer", checkpoint.tensors, updates=self.start)
            if self.adversary is not None:
                self.adversary.load(checkpoint.tensors, updates=max(0, self.start - settings.adversarial_start))
        if accelerator.is_main_process:
            run.forget_log_after(self.start)
            if checkpoint is None:
                run.save(*self.checkpoint(0))

    def checkpoint(self, done: int) -> tuple[int, dict[str, torch.Tensor], dict[str, Any]]:
        """Step, tensors and state after `done` steps."""
        tensors = self.trained.tensors("tokenizer")
        if self.adversary is not None:
            tensors |= self.adversary.tensors()
        config = self.through.vae.config
        return done, tensors, {"shift": config["shift"], "scale": config["scale"]}


def _write(folder: Path, through: ThroughTheCodes, settings: _Settings) -> None:
    """The finished directory: the adapter by itself, then the tokenizer with the adapter merged."""
    if settings.lora_rank:
        autoencoder: Any = through.vae.autoencoder
        (adapter,) = autoencoder.peft_config.values()
        adapter.save_pretrained(str(folder / "lora"))
        save_tensors(folder / "lora" / "adapter_model.safetensors", get_peft_model_state_dict(autoencoder))
        merge_lora(through.vae)
    CodaTokenizer(through.vae, through.quantizer, settings.size).save_pretrained(folder)


def _size(size: int | tuple[int, int] | None, source: ImageSource, factor: int) -> tuple[int, int]:
    """Height and width in pixels."""
    if size is None:
        short = _short_side(source)
        size = min(_LARGEST_DEFAULT_SIZE, short) // factor * factor
        if not size:
            raise CodaError(f"images of {short} pixels are smaller than one cell of the latent ({factor}); give a size")
    height, width = (size, size) if isinstance(size, int) else size
    if height < factor or width < factor or height % factor or width % factor:
        raise CodaError(f"size {height}x{width} is not a multiple of the VAE's factor, {factor}")
    return height, width


def _short_side(source: ImageSource) -> int:
    """Of the first image that can be read."""
    for i in range(len(source)):
        try:
            return min(decode_image(source.read(i)).shape[1:])
        except BrokenImage:
            continue
    raise CodaError(f"no image in {source.location} can be read")


def _digest(vae: ContinuousVAE) -> str:
    """What tells a VAE from any other: a hash of its normalisation and weights."""
    digest = hashlib.sha256(repr((vae.config["shift"], vae.config["scale"])).encode())
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
