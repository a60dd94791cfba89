"""What rungs start from: a normalized VAE, its latents on training images, and codebooks of residual k-means.

Rungs with the same levels and the same seed start from the same codebook, which is fitted once and kept on the disk.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from coda.tokenizer.foundation.atomic_io import save_tensors
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.foundation.seeding import step_generator
from coda.tokenizer.images import ImageSource, image_batches, to_unit
from coda.tokenizer.layout import CodeLayout
from coda.tokenizer.quantizer.kmeans import residual_kmeans
from coda.tokenizer.settings import AdaptSettings, RunOptions
from coda.tokenizer.vae.continuous_vae import ContinuousVAE, measure_normalization
from coda.tokenizer.vae.sensitivity import METRIC_IMAGES, decoder_metric

_STATISTICS_IMAGES = 256
_MOST_KEPT = 1 << 30  # bytes of latents


class Codebook(NamedTuple):
    """vectors: (K, C). metric: (C, C), by which latents were multiplied before. seconds: of encoding and fitting."""

    vectors: torch.Tensor
    metric: torch.Tensor | None
    seconds: float


class Starts:
    """The starting points of all rungs of one ablation, and what else they share.

    Args:
        vae: Frozen, on the device that does the work; normalized here if it is not.
        source: Training images.
        folder: Where codebooks are kept.
        settings: Settings of all trainings; size and kmeans_images are known.
        run: Workers and strictness.

    Attributes:
        images: Number of images that k-means sees.
    """

    def __init__(
        self, vae: ContinuousVAE, source: ImageSource, folder: Path, settings: AdaptSettings, run: RunOptions
    ) -> None:
        assert settings.kmeans_images is not None
        self.source, self.settings, self.run, self._folder = source, settings, run, folder
        self.images, self.device = min(settings.kmeans_images, len(source)), vae.device
        self.vae = measure_normalization(vae, self._batches(0, _STATISTICS_IMAGES)) if vae.is_unnormalized else vae
        self._latents = lru_cache(maxsize=1)(self._encoded)
        self._steps: dict[int, tuple[torch.Tensor, float]] = {}
        self._steps_seed, self._steps_bytes = 0, 0

    def codebook(self, layout: CodeLayout, seed: int, metric: str = "latent") -> Codebook:
        """The codebook of residual k-means on these levels, of latents or of latents times the "decoder" metric."""
        path = self._folder / f"levels-{layout.num_levels:02d}-{metric}-seed-{seed}.safetensors"
        if not path.exists():
            latents, encoding = self._latents(seed)
            began, tensors = time.perf_counter(), {}
            if metric == "decoder":
                tensors["metric"] = decoder_metric(self.vae, latents[:METRIC_IMAGES], seed)
                latents = torch.einsum("ij,njhw->nihw", tensors["metric"], latents)
            tensors["vectors"] = residual_kmeans(latents, layout.sides, layout.codebook_size, seed=seed)
            tensors["seconds"] = torch.tensor(encoding + time.perf_counter() - began, dtype=torch.float64)
            save_tensors(path, tensors)
        found = load_file(path)
        return Codebook(found["vectors"].to(self.device), found.get("metric"), float(found["seconds"]))

    @torch.no_grad()
    def drawn_codebook(self, vae: ContinuousVAE, codebook_size: int, seed: int) -> torch.Tensor:
        """Cells of another VAE's latents, drawn at random, (K, C)."""
        latents = torch.cat([vae.encode(images) for images in self._batches(seed, min(codebook_size, self.images))])
        vectors = latents.movedim(1, -1).flatten(0, 2)
        drawn = torch.randint(len(vectors), (codebook_size,), generator=step_generator(seed, 0, "drawn codebook"))
        return vectors[drawn.to(vectors.device)]

    def moments(self, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each channel of the latents, (C,) each."""
        channels = self._latents(seed)[0].movedim(1, 0).flatten(1)
        return channels.mean(dim=1), channels.std(dim=1).clamp(min=1e-6)

    @torch.no_grad()
    def encode_step(self, images: torch.Tensor, seed: int, step: int) -> tuple[torch.Tensor, float]:
        """Latents of the images of one training step, and the seconds that were saved: rungs see the same images.

        Those of the latest seed are kept in memory while there is room.
        """
        if seed != self._steps_seed:
            self._steps, self._steps_seed, self._steps_bytes = {}, seed, 0
        if step in self._steps:
            return self._steps[step]
        began = time.perf_counter()
        latents = self.vae.encode(images)
        if self._steps_bytes < _MOST_KEPT:
            self._steps[step] = latents, time.perf_counter() - began
            self._steps_bytes += latents.nbytes
        return latents, 0.0

    @torch.no_grad()
    def _encoded(self, seed: int) -> tuple[torch.Tensor, float]:
        """Latents (N, C, h, w) of the images for k-means, and the seconds that they took."""
        began = time.perf_counter()
        latents = torch.cat([self.vae.encode(images) for images in self._batches(seed, self.images)])
        return latents, time.perf_counter() - began

    def _batches(self, seed: int, count: int) -> Iterator[torch.Tensor]:
        """Training images drawn by the seed, (B, 3, H, W) in [-1, 1]."""
        settings, generator = self.settings, step_generator(seed, 0, "k-means images")
        assert settings.size is not None
        order = torch.randperm(len(self.source), generator=generator)[:count].tolist()
        batches = image_batches(
            self.source, settings.size, settings.batch_size, order, workers=self.run.workers, strict=self.run.strict
        )
        with progress("Encoding images for the start", total=len(order), unit="images") as bar:
            for batch in batches:
                yield to_unit(batch.pixels.to(self.device))
                bar.advance(len(batch))
