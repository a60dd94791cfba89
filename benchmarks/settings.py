"""Settings of the benchmarks, which are the flags of `coda benchmark`. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.settings import (
    Count,
    Fraction,
    Natural,
    Parsed,
    Positive,
    Range,
    Seed,
    Settings,
    Side,
    Size,
    Weight,
    setting,
)
from coda.tokenizer.settings import PERCEPTUAL_SIZE_HELP, PERCEPTUAL_WEIGHT_HELP, ImageOptions

EXTRACTORS = ("auto", "inception", "efficientnet_lite0")


def parse_extractor(value: Any) -> Any:
    """The name of an extractor, or a `FeatureExtractor`."""
    if value not in EXTRACTORS and not hasattr(value, "figure_names"):
        raise ValueError
    return value


Extractor = Annotated[Any, Parsed(parse_extractor, "one of " + ", ".join(EXTRACTORS), "|".join(EXTRACTORS))]


@dataclass(frozen=True)
class MeasureSettings(ImageOptions):
    """Settings that all measurements of images share. From Python, `extractor` may also be a `FeatureExtractor`."""

    batch_size: Count = setting(32, "Images per batch.")
    extractor: Extractor = setting("auto", "Feature extractor; auto is inception if its weights are installed.")
    seed: Seed = setting(0, "Seed for all randomness.")


@dataclass(frozen=True)
class ReconstructionSettings(MeasureSettings):
    """Settings of `reconstruction_metrics`."""

    size: Size | None = setting(None, "Image size in pixels, center crop; by default the tokenizer's.")
    limit: Count | None = setting(None, "Measure at most this many images, drawn by the seed.")


@dataclass(frozen=True)
class GenerationSettings(MeasureSettings):
    """Settings of `generation_metrics`. Sample i has the seed `seed` + i."""

    num_images: Count | None = setting(None, "Number of samples; by default all there are, or 50,000 from a model.")
    balance: Literal["uniform", "drawn"] = setting(
        "uniform", "Classes in turns (uniform), or a random class per sample (drawn)."
    )
    size: Size | None = setting(None, "Size of the reference images in pixels, center crop; by default the samples'.")
    export_npz: bool = setting(False, "Also write samples.npz for ADM's evaluator.")


@dataclass(frozen=True)
class JudgeSettings(MeasureSettings):
    """Settings of `judge_generator`. Sample i has the seed `seed` + i."""

    num_images: Count = setting(2000, "Number of samples, of all classes in turns.")
    shown: Count = setting(16, "Number of samples that are shown beside their nearest training images.")
    extractor: Extractor = setting("efficientnet_lite0", "Feature extractor; only this one finds the right classes.")


@dataclass(frozen=True)
class SweepSettings(MeasureSettings):
    """Settings of `sweep`."""

    minutes: Positive = setting(30.0, "Time limit of the search; with its last measurements it may take a little more.")
    num_images: Annotated[int, Range(2)] = setting(500, "Samples of every choice of settings.")
    limit: Annotated[int, Range(2)] = setting(5000, "Compare with at most this many images, drawn by the seed.")


@dataclass(frozen=True)
class AblationSettings(ReconstructionSettings):
    """Settings of `ablation`."""

    size: Count = setting(256, "Image size in pixels, center crop.")
    sides: tuple[Side, ...] | None = setting(
        None, "Sides of the levels, smallest first (1,2,4,8 or 1x2,2x4); by default chosen by the latent's size."
    )
    codebook_size: Annotated[int, Range(2)] = setting(4096, "Number of codes, K.")
    levels: tuple[Count, ...] | None = setting(
        None, "Numbers of levels of the sweep; by default 1, 2, 4, ... and all of them."
    )
    tables: tuple[Literal["ladder", "levels", "starts", "variants", "rivals", "scratch"], ...] = setting(
        ("ladder", "levels", "starts", "rivals"),
        "What is compared: the ladder of ideas, numbers of levels, random starts, variants that are not in the paper, "
        "rivals without training, a VQ-VAE from scratch.",
    )
    seeds: Count = setting(1, "Trainings of each rung, with seeds from --seed on; tables show mean and spread.")
    steps: Natural = setting(200, "Optimizer steps of each rung.")
    batch_size: Count = setting(8, "Images per batch.")
    lr: Positive = setting(5e-4, "Peak learning rate.")
    perceptual_weight: Weight = setting(1.0, PERCEPTUAL_WEIGHT_HELP)
    perceptual_size: Count = setting(128, PERCEPTUAL_SIZE_HELP)
    lora_rank: Count = setting(32, "LoRA rank of the last rung.")
    kmeans_images: Count | None = setting(
        None, "Images for the k-means initialization; by default enough for 128 vectors per code."
    )
    measurements: Natural = setting(
        2, "Measurements while a rung trains: after one half, one quarter, ... of its steps."
    )


PEERS = ("ours", "flattened", "amused", "muse", "unet")


@dataclass(frozen=True)
class PeersSettings(MeasureSettings):
    """Settings of `compare_peers`."""

    peers: tuple[Literal["ours", "flattened", "amused", "muse", "unet"], ...] = setting(
        PEERS,
        "What is compared: our generator, the same flattened into one sequence, UVit2DModel, muse-maskgit-pytorch, "
        "a flow-matching U-Net on pixels.",
    )
    minutes: Positive = setting(20.0, "Minutes that each of them trains; only its steps are counted.")
    steps: Count | None = setting(None, "Train each for so many steps instead; then the figures can be repeated.")
    width: Count = setting(192, "Hidden size of the transformers.")
    depth: Count = setting(6, "Blocks of the transformers.")
    heads: Count = setting(3, "Attention heads of the transformers.")
    batch_size: Count = setting(64, "Images per batch.")
    lr: Positive = setting(5e-4, "Peak learning rate.")
    ema_decay: Fraction = setting(0.9995, "EMA decay. The averaged weights are measured.")
    validation_share: Fraction = setting(
        0.02, "Share of the cache, at most about 1,000 images, that is not trained on; 0 for none."
    )
    num_images: Annotated[int, Range(2)] = setting(1000, "Samples of each, of all classes in turns.")
    sampling_steps: Count = setting(16, "Sampling steps of the transformers; ours takes one per level at least.")
    flow_steps: Count = setting(50, "Sampling steps of the U-Net.")
    guidance: Annotated[float, Range(0, 1000)] = setting(3.0, "Classifier-free guidance scale; 1 turns it off.")
    guidance_schedule: Literal["constant", "linear", "cosine"] = setting(
        "linear", "Guidance from the first step on (constant), or growing from 1."
    )
    limit: Annotated[int, Range(2)] | None = setting(
        None, "Compare with at most this many images of the reference, drawn by the seed."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.heads:
            raise CodaError(f"width {self.width} is not a multiple of {self.heads} heads")
        if not self.peers or len(set(self.peers)) < len(self.peers):
            raise CodaError("peers: expected at least one of them, and each once")


@dataclass(frozen=True)
class SpeedSettings(Settings):
    """Settings of `speed`."""

    codebook_sizes: tuple[Count, ...] = setting((), "More codebook sizes to time every quantizer with.")
    generators: tuple[Literal["pocket", "tiny", "small", "compact", "base", "medium", "large"], ...] = setting(
        (), "Presets of train-maskgit to time on every quantizer's codes: training steps and sampling."
    )
    peers: tuple[Literal["ours", "flattened", "amused", "muse"], ...] = setting(
        (), "Generators on codes to time at the size of each of those presets, as benchmark peers has them."
    )
    size: Count | None = setting(None, "Image size for the tokenizer in pixels; by default its own.")
    batch_size: Count = setting(4, "Images per batch.")
    repeats: Count = setting(3, "Repetitions; the fastest counts, on CUDA the median.")
    seed: Seed = setting(0, "Seed for weights and inputs.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.peers and not self.generators:
            raise CodaError("peers are timed beside generators: name presets in generators, such as medium")


@dataclass(frozen=True)
class TokenizingSpeedSettings(ImageOptions):
    """Settings of `tokenizing_speed`."""

    limit: Count | None = setting(None, "Use only this many images, the first.")
    batch_size: Count = setting(32, "Images per batch.")
    repeats: Count = setting(3, "Repetitions; the fastest counts.")
