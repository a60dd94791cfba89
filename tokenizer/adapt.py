"""Adapt a continuous VAE into a discrete tokenizer: the training of the paper (Sections 3.2 to 3.4).

First residual k-means on the VAE's latents gives the codebook, and the quantizer is set to retrieve the nearest code.
Then quantizer and LoRA are trained together on L1 + L2 + perceptual loss + the quantizer's own two losses and,
optionally, a discriminator's.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w); codes (B, T).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import get_peft_model_state_dict

from .fingerprint import weights_digest
from .foundation.atomic_io import save_tensors
from .foundation.distributed import Processes
from .foundation.errors import CodaError
from .foundation.launcher import check_batch_size, rank_and_world_size
from .foundation.progress import progress
from .foundation.seeding import derived_seed, step_generator
from .images import ImageSource, decode_image, open_images, to_unit, training_batches
from .images.source import BrokenImage
from .layout import CodeLayout, default_sides
from .quantizer.residual_quantizer import ResidualQuantizer
from .settings import AdaptSettings, RunOptions
from .tokenizer import CodaTokenizer
from .training.cached_latents import train_on_cached_latents
from .training.discriminator import DiscriminatorTrainer, adversarial_weight
from .training.losses import ReconstructionLoss
from .training.monitoring import Monitor
from .training.optimization import (
    check_finite,
    learning_rate,
    micro_batches,
    open_run_directory,
    start_accelerator,
    synchronize_gradients,
)
from .training.phase import Phase, Training
from .training.run_directory import Checkpoint, RunDirectory
from .training.trainable_tokenizer import TrainableTokenizer, initialize_from_data
from .training.validation import Validation, split_validation
from .vae.acceleration import checkpoint_decoder, compile_autoencoder
from .vae.continuous_vae import ContinuousVAE
from .vae.load import vae_to_train
from .vae.lora import add_lora, merge_lora

_LARGEST_DEFAULT_SIZE = 256
_VECTORS_PER_CODE = 128  # for k-means, by default


def adapt(
    vae: str | Path | ContinuousVAE,
    data: str | Path | ImageSource,
    out: str | Path = "runs/tokenizer",
    settings: AdaptSettings = AdaptSettings(),
    run: RunOptions = RunOptions(),
    validation: str | Path | ImageSource | None = None,
) -> Path:
    """Make a tokenizer from a VAE. Rerun the same call to resume an interrupted run.

    Args:
        vae: A loaded VAE (not changed), or what `load_vae` takes.
        data: Images, as `open_images` takes them.
        out: Directory of the tokenizer.
        settings: What is trained, and how.
        run: Device, precision (the quantizer stays in float32), workers, checkpoints.
        validation: Images to validate on, as `open_images` takes them; None sets a share of `data` aside.

    Returns:
        `out`, for `CodaTokenizer.from_pretrained`. Its `lora/` holds the adapter alone.

    Raises:
        CodaError: If settings do not fit together, or the VAE, the images or `out` cannot be used.
    """
    accelerator = start_accelerator(run.device, run.dtype)
    check_batch_size(settings.batch_size, settings.accumulation)
    source = open_images(data)
    base = vae_to_train(vae)
    settings = _resolve(settings, base, source)
    vae_digest = weights_digest(repr((base.config["shift"], base.config["scale"])), base)
    source, held_out = split_validation(source, validation, settings.validation_share, settings.seed)
    record = {**asdict(settings), "vae": vae_digest, "data": source.fingerprint}
    directory = open_run_directory(accelerator, out, "tokenizer", record, run.overwrite)
    if not directory.complete:
        _train(base, source, held_out, directory, settings, run, accelerator)
    return directory.path


def _train(
    vae: ContinuousVAE,
    source: ImageSource,
    held_out: ImageSource,
    directory: RunDirectory,
    settings: AdaptSettings,
    run: RunOptions,
    accelerator: Accelerator,
) -> None:
    """The training loop, from the newest checkpoint to the finished directory."""
    assert settings.size is not None and settings.sides is not None
    checkpoint = directory.latest()
    validation = Validation(held_out, source, settings, run)
    layout = CodeLayout(settings.sides, settings.codebook_size)
    before = settings.quantizer_steps + settings.decoder_steps
    monitor = Monitor("Adapting", accelerator, directory, before + settings.steps, run, checkpoint, validation, layout)
    tokenizer = _initialize(vae.to(accelerator.device), source, checkpoint, settings, run)
    training = Training(tokenizer, source, directory, checkpoint, settings, run, monitor, accelerator)
    train_on_cached_latents(training)
    discriminator = DiscriminatorTrainer(accelerator, settings) if settings.adversarial_weight else None
    reconstruction_loss = ReconstructionLoss(settings).to(accelerator.device)
    phase = Phase(training, "all", before, settings.steps, tokenizer, discriminator)
    generator: torch.Generator | None = None  # of the perturbed codes; parts of a batch go on drawing from it
    batches = training_batches(
        source, settings.size, settings.batch_size, settings.seed, phase.start, settings.steps, workers=run.workers,
        strict=run.strict, process=rank_and_world_size(),
    )  # fmt: skip
    with progress("Adapting", total=settings.steps, completed=phase.start) as bar:
        bar.advance(0, **monitor.shown)
        for step, batch, last in micro_batches(batches, phase.start, settings.accumulation):
            synchronize_gradients(phase.model, last)
            images = to_unit(batch.pixels.to(accelerator.device))
            lr = learning_rate(step, settings.steps, settings.lr, settings.warmup)
            generator = generator or step_generator(settings.seed, before + step, "perturbed codes")
            output = phase.model(images, generator)
            monitor.count(output.codes)
            reconstruction = reconstruction_loss(output.reconstructions, images)
            loss = reconstruction.total + output.quantization_loss + settings.entropy_weight * output.entropy_loss
            gan_log: dict[str, torch.Tensor] = {}
            if discriminator is not None and step >= settings.adversarial_start:
                generator_loss = discriminator.generator_loss(output.reconstructions, step)
                weight = tokenizer.adaptive_weight(reconstruction.total, generator_loss)
                loss = loss + adversarial_weight(step, settings) * weight * generator_loss
                gan_log["adaptive_weight"] = weight
            accelerator.backward(loss / settings.accumulation)
            if discriminator is not None and step >= settings.adversarial_start:
                gan_log["discriminator"] = discriminator.backward(images, output.reconstructions, step, last)
            if not last:
                continue
            gradient, generator = phase.optimizer.step(lr), None
            if discriminator is not None and step >= settings.adversarial_start:
                discriminator.step(lr)

            done = step + 1
            monitor.count_skipped(batch.skipped)
            bar.advance()
            if monitor.is_due(before + done):
                figures = {
                    **check_finite(before + done, loss=loss, gradient=gradient, **gan_log),
                    **reconstruction.figures(),
                    **output.figures(),
                    **monitor.look(before + done, phase.reconstruct, tokenizer.quantizer),
                }
                bar.advance(0, loss=figures["loss"], psnr=figures["psnr"], codes=figures["codes"], **monitor.shown)
                monitor.log(before + done, **figures, lr=lr, skipped=monitor.skipped())
            phase.checkpoint(done)
    for others in Processes().gather(source.unreadable):
        source.unreadable.update(others)
    monitor.finish(source.describe_unreadable())
    phase.optimizer.use_average()
    directory.finish(lambda folder: _write(folder, tokenizer, settings))
    accelerator.wait_for_everyone()


def _resolve(settings: AdaptSettings, vae: ContinuousVAE, source: ImageSource) -> AdaptSettings:
    """The settings with the defaults that depend on VAE and images filled in."""
    size = _default_size(source, vae.factor) if settings.size is None else settings.size
    height, width = (size, size) if isinstance(size, int) else size
    if height % vae.factor or width % vae.factor:
        raise CodaError(f"size {height}x{width} is not a multiple of the VAE's factor, {vae.factor}")
    grid = (height // vae.factor, width // vae.factor)
    layout = CodeLayout(settings.sides or default_sides(*grid), settings.codebook_size)
    if layout.grid != grid:
        raise CodaError(f"the last side is {layout.grid}, the latent's grid at {height}x{width} pixels is {grid}")
    return replace(
        settings,
        size=(height, width),
        sides=layout.sides,
        attention_dim=settings.attention_dim or 2 * vae.latent_channels,
        kmeans_images=settings.kmeans_images or -(-_VECTORS_PER_CODE * layout.codebook_size // layout.num_tokens),
    )


def _default_size(source: ImageSource, factor: int) -> int:
    """Short side of the first image that can be read, rounded down to a multiple of the factor, at most 256."""
    for i in range(len(source)):
        try:
            short = min(decode_image(source.read(i), max_pixels=source.max_pixels).shape[1:])
        except BrokenImage:
            continue
        if size := min(_LARGEST_DEFAULT_SIZE, short) // factor * factor:
            return size
        raise CodaError(f"images of {short} pixels are smaller than one cell of the latent ({factor}); give a size")
    raise CodaError(f"no image in {source.location} can be read")


def _initialize(
    vae: ContinuousVAE, source: ImageSource, checkpoint: Checkpoint | None, settings: AdaptSettings, run: RunOptions
) -> TrainableTokenizer:
    """VAE with LoRA, and quantizer; their weights are those of k-means, or the checkpoint will replace them."""
    assert settings.sides is not None
    layout = CodeLayout(settings.sides, settings.codebook_size)
    quantizer = ResidualQuantizer(
        latent_channels=vae.latent_channels,
        codebook_size=layout.codebook_size,
        sides=[list(side) for side in layout.sides],
        attention_dim=settings.attention_dim,
        norm=settings.norm,
    )
    if checkpoint is None:
        vae = initialize_from_data(vae, quantizer, source, settings, run)
    else:
        vae.register_to_config(shift=checkpoint.state["shift"], scale=checkpoint.state["scale"])
    if settings.lora_rank:
        add_lora(vae, settings.lora_rank, seed=derived_seed("lora", settings.seed))
    if settings.gradient_checkpointing:
        checkpoint_decoder(vae)
    if settings.compile:
        compile_autoencoder(vae)
    return TrainableTokenizer(vae, quantizer, settings.perturbed_codes)


def _write(folder: Path, tokenizer: TrainableTokenizer, settings: AdaptSettings) -> None:
    """The finished directory: the adapter alone, then the tokenizer with the adapter merged."""
    tokenizer.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    if settings.lora_rank:
        autoencoder: Any = tokenizer.vae.autoencoder
        (adapter,) = autoencoder.peft_config.values()
        adapter.save_pretrained(str(folder / "lora"))
        save_tensors(folder / "lora" / "adapter_model.safetensors", get_peft_model_state_dict(autoencoder))
        merge_lora(tokenizer.vae)
    CodaTokenizer(tokenizer.vae, tokenizer.quantizer).save_pretrained(folder)
