"""Held-out codes: which ones they are, their loss under masks that are always the same, and what it says at the end.

B images · T cells of all levels · L levels
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from coda.tokenizer.code_cache import CodeCache
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.seeding import step_generator
from coda.tokenizer.layout import CodeLayout
from coda.tokenizer.training.validation import choose_aside, validation_interval

from .masking import TrainingDraw, draw_training
from .objective import level_weights
from .settings import MaskGitSettings

_MOST_IMAGES = 1_000  # looked at, and about as many set aside at most
_BATCH = 64
_PAST_BEST = 1.01  # times the lowest loss: what is called past its best

LevelLosses = Callable[[Iterable[tuple[torch.Tensor, torch.Tensor, TrainingDraw]]], list[torch.Tensor]]


def split_samples(cache: CodeCache, settings: MaskGitSettings) -> tuple[torch.Tensor, torch.Tensor]:
    """The samples of a cache to train on, and those to validate on, both int64; variants of an image stay together.

    Raises:
        CodaError: If nothing is left to train on.
    """
    aside = choose_aside(cache.num_images, settings.validation_share, _MOST_IMAGES, settings.seed)
    samples = torch.from_numpy(aside).repeat_interleave(cache.num_variants)
    return torch.nonzero(~samples)[:, 0], torch.nonzero(samples)[:, 0]


class CodeValidation:
    """Held-out codes and labels: all variants of at most about 1,000 images.

    Args:
        cache: Where they are.
        samples: Which samples of it are held out.
        trained: Number of samples of the training.
        settings: The training's.

    Attributes:
        what: What the training sees, in words.
    """

    def __init__(self, cache: CodeCache, samples: torch.Tensor, trained: int, settings: MaskGitSettings) -> None:
        self.what = f"{settings.batch_size} of the codes of {trained:,} images a step, {len(samples):,} held out"
        self._cache, self._samples, self._settings = cache, samples, settings

    def __len__(self) -> int:
        return len(self._samples)

    def interval(self, steps: int) -> int:
        """Steps between validations, in a training of so many steps."""
        return validation_interval(self._settings.validate_every, steps, self._settings.batch_size, len(self))

    @torch.no_grad()
    def measure(self, losses: LevelLosses, device: torch.device, label: str) -> tuple[dict[str, float], None]:
        """Loss per level (nats per masked cell) and their mean by the training's weights, without smoothing.

        Prefixes are clean, no class is dropped, and the masks are the same every time.

        Args:
            losses: From (codes, labels, draw) of some batches, on `device`, to their losses per level.
            device: Where the model is.
            label: Not used; there is no sheet.
        """
        layout, law = self._cache.layout, self._settings.mask_law
        batches, cells = [], []
        for number, samples in enumerate(self._samples.split(_BATCH)):
            codes, labels = self._cache.batch(samples)
            draw = draw_training(layout, len(codes), step_generator(0, number, "validation"), law).to(device)
            batches.append((codes.to(device), labels.to(device), draw))
            cells.append(draw.mean_masked * len(codes))
        weighted = torch.stack([mean * masked for mean, masked in zip(losses(batches), cells, strict=True)])
        levels = (weighted.sum(dim=0) / torch.stack(cells).sum(dim=0)).tolist()
        weights = level_weights(self._settings.level_weights, layout)
        total = sum(weight * level for weight, level in zip(weights, levels, strict=True))
        return {"validation_loss": total, **{f"validation_loss_level_{i}": loss for i, loss in enumerate(levels)}}, None


def validation_of(
    cache: CodeCache, other: str | Path | CodeCache | None, settings: MaskGitSettings
) -> tuple[torch.Tensor, CodeValidation]:
    """The samples to train on, and the validation: on a share of the cache, or on another one.

    Raises:
        CodaError: If the other cache holds codes of another tokenizer, or nothing is held out to choose the best by.
    """
    if other is None:
        trained, samples = split_samples(cache, settings)
        validation = CodeValidation(cache, samples, len(trained), settings)
    else:
        held_out = other if isinstance(other, CodeCache) else CodeCache(other)
        if (held_out.layout, held_out.tokenizer_fingerprint) != (cache.layout, cache.tokenizer_fingerprint):
            raise CodaError(f"{held_out.path} holds codes of another tokenizer than {cache.path}")
        trained, images = torch.arange(len(cache)), torch.arange(held_out.num_images)
        chosen = images[:: max(1, len(images) // _MOST_IMAGES)] * held_out.num_variants
        samples = (chosen[:, None] + torch.arange(held_out.num_variants)).flatten()
        validation = CodeValidation(held_out, samples, len(trained), settings)
    if settings.keep == "best" and not len(validation):
        raise CodaError("keep best needs held-out codes: a larger validation_share, or another cache to validate on")
    return trained, validation


def lowest_loss(log: Sequence[dict[str, Any]]) -> float:
    """The lowest validation loss in a log, not counting that of the start."""
    return min((line["validation_loss"] for line in log if _is_validated(line)), default=math.inf)


def _is_validated(line: dict[str, Any]) -> bool:
    return "validation_loss" in line and line["step"] > 0


def describe_best(log: Sequence[dict[str, Any]], layout: CodeLayout, keep: str) -> str:
    """Where the validation loss was lowest, and which levels of the weights that are kept are past their best."""
    lines = list(filter(_is_validated, log))
    if not lines:
        return ""
    best = min(lines, key=lambda line: line["validation_loss"])
    kept, past = best if keep == "best" else lines[-1], []
    for level, (height, width) in enumerate(layout.sides):
        name = f"validation_loss_level_{level}"
        excess = kept[name] / max(1e-12, min(line[name] for line in lines))
        past += [f"{height}x{width} (by {100 * (excess - 1):.1f} %)"] if excess > _PAST_BEST else []
    where = f"{'kept' if keep == 'best' else 'lowest'} {best['validation_loss']:.4g} at step {best['step']:,}"
    return f"{where}; levels past their best by more than 1 %: {', '.join(past) or 'none'}"
