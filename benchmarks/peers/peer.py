"""The interface that `compare_peers` asks of a generator: a loss of a batch, and samples of classes.

B images · T cells of all levels · N cells of one sequence · M masked cells · K codes · L levels · F features
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from coda.generator import MaskGitScheduler
from coda.generator.masking import TrainingDraw, draw_training
from coda.generator.sampling import Predict
from coda.generator.settings import MaskGitSettings
from coda.tokenizer.code_cache import CodeCache
from coda.tokenizer.foundation.seeding import step_generator
from coda.tokenizer.layout import CodeLayout

from ..settings import PeersSettings

_LOGITS_AT_ONCE = 1 << 24  # logits that sampling draws from at a time, rows × K float32: 64 MiB
_BATCH = 64  # held-out images at a time
_DRAWS = 4  # masks of each held-out image


@dataclass(frozen=True)
class PeerSetup:
    """Sizes, codes and settings that all peers are made from.

    Attributes:
        layout: Layout of the codes.
        value_table: Values (K, C) of the codes.
        num_classes: Number of classes; the index of no class.
        size: (H, W) of the images in pixels.
        settings: Width, depth, heads, guidance, steps, seed.
    """

    layout: CodeLayout
    value_table: torch.Tensor
    num_classes: int
    size: tuple[int, int]
    settings: PeersSettings

    @classmethod
    def of(cls, cache: CodeCache, size: tuple[int, int], settings: PeersSettings) -> PeerSetup:
        """The setup for the codes of a cache."""
        return cls(cache.layout, cache.value_table, cache.num_classes, size, settings)

    @property
    def generator_settings(self) -> MaskGitSettings:
        """Settings of `train_maskgit`, whose mask law, class dropout and the like hold for all that learn codes."""
        chosen = self.settings
        return MaskGitSettings(
            hidden_size=chosen.width,
            depth=chosen.depth,
            num_heads=chosen.heads,
            batch_size=chosen.batch_size,
            lr=chosen.lr,
            ema_decay=chosen.ema_decay,
            validation_share=chosen.validation_share,
            seed=chosen.seed,
        )

    @property
    def mlp_width(self) -> int:
        """Width of a gated MLP as ours has it: 8/3 of the hidden size, a multiple of 8."""
        return max(8, round(self.settings.width * 8 / 3 / 8) * 8)

    def scheduler(self, steps: int) -> MaskGitScheduler:
        """Our sampler with so many steps, as `train_maskgit` saves it but for steps and guidance."""
        return MaskGitScheduler(
            num_inference_steps=steps,
            mask_schedule=self.generator_settings.mask_law,
            step_share="equal",
            guidance_scale=self.settings.guidance,
            guidance_schedule=self.settings.guidance_schedule,
        )


class Peer(nn.Module, ABC):
    """A generator; its weights are drawn from torch's global random state.

    Attributes:
        title: Its name in the table.
        learns: What a batch holds: codes (B, T) int64, or images (B, 3, H, W) in [-1, 1]. It samples the same.
        sampling_steps: Steps that a sample takes.
    """

    title: ClassVar[str]
    learns: ClassVar[Literal["codes", "images"]]
    sampling_steps: int

    def __init__(self, setup: PeerSetup) -> None:
        super().__init__()
        self.setup = setup
        self.none = setup.num_classes  # index of no class

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Number of weights that are trained."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    @abstractmethod
    def loss(self, batch: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        """Loss of one batch, a scalar with gradient; its random choices follow from (seed, step).

        Args:
            batch: What the peer learns, on its device.
            labels: (B,) int64 in [0, num_classes); -1 for no class.
            step: Number of the step.
        """

    @abstractmethod
    def sample(self, labels: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
        """Samples of classes, -1 for no class: codes (B, T) int64, or images (B, 3, H, W) in [-1, 1].

        The same labels and seeds give the same samples. Some peers draw for a batch at once: then a sample depends on
        the labels and seeds of its batch.
        """

    def held_out_loss(self, cache: CodeCache, samples: torch.Tensor) -> float | None:
        """Loss of held-out samples of a cache that is comparable between peers; None if there is none."""
        return None

    def _indices(self, labels: Sequence[int]) -> torch.Tensor:
        """Labels as class indices (B,), with the index of no class for -1."""
        given = torch.tensor(list(labels), device=self.device)
        return torch.where(given < 0, self.none, given)


class CodePeer(Peer):
    """A generator that learns to fill masked cells.

    Args:
        setup: What all peers are made from.
        mask_layout: Levels whose cells are masked and filled together; one for a generator of one flat sequence.
    """

    learns = "codes"
    corruption = 0.0  # largest share of an image's codes that are replaced before prefix latents are computed

    def __init__(self, setup: PeerSetup, mask_layout: CodeLayout) -> None:
        super().__init__(setup)
        self.mask_layout = mask_layout
        # Every level takes a step, and every step fills a cell.
        steps = max(setup.settings.sampling_steps, mask_layout.num_levels)
        self.sampling_steps = min(steps, mask_layout.num_tokens)

    def loss(self, batch: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        """Loss of codes (B, T) at cells that are masked by the same law for all peers."""
        settings = self.setup.generator_settings
        draw = draw_training(
            self.mask_layout, len(batch), step_generator(settings.seed, step),
            settings.mask_law, self.corruption, settings.class_dropout,
        )  # fmt: skip
        return self.masked_loss(batch, labels, draw.to(batch.device))

    @abstractmethod
    def masked_loss(self, codes: torch.Tensor, labels: torch.Tensor, draw: TrainingDraw) -> torch.Tensor:
        """Training loss at the masked cells, a scalar."""

    @abstractmethod
    def row_losses(self, codes: torch.Tensor, labels: torch.Tensor, draw: TrainingDraw) -> torch.Tensor:
        """Cross-entropy (M,) in nats of the cells `draw.cells`, without gradient."""

    @torch.no_grad()
    def held_out_loss(self, cache: CodeCache, samples: torch.Tensor) -> float | None:
        """Upper bound of -log p(codes | class) in nats per code, over samples (N,) of a cache; None for none.

        A generator that fills masked cells can fill them one by one in any order, and so has a likelihood. With n
        cells in a level, j of them masked at random and j uniform from 1 to n, n · E[mean cross-entropy at the masked
        cells] bounds the level's -log p (order-agnostic models, arXiv 2110.02037, Section 3). Levels add up, each given
        those before it. So the bounds of a generator by levels and of one of a flat sequence are of the same quantity.
        """
        if not len(samples):
            return None
        cells_of_level = [h * w for h, w in self.mask_layout.sides]
        level_of_cell = torch.repeat_interleave(torch.tensor(cells_of_level))
        weights = torch.tensor(cells_of_level, dtype=torch.float64)
        total = 0.0
        for number, chosen in enumerate(samples.repeat(_DRAWS).split(_BATCH)):
            codes, labels = cache.batch(chosen)
            # A linear law makes the number of masked cells uniform.
            draw = draw_training(self.mask_layout, len(codes), step_generator(0, number, "held out"), "linear")
            rows = self.row_losses(codes.to(self.device), labels.to(self.device), draw.to(self.device))
            image, cell = draw.cells // len(level_of_cell), draw.cells % len(level_of_cell)
            place = image * len(weights) + level_of_cell[cell]
            sums, counts = (
                torch.zeros(len(codes) * len(weights), dtype=torch.float64).index_add_(0, place, values)
                for values in (rows.double().cpu(), torch.ones(len(place), dtype=torch.float64))
            )
            total += float(((sums / counts).view(len(codes), -1) * weights).sum())
        return total / (_DRAWS * len(samples) * len(level_of_cell))


def flat_layout(layout: CodeLayout) -> CodeLayout:
    """One level that holds the cells of all levels, in their order."""
    return CodeLayout([(1, layout.num_tokens)], layout.codebook_size)


class FlatPeer(CodePeer):
    """A generator that sees all levels as one sequence of T cells, with one mask over all of it.

    Samples are filled by our sampler, as one level: the most confident cells first.
    """

    def __init__(self, setup: PeerSetup) -> None:
        super().__init__(setup, flat_layout(setup.layout))

    @abstractmethod
    def features(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Features (B, T, F) of codes (B, T), K where masked, and class indices (B,), num_classes for none."""

    def head(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (…, K) float32 of features (…, F), linear in them; by default the features are the logits."""
        return features.float()

    def _masked_features(self, codes: torch.Tensor, labels: torch.Tensor, draw: TrainingDraw) -> torch.Tensor:
        """Features (M, F) of the masked cells."""
        labels = torch.where(draw.unconditional | (labels < 0), self.none, labels)
        masked = codes.masked_fill(draw.masked, self.mask_layout.codebook_size)
        return self.features(masked, labels).flatten(0, 1)[draw.cells]

    def masked_loss(self, codes: torch.Tensor, labels: torch.Tensor, draw: TrainingDraw) -> torch.Tensor:
        """Mean cross-entropy at the masked cells, a scalar."""
        return F.cross_entropy(self.head(self._masked_features(codes, labels, draw)), codes.flatten()[draw.cells])

    def row_losses(self, codes: torch.Tensor, labels: torch.Tensor, draw: TrainingDraw) -> torch.Tensor:
        """Cross-entropy (M,) in nats of the cells `draw.cells`, without gradient."""
        logits = self.head(self._masked_features(codes, labels, draw))
        return F.cross_entropy(logits, codes.flatten()[draw.cells], reduction="none").detach()

    def predictor(self, labels: torch.Tensor) -> Predict:
        """The function that `sample_codes` calls, for images of class indices (B,)."""
        without = torch.full_like(labels, self.none)

        def predict(
            codes: torch.Tensor, prefix: torch.Tensor, level: int, cells: torch.Tensor, scale: float
        ) -> Iterable[torch.Tensor]:
            if scale == 1:
                features = self.features(codes, labels)
            else:
                both = self.features(codes.repeat(2, 1), torch.cat([labels, without]))
                conditional, unconditional = both.chunk(2)
                features = torch.lerp(unconditional, conditional, scale)
            rows = features.gather(1, cells[..., None].expand(-1, -1, features.shape[2])).flatten(0, 1)
            return map(self.head, rows.split(max(1, _LOGITS_AT_ONCE // self.mask_layout.codebook_size)))

        return predict

    @torch.no_grad()
    def sample(self, labels: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
        """Codes (B, T) int64; each image depends on its own label and seed alone."""
        no_values = torch.zeros(self.mask_layout.codebook_size, 1, device=self.device)  # there is no prefix latent
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        predict = self.predictor(self._indices(labels))
        scheduler = self.setup.scheduler(self.sampling_steps)
        return scheduler.sample(predict, self.mask_layout, no_values, generators)
