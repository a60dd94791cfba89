"""Train a small continuous VAE, if you have no pretrained one, or go on training one that you have.

The default architecture starts as the principal components of patches, the best linear autoencoder. Losses are
L1 + L2 + perceptual loss + a small KL divergence, on images of one size. The result is a directory for `load_vae`, with
the normalization of its latents measured.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w) with H = factor · h.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import AutoencoderKL, AutoencoderTiny
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from .fingerprint import weights_digest
from .foundation.distributed import Processes
from .foundation.errors import CodaError
from .foundation.launcher import check_batch_size, rank_and_world_size
from .foundation.progress import progress
from .foundation.seeding import derived_seed, step_generator
from .images import ImageSource, image_batches, open_images, to_unit, training_batches
from .settings import RunOptions, VaeSettings
from .training.losses import ReconstructionLoss, kl_loss
from .training.monitoring import Monitor
from .training.optimization import (
    OptimizerWithEMA,
    check_finite,
    learning_rate,
    open_run_directory,
    start_accelerator,
)
from .training.run_directory import RunDirectory
from .training.validation import Validation, split_validation
from .vae.continuous_vae import ContinuousVAE, measure_normalization
from .vae.load import vae_to_train
from .vae.patch_autoencoder import AutoencoderPatch, initialize_from_principal_components

_START_IMAGES = 2048  # for the principal components at the start
_LOG_VARIANCE = -6.0  # of AutoencoderKL's posterior at the start: at 0 the noise hides the mean
_STATISTICS_IMAGES = 256  # for the normalization at the end
_CHECKPOINT_EVERY = 250  # steps
_SETTINGS_OF_A_NEW_VAE = ("architecture", "factor", "latent_channels", "width", "layers_per_block")


def train_vae(
    data: str | Path | ImageSource,
    out: str | Path = "runs/vae",
    settings: VaeSettings = VaeSettings(),
    run: RunOptions = RunOptions(),
    validation: str | Path | ImageSource | None = None,
    vae: str | Path | ContinuousVAE | None = None,
) -> Path:
    """Train a VAE on images. Rerun the same call to resume an interrupted run.

    Args:
        data: Images, as `open_images` takes them.
        out: Directory of the VAE.
        settings: What is trained, and how.
        run: Device, precision, workers, checkpoints.
        validation: Images to validate on, as `open_images` takes them; None sets a share of `data` aside.
        vae: A loaded VAE (not changed), or what `load_vae` takes, to go on training; None makes a new one.

    Returns:
        `out`.

    Raises:
        CodaError: If settings do not fit together, or the VAE, the images or `out` cannot be used.
    """
    accelerator = start_accelerator(run.device, run.dtype)
    check_batch_size(settings.batch_size)
    source = open_images(data)
    start = _new_vae(settings) if vae is None else _without_normalization(vae, settings)
    source, held_out = split_validation(source, validation, settings.validation_share, settings.seed)
    started_from = None if vae is None else weights_digest(start.config["image_range"], start)
    record = {**asdict(settings), "vae": started_from, "data": source.fingerprint}
    directory = open_run_directory(accelerator, out, "vae", record, run.overwrite)
    if not directory.complete:
        from_components = vae is None and settings.architecture == "patch"
        _train(start, from_components, source, held_out, directory, settings, run, accelerator)
    return directory.path


def _train(
    vae: ContinuousVAE,
    from_components: bool,
    source: ImageSource,
    held_out: ImageSource,
    directory: RunDirectory,
    settings: VaeSettings,
    run: RunOptions,
    accelerator: Accelerator,
) -> None:
    """The training loop, from the newest checkpoint to the finished directory."""
    checkpoint = directory.latest()
    if from_components and checkpoint is None:
        start_images = _random_images(source, settings, run, _START_IMAGES, "principal components")
        initialize_from_principal_components(vae.autoencoder, start_images)
    reconstruction_loss = ReconstructionLoss(settings).to(accelerator.device)
    vae.to(memory_format=torch.channels_last)  # faster convolutions on CPUs and tensor cores
    model = accelerator.prepare(VAEForTraining(vae))
    optimizer = OptimizerWithEMA(
        vae,
        betas=(0.9, 0.99),
        ema_decay=settings.ema_decay,
        optimizer=settings.optimizer,
        precision=accelerator.mixed_precision,
    )
    process, checkpoint_every = rank_and_world_size(), run.checkpoint_every or _CHECKPOINT_EVERY
    start = 0
    if checkpoint is not None:
        start = checkpoint.step
        optimizer.load_state_tensors("vae", checkpoint.tensors, updates=start)
    validation = Validation(held_out, source, settings, run)
    monitor = Monitor("Training the VAE", accelerator, directory, settings.steps, run, checkpoint, validation)

    def reconstruct(images: torch.Tensor) -> torch.Tensor:
        vae.eval()
        with optimizer.averaged(), accelerator.autocast():
            made = vae.decode(vae.encode_moments(images)[0])
        vae.train()
        return made

    monitor.begin(reconstruct)
    batches = training_batches(
        source, settings.size, settings.batch_size, settings.seed, start, settings.steps,
        workers=run.workers, strict=run.strict, process=process,
    )  # fmt: skip
    with progress("Training the VAE", total=settings.steps, completed=start) as bar:
        bar.advance(0, **monitor.shown)
        for step, batch in enumerate(batches, start):
            images = to_unit(batch.pixels.to(accelerator.device, memory_format=torch.channels_last))
            lr = learning_rate(step, settings.steps, settings.lr, settings.warmup)
            generator = step_generator(settings.seed, step, "posterior")

            reconstructions, mean, logvar = model(images, generator, process)
            reconstruction = reconstruction_loss(reconstructions, images)
            kl = kl_loss(mean, logvar)
            loss = reconstruction.total + settings.kl_weight * kl
            accelerator.backward(loss)
            gradient = optimizer.step(lr)

            done = step + 1
            monitor.count_skipped(batch.skipped)
            bar.advance()
            if monitor.is_due(done):
                figures = {
                    **check_finite(done, loss=loss, gradient=gradient, kl=kl),
                    **reconstruction.figures(),
                    **monitor.look(done, reconstruct),
                }
                bar.advance(0, loss=figures["loss"], psnr=figures["psnr"], **monitor.shown)
                monitor.log(done, **figures, lr=lr, skipped=monitor.skipped())
            if done % checkpoint_every == 0 and done < settings.steps:
                directory.save(done, optimizer.state_tensors("vae"))
    for others in Processes().gather(source.unreadable):
        source.unreadable.update(others)
    monitor.finish(source.describe_unreadable())
    optimizer.use_average()
    vae.eval().requires_grad_(False)
    directory.finish(lambda folder: _write(folder, vae, source, settings, run))
    accelerator.wait_for_everyone()


def _write(folder: Path, vae: ContinuousVAE, source: ImageSource, settings: VaeSettings, run: RunOptions) -> None:
    """The finished directory: the VAE, with the normalization measured on some of the images."""
    measured = measure_normalization(vae, _random_images(source, settings, run, _STATISTICS_IMAGES, "normalisation"))
    measured.cpu().to(memory_format=torch.contiguous_format).save_pretrained(folder)


def _random_images(
    source: ImageSource, settings: VaeSettings, run: RunOptions, count: int, purpose: str
) -> Iterator[torch.Tensor]:
    """Batches of at most `count` images of the source, in [-1, 1]; the seed and the purpose choose them."""
    generator = step_generator(settings.seed, settings.steps, purpose)
    order = torch.randperm(len(source), generator=generator)[:count].tolist()
    for batch in image_batches(source, settings.size, settings.batch_size, order, workers=run.workers):
        yield to_unit(batch.pixels)


class VAEForTraining(nn.Module):
    """Encode, sample and decode as one module, so that processes average all gradients."""

    def __init__(self, vae: ContinuousVAE) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(True).train()

    def forward(
        self, images: torch.Tensor, generator: torch.Generator, process: tuple[int, int] = (0, 1)
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstructions, mean and log-variance of the posterior.

        The noise is drawn for the images of all processes. `process` is (rank, count): `images` are every count-th one
        from rank on.

        An autoencoder without a posterior is given unit variance and not sampled: the divergence then pulls its latents
        into the range that AutoencoderTiny's decoder can distinguish.
        """
        mean, logvar = self.vae.encode_moments(images, check=False)  # of bytes, so within the range
        if logvar is None:
            return self.vae.decode(mean), mean, torch.zeros_like(mean)
        rank, count = process
        noise = torch.randn(len(mean) * count, *mean.shape[1:], generator=generator)  # on the CPU: equal on all devices
        noise = noise[rank::count].to(mean)
        return self.vae.decode(mean + torch.exp(0.5 * logvar) * noise), mean, logvar


