"""Train a small continuous VAE of one's own, for those who can download none.

L1 + L2 + perceptual distance + a small KL divergence, on photographs of one size. What comes out is a directory that
`load_vae` reads, its latents' normalisation measured.

Shapes: images (B, 3, H, W) in [-1, 1]; latents (B, C, h, w) with H = factor · h.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import nn

from .determinism import derived_seed, step_generator
from .errors import CodaError
from .images import ImageSource, image_batches, open_images, training_batches
from .losses import kl_loss, reconstruction_loss
from .perceptual import LiteFeatures
from .progress import note, progress
from .run_directory import RunDirectory
from .training_state import TrainedParameters, finite, learning_rate, process_of, start_accelerator
from .vae import ContinuousVAE, measure_normalisation

_MEASURED_IMAGES = 1024  # for the normalisation at the end
_LOG_EVERY = 10  # steps


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
    perceptual_weight: float = 0.5,
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
    process = process_of(accelerator, batch_size)
    source = open_images(data)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed("initial weights", seed))
        vae = ContinuousVAE(_autoencoder(architecture, size, factor, latent_channels, width))
    settings = {
        **{"data": source.fingerprint, "size": size, "autoencoder": vae.config.architecture},
        **{"steps": steps, "batch_size": batch_size, "lr": lr, "warmup": warmup, "seed": seed},
        **{"l1_weight": l1_weight, "l2_weight": l2_weight, "perceptual_weight": perceptual_weight},
        **{"kl_weight": kl_weight, "ema_decay": ema_decay, "dtype": accelerator.mixed_precision},
    }
    with accelerator.main_process_first():
        run = RunDirectory(out, "vae", settings, overwrite=overwrite and accelerator.is_main_process)
    if run.complete:
        return run.path

    features = LiteFeatures().to(accelerator.device) if perceptual_weight else None
    vae.to(memory_format=torch.channels_last)  # convolutions are faster so, on CPUs and on tensor cores
    model = accelerator.prepare(_ThroughThePosterior(vae))
    trained = TrainedParameters(list(vae.named_parameters()), betas=(0.9, 0.99), ema_decay=ema_decay)
    start = 0
    if (checkpoint := run.latest()) is not None:
        start = checkpoint.step
        trained.load("vae", checkpoint.tensors, updates=start)
        run.forget_log_after(start)

    skipped = 0
    batches = training_batches(
        source, size, batch_size, seed, start, steps, workers=workers, strict=strict, process=process
    )
    with progress("Training the VAE", total=steps, completed=start) as bar:
        for step, batch in enumerate(batches, start):
            images = batch.images.to(accelerator.device, memory_format=torch.channels_last)
            shape = (len(images), latent_channels, size // factor, size // factor)
            noise = torch.randn(shape, generator=step_generator(seed, step, f"posterior {process[0]}"))

            reconstructions, mean, logvar = model(images, noise.to(images.device))
            distance = reconstruction_loss(reconstructions, images, features, l1_weight, l2_weight, perceptual_weight)
            kl = kl_loss(mean, logvar)
            loss = distance.total + kl_weight * kl
            trained.optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            gradient = trained.update(learning_rate(step, steps, lr, warmup), max_gradient_norm=1.0)

            done, skipped = step + 1, skipped + len(batch.skipped)
            bar.advance()
            if accelerator.is_main_process and (done % _LOG_EVERY == 0 or done == steps):
                psnr = 10 * math.log10(4 / max(float(distance.l2), 1e-12))
                figures = {"l1": distance.l1, "perceptual": distance.perceptual, "kl": kl}
                scalars = {"loss": finite(loss, done)} | {name: float(x.detach()) for name, x in figures.items()}
                run.log(done, **scalars, psnr=psnr, gradient=float(gradient), skipped=skipped)
                bar.advance(0, loss=scalars["loss"], psnr=psnr)
            if accelerator.is_main_process and done % checkpoint_every == 0 and done < steps:
                run.save(done, trained.tensors("vae"))
    if skipped:
        note(f"{skipped:,} images could not be read and were replaced by others")

    trained.use_average()
    vae.eval().requires_grad_(False)
    if accelerator.is_main_process:
        order = torch.randperm(len(source), generator=step_generator(seed, steps, "normalisation"))[:_MEASURED_IMAGES]
        sample = image_batches(source, size, batch_size, indices=order.tolist(), workers=workers)
        finished = measure_normalisation(vae, (batch.images for batch in sample))
        run.finish(finished.cpu().to(memory_format=torch.contiguous_format).save_pretrained)
    accelerator.wait_for_everyone()
    return run.path


class _ThroughThePosterior(nn.Module):
    """Encode, draw and decode as one module, so that gradients are averaged over processes."""

    def __init__(self, vae: ContinuousVAE) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(True).train()

    def forward(self, images: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstructions, mean and log-variance of the posterior.

        An autoencoder without a posterior gets one of unit variance on paper: its divergence draws the latents into
        the range that AutoencoderTiny's decoder can tell apart. Nothing is drawn from it.
        """
        mean, logvar = self.vae.encode_moments(images)
        if logvar is None:
            return self.vae.decode(mean), mean, torch.zeros_like(mean)
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
