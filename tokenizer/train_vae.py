"""Train a small continuous VAE of one's own, for those who can download none.

L1 + L2 + perceptual distance + a small KL divergence, on photographs of one size. What comes out is a directory that
`load_vae` reads, its latents' normalisation measured.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w) with H = factor · h.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from .foundation.errors import CodaError
from .foundation.launcher import check_batch_size, rank_and_world_size
from .foundation.progress import log_info, progress
from .foundation.seeding import derived_seed, step_generator
from .images import ImageSource, image_batches, open_images, to_unit, training_batches
from .training.losses import kl_loss, reconstruction_loss
from .training.optimization import TrainedParameters, finite, learning_rate, start_accelerator
from .training.perceptual import LiteFeatures
from .training.run_directory import RunDirectory
from .vae.continuous_vae import ContinuousVAE, measure_normalization

_STATISTICS_IMAGES = 256  # for the normalisation at the end
_LOG_EVERY = 10  # steps
_LARGEST_GRADIENT = 1.0


def train_vae(
    data: str | Path | ImageSource,
    out: str | Path = "runs/vae",
    size: int = 64,
    architecture: str = "kl",
    factor: int = 8,
    latent_channels: int = 16,
    width: int = 16,
    steps: int = 3000,
    batch_size: int = 32,
    lr: float = 1e-3,
    warmup: int = 100,
    l1_weight: float = 1.0,
    l2_weight: float = 1.0,
    perceptual_weight: float = 0.1,
    kl_weight: float = 1e-4,
    ema_decay: float = 0.995,
    workers: int = 0,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
    strict: bool = False,
    checkpoint_every: int = 250,
) -> Path:
    """Train a VAE on photographs; the same call again goes on where an interrupted one stopped.

    Args:
        data: Images, as `open_images` takes them.
        out: Directory of the VAE.
        size: Pixels a side; a multiple of `factor`.
        architecture: "kl" (diffusers' AutoencoderKL: better) or "tiny" (AutoencoderTiny: faster at use).
        factor: Pixels per latent cell along one axis, a power of two.
        latent_channels: C.
        width: Channels at full resolution ("kl": doubled at each halving, up to eight times; "tiny": everywhere).
        steps: Steps of the optimizer.
        batch_size: Images per step, of all processes together.
        lr: Highest learning rate (AdamW, betas 0.9 and 0.99); linear warm-up, cosine down to 0.
        warmup: Steps of the warm-up.
        l1_weight: Weight of the mean absolute error.
        l2_weight: Weight of the mean squared error.
        perceptual_weight: Weight of the distance in EfficientNet-Lite0's feature maps.
        kl_weight: Weight of the KL divergence from N(0, 1), nats per latent element.
        ema_decay: Of the moving average of the weights, which is what is kept.
        workers: Processes that load images.
        seed: Of every random choice.
        device: "auto", "cpu", "mps", "cuda" or "cuda:N".
        dtype: "auto", "float32" or "bfloat16" (mixed precision).
        overwrite: Start anew over what `out` holds.
        strict: Stop at the first image that cannot be read, instead of drawing another.
        checkpoint_every: Steps between checkpoints.

    Returns:
        `out`.

    Raises:
        CodaError: The arguments, the images or `out` are not as they should be.
    """
    accelerator = start_accelerator(device, dtype)
    check_batch_size(batch_size)
    source = open_images(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("initial weights", seed))
        vae = ContinuousVAE(_autoencoder(architecture, size, factor, latent_channels, width))
    settings = _Settings(
        data=source.fingerprint,
        autoencoder=vae.config["architecture"],
        size=size,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        warmup=warmup,
        l1_weight=l1_weight,
        l2_weight=l2_weight,
        perceptual_weight=perceptual_weight,
        kl_weight=kl_weight,
        ema_decay=ema_decay,
        seed=seed,
        precision=accelerator.mixed_precision,
    )
    with accelerator.main_process_first():
        run = RunDirectory(out, "vae", asdict(settings), overwrite=overwrite and accelerator.is_main_process)
    if not run.complete:
        _train(vae, settings, run, accelerator, _Loading(source, workers, strict, checkpoint_every))
    return run.path


@dataclass(frozen=True)
class _Settings:
    """Everything that changes the result; see `train_vae`."""

    data: str
    autoencoder: dict[str, Any]
    size: int
    steps: int
    batch_size: int
    lr: float
    warmup: int
    l1_weight: float
    l2_weight: float
    perceptual_weight: float
    kl_weight: float
    ema_decay: float
    seed: int
    precision: str


@dataclass(frozen=True)
class _Loading:
    """What changes only how the result is come by; see `train_vae`."""

    source: ImageSource
    workers: int
    strict: bool
    checkpoint_every: int


def _train(
    vae: ContinuousVAE, settings: _Settings, run: RunDirectory, accelerator: Accelerator, loading: _Loading
) -> None:
    """The training loop, from the newest checkpoint to the finished directory."""
    features = LiteFeatures().to(accelerator.device) if settings.perceptual_weight else None
    vae.to(memory_format=torch.channels_last)  # convolutions are faster so, on CPUs and on tensor cores
    model = accelerator.prepare(_ThroughThePosterior(vae))
    trained = TrainedParameters(list(vae.named_parameters()), betas=(0.9, 0.99), ema_decay=settings.ema_decay)
    start, skipped, process = 0, 0, rank_and_world_size()
    if (checkpoint := run.latest()) is not None:
        start = checkpoint.step
        trained.load("vae", checkpoint.tensors, updates=start)
    if accelerator.is_main_process:
        run.forget_log_after(start)

    batches = training_batches(
        loading.source, settings.size, settings.batch_size, settings.seed, start, settings.steps,
        workers=loading.workers, strict=loading.strict, process=process,
    )  # fmt: skip
    with progress("Training the VAE", total=settings.steps, completed=start) as bar:
        for step, batch in enumerate(batches, start):
            images = to_unit(batch.pixels.to(accelerator.device, memory_format=torch.channels_last))
            rate = learning_rate(step, settings.steps, settings.lr, settings.warmup)
            generator = step_generator(settings.seed, step, f"posterior {process[0]}")

            reconstructions, mean, logvar = model(images, generator)
            distance = reconstruction_loss(
                reconstructions, images, features,
                settings.l1_weight, settings.l2_weight, settings.perceptual_weight,
            )  # fmt: skip
            kl = kl_loss(mean, logvar)
            loss = distance.total + settings.kl_weight * kl
            trained.optimizer.zero_grad()
            accelerator.backward(loss)
            gradient = trained.update(rate, _LARGEST_GRADIENT)

            done, skipped = step + 1, skipped + len(batch.skipped)
            bar.advance()
            if done % _LOG_EVERY == 0 or done == settings.steps:
                figures = {
                    "loss": finite(loss, done),
                    "psnr": 10 * math.log10(4 / max(float(distance.l2), 1e-12)),
                    "l1": float(distance.l1),
                    "perceptual": float(distance.perceptual),
                    "kl": float(kl.detach()),
                }
                bar.advance(0, loss=figures["loss"], psnr=figures["psnr"])
                if accelerator.is_main_process:
                    run.log(done, **figures, gradient=float(gradient), lr=rate, skipped=skipped)
            if done % loading.checkpoint_every == 0 and done < settings.steps and accelerator.is_main_process:
                run.save(done, trained.tensors("vae"))
    if skipped:
        log_info(f"{skipped:,} images could not be read and were replaced by others")

    if accelerator.is_main_process:
        trained.use_average()
        vae.eval().requires_grad_(False)
        run.finish(lambda folder: _write(folder, vae, settings, loading))
    accelerator.wait_for_everyone()


def _write(folder: Path, vae: ContinuousVAE, settings: _Settings, loading: _Loading) -> None:
    """The finished directory: the VAE, with the normalisation that its latents have on some of the images."""
    source, generator = loading.source, step_generator(settings.seed, settings.steps, "normalisation")
    order = torch.randperm(len(source), generator=generator)[:_STATISTICS_IMAGES].tolist()
    batches = image_batches(source, settings.size, settings.batch_size, order, workers=loading.workers)
    measured = measure_normalization(vae, (to_unit(batch.pixels) for batch in batches))
    measured.cpu().to(memory_format=torch.contiguous_format).save_pretrained(folder)


class _ThroughThePosterior(nn.Module):
    """Encode, draw and decode as one module, so that gradients are averaged over processes."""

    def __init__(self, vae: ContinuousVAE) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(True).train()

    def forward(
        self, images: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstructions, mean and log-variance of the posterior.

        An autoencoder without a posterior gets one of unit variance on paper: its divergence draws the latents into
        the range that AutoencoderTiny's decoder can tell apart. Nothing is drawn from it.
        """
        mean, logvar = self.vae.encode_moments(images)
        if logvar is None:
            return self.vae.decode(mean), mean, torch.zeros_like(mean)
        noise = torch.randn(mean.shape, generator=generator).to(mean)  # on the CPU: the same on every device
        return self.vae.decode(mean + torch.exp(0.5 * logvar) * noise), mean, logvar


def _autoencoder(architecture: str, size: int, factor: int, latent_channels: int, width: int) -> Any:
    """A small autoencoder with random weights."""
    halvings = factor.bit_length() - 1
    if factor < 2 or factor != 1 << halvings:
        raise CodaError(f"factor {factor}: pixels per latent cell are a power of two, such as 8 or 16")
    if size < factor or size % factor:
        raise CodaError(f"size {size} is not a multiple of the factor, {factor}")
    common: dict[str, Any] = {"latent_channels": latent_channels}
    if architecture == "kl":
        if width < 8 or width % 8:
            raise CodaError(f"width {width}: a multiple of 8, for the groups of the normalisation")
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * (halvings + 1),
            up_block_types=("UpDecoderBlock2D",) * (halvings + 1),
            block_out_channels=tuple(width * min(1 << i, 8) for i in range(halvings + 1)),
            layers_per_block=1,
            norm_num_groups=8,
            sample_size=size,
            scaling_factor=1.0,
            **common,
        )
    if architecture == "tiny":
        widths = (width,) * (halvings + 1)
        return AutoencoderTiny(
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=(1,) + (3,) * halvings,
            num_decoder_blocks=(3,) * halvings + (1,),
            **common,
        )
    raise CodaError(f"architecture {architecture!r} is not known; it is kl or tiny")