def _without_normalization(vae: str | Path | ContinuousVAE, settings: VaeSettings) -> ContinuousVAE:
    """A copy of a VAE in float32 to go on training; the normalization is measured at the end."""
    for setting in settings.declared():
        if setting.name in _SETTINGS_OF_A_NEW_VAE and getattr(settings, setting.name) != setting.default:
            raise CodaError(f"{setting.name} is for a new VAE; the one to start from has its own")
    base = vae_to_train(vae)
    if settings.size % base.factor:
        raise CodaError(f"size {settings.size} is not a multiple of the factor, {base.factor}")
    return ContinuousVAE(base.autoencoder, image_range=base.config["image_range"])


def _new_vae(settings: VaeSettings) -> ContinuousVAE:
    """A VAE with random weights, which the seed decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("initial weights", settings.seed))
        return ContinuousVAE(_autoencoder(settings))


def _autoencoder(settings: VaeSettings) -> Any:
    """A small autoencoder with random weights."""
    size, factor = settings.size, settings.factor
    halvings = factor.bit_length() - 1
    if factor < 2 or factor != 1 << halvings:
        raise CodaError(f"factor {factor} is not a power of two, such as 8 or 16")
    if size < factor or size % factor:
        raise CodaError(f"size {size} is not a multiple of the factor, {factor}")
    width = settings.width or (32 if settings.architecture == "patch" else 16)
    if settings.architecture == "patch":
        stages = [width * min(1 << i, 4) for i in range(halvings)]
        return AutoencoderPatch(3, settings.latent_channels, stages, settings.layers_per_block or (1,) * halvings)
    if settings.layers_per_block:
        raise CodaError(f"layers_per_block is for the architecture patch, not for {settings.architecture}")
    if settings.architecture == "tiny":
        widths = (width,) * (halvings + 1)
        return AutoencoderTiny(
            latent_channels=settings.latent_channels,
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            num_encoder_blocks=(1,) + (3,) * halvings,
            num_decoder_blocks=(3,) * halvings + (1,),
        )
    if width % 4:
        raise CodaError(f"width {width} is not a multiple of 4, the channels of a group of the normalization")
    autoencoder = AutoencoderKL(
        latent_channels=settings.latent_channels,
        down_block_types=("DownEncoderBlock2D",) * (halvings + 1),
        up_block_types=("UpDecoderBlock2D",) * (halvings + 1),
        block_out_channels=tuple(width * min(1 << i, 8) for i in range(halvings + 1)),
        layers_per_block=1,
        norm_num_groups=width // 4,
        sample_size=size,
        scaling_factor=1.0,
    )
    for block in (module for module in autoencoder.modules() if isinstance(module, ResnetBlock2D)):
        nn.init.zeros_(block.conv2.weight)  # blocks start as their shortcuts
        nn.init.zeros_(block.conv2.bias)
    nn.init.constant_(autoencoder.quant_conv.bias[settings.latent_channels :], _LOG_VARIANCE)
    return autoencoder
