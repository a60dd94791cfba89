"""Settings of the tokenizer's commands: `train_vae`, `adapt` and `tokenize_dataset`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from .foundation.settings import (
    OPTIMIZER_HELP,
    Count,
    Device,
    Fraction,
    Natural,
    OptimizerName,
    Part,
    Positive,
    Range,
    Seed,
    Settings,
    Side,
    Size,
    TrainingPrecision,
    Weight,
    setting,
)
from .images.source import MAX_PIXELS, PILLOWS_LIMIT


@dataclass(frozen=True)
class ImageOptions(Settings):
    """Which images and labels are accepted."""

    max_pixels: Annotated[int, Range(1, PILLOWS_LIMIT)] = setting(
        MAX_PIXELS, "Images with more pixels are not read, except JPEGs that can be decoded at a smaller size."
    )
    num_classes: Count | None = setting(
        None, "Number of classes, if labels are numbers; by default the largest label plus 1."
    )


Perceptual = Literal["efficientnet_lite0", "lpips"]
PERCEPTUAL_WEIGHT_HELP = "Weight of the perceptual loss."
PERCEPTUAL_SIZE_HELP = (
    "Pixels to which smaller images are enlarged for the perceptual loss, whose network learned at 224."
)


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """Settings that `train_vae` and `adapt` share: the reconstruction loss, EMA, validation and the seed."""

    l1_weight: Weight = setting(1.0, "Weight of the mean absolute error.")
    l2_weight: Weight = setting(1.0, "Weight of the mean squared error.")
    perceptual_weight: Weight = setting(0.1, PERCEPTUAL_WEIGHT_HELP)
    perceptual: Perceptual = setting("efficientnet_lite0", "Network of the perceptual loss; lpips needs coda[lpips].")
    perceptual_size: Count = setting(1, PERCEPTUAL_SIZE_HELP)
    ema_decay: Fraction = setting(0.995, "EMA decay. The averaged weights are saved.")
    validation_share: Fraction = setting(
        0.02, "Share of the images, at most about 64, that is not trained on but validated on; 0 for none."
    )
    validate_every: Count | None = setting(
        None, "Steps between validations; by default ten in a run, fewer in a short one."
    )
    seed: Seed = setting(0, "Seed for all randomness.")


@dataclass(frozen=True)
class VaeSettings(TrainingSettings):
    """Settings of `train_vae` that change its result."""

    size: Count = setting(64, "Image size in pixels, a multiple of the factor.")
    architecture: Literal["patch", "kl", "tiny"] = setting(
        "patch",
        "patch (AutoencoderPatch, which starts as principal components), kl (AutoencoderKL) or tiny (AutoencoderTiny).",
    )
    factor: Count = setting(8, "Downsampling factor of the latent, a power of two.")
    latent_channels: Count = setting(16, "Latent channels.")
    width: Count | None = setting(
        None, "Channels: of patch at half resolution (default 32), of kl and tiny at full resolution (default 16)."
    )
    layers_per_block: tuple[Count, ...] | None = setting(
        None, "Residual blocks of patch at 1/2, 1/4, … of the images' size (1,2,2); by default one at each."
    )
    steps: Count = setting(3000, "Optimizer steps.")
    batch_size: Count = setting(32, "Images per step, over all processes.")
    optimizer: OptimizerName = setting("muon", OPTIMIZER_HELP)
    lr: Positive = setting(2e-3, "Peak learning rate.")
    warmup: Natural = setting(100, "Steps of linear warm-up.")
    kl_weight: Weight = setting(1e-4, "Weight of the KL divergence from N(0, 1), in nats per latent element.")


@dataclass(frozen=True)
class AdaptSettings(TrainingSettings):
    """Settings of `adapt` that change its result."""

    perceptual_weight: Weight = setting(1.0, PERCEPTUAL_WEIGHT_HELP)
    perceptual_size: Count = setting(128, PERCEPTUAL_SIZE_HELP)
    size: Size | None = setting(
        None, "Image size in pixels; by default the short side of the first image, at most 256."
    )
    sides: tuple[Side, ...] | None = setting(
        None, "Sides of the levels, smallest first (1,2,4,8 or 1x2,2x4); by default chosen by the latent's size."
    )
    codebook_size: Annotated[int, Range(2)] = setting(4096, "Number of codes, K.")
    attention_dim: Count | None = setting(
        None, "Width of the retrieval attention; by default twice the latent channels."
    )
    norm: Literal["rms_norm", "layer_norm"] = setting("rms_norm", "Normalization of queries and keys.")
    lora_rank: Natural = setting(32, "LoRA rank; 0 leaves the VAE unchanged.")
    quantizer_steps: Natural = setting(
        0, "Steps before all others that train the quantizer alone, on latents that are encoded once."
    )
    decoder_steps: Natural = setting(
        0, "Steps after those that train quantizer and decoder, on latents that are encoded once."
    )
    steps: Natural = setting(
        500, "Steps that train quantizer, encoder and decoder; 0 in all phases keeps the k-means initialization."
    )
    cached_images: Count | None = setting(
        None, "Images whose latents are encoded once; by default all, up to 1 GiB of latents."
    )
    perturbed_codes: Fraction = setting(
        0.0, "Share of the codes that the decoder sees replaced by one of the 8 nearest while it learns."
    )
    batch_size: Count = setting(16, "Images per step, over all processes.")
    lr: Positive = setting(5e-4, "Peak learning rate.")
    warmup: Natural = setting(50, "Steps of linear warm-up.")
    accumulation: Count = setting(
        1, "Parts of a batch whose gradients are computed one after the other, to save memory."
    )
    max_gradient_norm: Positive = setting(1.0, "Gradients with a larger norm are scaled down to it.")
    weight_decay: Weight = setting(0.0, "Weight decay of the trained weights; a tenth of it for the discriminator's.")
    kmeans_images: Count | None = setting(
        None, "Images for the k-means initialization; by default enough for 128 vectors per code."
    )
    kmeans_metric: Literal["decoder", "latent"] = setting(
        "decoder", "Distance of k-means: weighed by the decoder's sensitivity, or that of the latents alone."
    )
    entropy_weight: Weight = setting(0.05, "Weight of the quantizer's entropy loss.")
    adversarial_weight: Weight = setting(0.0, "Weight of the discriminator's loss; 0 trains without a discriminator.")
    adversarial_start: Natural = setting(0, "First step with the discriminator.")
    adversarial_ramp: Fraction = setting(
        0.0,
        "Share of the steps over which its weight rises linearly from 0; the discriminator itself learns throughout.",
    )
    discriminator: Literal["patch", "dino", "projected"] = setting(
        "patch",
        "patch (learned), or heads on the features of a frozen network: dino (a ViT), projected (EfficientNet-Lite0).",
    )
    dino: str = setting(
        "facebook/dino-vits16", "ViT of the dino discriminator: a directory or hub id for transformers."
    )
    gradient_checkpointing: bool = setting(False, "Recompute the decoder's activations instead of keeping them.")
    compile: bool = setting(False, "Compile encoder and decoder with torch.compile.")


@dataclass(frozen=True)
class TokenizeSettings(ImageOptions):
    """Settings of `tokenize_dataset`."""

    size: Count | None = setting(None, "Expected image size in pixels; must equal the tokenizer's.")
    flip: bool = setting(False, "Also encode every image mirrored.")
    ten_crop: bool = setting(False, "Encode ten crops of every image instead, as LlamaGen does.")
    part: Part | None = setting(
        None, "Encode one part only: 1/4 is the first of four; parts are whole shards, and merge-cache joins them."
    )
    batch_size: Count = setting(32, "Images per batch.")
    shard_size: Count = setting(16384, "Images per shard of the cache.")
    max_skipped: Natural | None = setting(None, "Fail if more images than this cannot be read.")


@dataclass(frozen=True)
class RunOptions(Settings):
    """How a long command runs. Apart from the precision, these do not affect the result.

    `train_maskgit` reads no images and ignores `strict`; benchmarks keep no checkpoints.
    """

    workers: Natural = setting(0, "Worker processes that load data; 0 loads in the main process.")
    device: Device = setting("auto", "Device: auto, cpu, cuda, cuda:1 or mps.")
    dtype: TrainingPrecision = setting(
        "auto", "Precision of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere."
    )
    overwrite: bool = setting(False, "Start over, replacing the existing output.")
    strict: bool = setting(False, "Stop at an image that cannot be read instead of skipping it.")
    checkpoint_every: Count | None = setting(
        None, "Steps between checkpoints; by default 250 for train-vae, 100 for adapt, 500 for train-maskgit."
    )
    log_with: Literal["tensorboard", "wandb"] | None = setting(
        None, "Also send the log to tensorboard (files in the run directory) or wandb."
    )
