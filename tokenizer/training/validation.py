"""Held-out images: which ones they are, how well they are reconstructed, and a sheet that shows it.

Shapes: images (B, 3, H, W) in [-1, 1].
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..foundation.errors import CodaError
from ..foundation.seeding import derived_seed
from ..images import ImageSource, image_batches, open_images, to_pil, to_uint8, to_unit
from ..images.grid import labelled_grid
from ..images.psnr_ssim import psnr
from ..settings import AdaptSettings, RunOptions, VaeSettings
from .optimization import LOG_EVERY
from .perceptual import LiteFeatures, perceptual_loss

VALIDATION_IMAGES = 64  # looked at, and about as many set aside at most
_VALIDATIONS = 10  # in a run, by default
_TRAINED_PER_IMAGE = 48
_SHEET_IMAGES = 8
_BATCH = 16

Reconstruct = Callable[[torch.Tensor], torch.Tensor]


def split_validation(
    data: ImageSource, validation: str | Path | ImageSource | None, share: float, seed: int
) -> tuple[ImageSource, ImageSource]:
    """The images to train on, and those to validate on.

    Args:
        data: All images of the training.
        validation: Images to validate on, as `open_images` takes them; then none of `data` is set aside.
        share: Share of `data` to set aside, as long as that is fewer than about 64 images.
        seed: Seed of the choice. Whether an image is set aside depends only on (seed, index) and the bound.

    Raises:
        CodaError: If nothing is left to train on, or `validation` cannot be used.
    """
    if validation is not None:
        return data, open_images(validation)
    aside = choose_aside(len(data), share, VALIDATION_IMAGES, seed)
    trained, held_out = (data.subset(array("q", np.flatnonzero(places).tobytes())) for places in (~aside, aside))
    return trained, held_out


def choose_aside(n: int, share: float, most: int, seed: int) -> np.ndarray:
    """Which of `n` images to set aside, (n,) bool: about `share` of them, as long as that is fewer than about `most`.

    Raises:
        CodaError: If none is left.
    """
    aside = _uniform(seed, n) < min(share, most / n)
    if share == 1 or aside.all():
        raise CodaError(f"validation_share {share:g} leaves no image to train on; give a smaller one")
    return aside


def validation_interval(every: int | None, steps: int, batch_size: int, held_out: int) -> int:
    """Steps between validations, in a training of so many steps.

    By default ten in a run, but few enough to see one image for every 48 of the training, about 2 % of its time.
    """
    rare = max(steps / _VALIDATIONS, _TRAINED_PER_IMAGE * held_out / batch_size)
    return every or max(LOG_EVERY, math.ceil(rare / LOG_EVERY) * LOG_EVERY)


def _uniform(seed: int, n: int) -> np.ndarray:
    """(n,) numbers in [0, 1): the i-th is a hash of (seed, i), by SplitMix64."""
    z = np.arange(n, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(derived_seed("validation", seed))
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)) / 2**53


class Validation:
    """The first images of a source, cropped at their center and kept in memory.

    Args:
        held_out: Images to validate on; broken ones are left out.
        trained: Images of the training.
        settings: With the size known.
        run: Workers and strictness.

    Attributes:
        what: What the training sees, in words.
    """

    def __init__(
        self, held_out: ImageSource, trained: ImageSource, settings: AdaptSettings | VaeSettings, run: RunOptions
    ) -> None:
        size = settings.size
        assert size is not None
        self._every, self._batch_size = settings.validate_every, settings.batch_size
        chosen = range(min(len(held_out), VALIDATION_IMAGES))
        batches = image_batches(held_out, size, _BATCH, chosen, workers=run.workers, strict=run.strict)
        self._pixels = [batch.pixels for batch in batches]
        self._features: LiteFeatures | None = None
        if len(self):
            with torch.random.fork_rng(devices=[]):  # its initial weights are drawn, although they are replaced
                self._features = LiteFeatures()
        height, width = (size, size) if isinstance(size, int) else size
        images = f"{settings.batch_size} of {len(trained):,} images at {height}x{width} pixels"
        self.what = f"{images} a step, {len(self)} held out"

    def __len__(self) -> int:
        return sum(map(len, self._pixels))

    def interval(self, steps: int) -> int:
        """Steps between validations, in a training of so many steps: see `validation_interval`."""
        return validation_interval(self._every, steps, self._batch_size, len(self))

    @torch.no_grad()
    def measure(
        self, reconstruct: Reconstruct, device: torch.device, label: str
    ) -> tuple[dict[str, float], Image.Image]:
        """PSNR (dB, mean over images) and perceptual distance of reconstructions, and a sheet of the first few.

        Args:
            reconstruct: From images to reconstructions, on `device`. It must leave the model as it was.
            device: Where the model is.
            label: What to write above the reconstructions on the sheet.
        """
        assert self._features is not None and self._pixels
        features = self._features.to(device)
        similarity, distance, shown = 0.0, 0.0, []
        for pixels in self._pixels:
            images = to_unit(pixels.to(device))
            made = reconstruct(images).float()
            distance += len(pixels) * float(perceptual_loss(features, made.clamp(-1, 1), images))
            similarity += float(psnr(to_uint8(made).cpu(), pixels).sum())
            shown.append(to_uint8(made[:_SHEET_IMAGES]).cpu())
        originals, made = self._pixels[0][:_SHEET_IMAGES], shown[0]
        labels = ["original"] * len(originals) + [label] * len(made)
        sheet = labelled_grid([to_pil(image) for image in (*originals, *made)], labels, columns=len(originals))
        return {
            "validation_psnr": similarity / len(self),
            "validation_perceptual": distance / len(self),
        }, sheet
