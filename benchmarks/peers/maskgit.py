"""Our masked transformer: level by level as `train_maskgit` trains it, and flattened into one sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from coda.generator.blocks import Attention, Block, LevelAttentionProcessor
from coda.generator.masking import TrainingDraw
from coda.generator.objective import MaskedCodeObjective, chunked_cross_entropy
from coda.generator.train_maskgit import new_transformer
from coda.generator.transformer import MaskGitTransformer
from coda.tokenizer.quantizer.resampling import prefix_latents

from .peer import CodePeer, FlatPeer, PeerSetup


class LevelPeer(CodePeer):
    """`MaskGitTransformer` with the objective and the defaults of `train_maskgit`: one level after the other.

    Attention is within a level, and what earlier levels say comes as a prefix latent.
    """

    title = "ours, level by level"

    def __init__(self, setup: PeerSetup) -> None:
        super().__init__(setup, setup.layout)
        settings = setup.generator_settings
        self.corruption = settings.corruption
        self.objective = MaskedCodeObjective(_new_transformer(setup), settings.level_weights)

    def masked_loss(self, codes: torch.Tensor, labels: torch.Tensor, draw: TrainingDraw) -> torch.Tensor:
        """The objective of `train_maskgit`, a scalar."""
        return self.objective(codes, labels, draw).loss

    def row_losses(self, codes: torch.Tensor, labels: torch.Tensor, draw: TrainingDraw) -> torch.Tensor:
        """Cross-entropy (M,) in nats of the cells `draw.cells`, given the true codes of earlier levels."""
        model, layout = self.objective.transformer, self.mask_layout
        prefixes = prefix_latents(codes, layout, model.value_table.float())[:-1]
        indices = torch.where(labels < 0, self.none, labels)
        features = model(codes.masked_fill(draw.masked, layout.codebook_size), prefixes, indices).features
        return _cross_entropy(model, features, codes, draw)[1]

    @torch.no_grad()
    def sample(self, labels: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
        """Codes (B, T) int64; each image depends on its own label and seed alone."""
        model = self.objective.transformer
        predict = model.predictor([None if label < 0 else label for label in labels])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        scheduler = self.setup.scheduler(self.sampling_steps)
        return scheduler.sample(predict, self.mask_layout, model.value_table, generators)


class FlattenedPeer(FlatPeer):
    """`MaskGitTransformer` with the same weights, but all T cells are one sequence under one mask.

    Every cell attends to all others, so no prefix latent is needed: it is zero throughout. Positions and levels are
    embedded as before.
    """

    title = "ours, flattened"

    def __init__(self, setup: PeerSetup) -> None:
        super().__init__(setup)
        self.transformer = _new_transformer(setup)
        for block in self.transformer.blocks:
            assert isinstance(block, Block)
            block.attention.processor = SequenceAttentionProcessor()

    def features(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Features (B, T, D) of codes (B, T), K where masked."""
        model = self.transformer
        nothing = model.value_table.new_zeros(1, model.value_table.shape[1], 1, 1)
        return model(codes, [nothing] * self.setup.layout.num_levels, labels).features

    def head(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (…, K) float32."""
        return self.transformer.logits(features)

    def masked_loss(self, codes: torch.Tensor, labels: torch.Tensor, draw: TrainingDraw) -> torch.Tensor:
        """Mean cross-entropy at the masked cells, a scalar, in chunks as ours level by level."""
        return self._cross_entropy(codes, labels, draw)[0]

    def row_losses(self, codes: torch.Tensor, labels: torch.Tensor, draw: TrainingDraw) -> torch.Tensor:
        """Cross-entropy (M,) in nats of the cells `draw.cells`."""
        return self._cross_entropy(codes, labels, draw)[1]

    def _cross_entropy(
        self, codes: torch.Tensor, labels: torch.Tensor, draw: TrainingDraw
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return _cross_entropy(self.transformer, self._masked_features(codes, labels, draw), codes, draw)


class SequenceAttentionProcessor(LevelAttentionProcessor):
    """Attention over all packed cells, whatever their level."""

    def __call__(self, attn: Attention, hidden: torch.Tensor, cells: Sequence[int]) -> torch.Tensor:
        """Attend over all N cells: (B, N, D) -> (B, N, D)."""
        return super().__call__(attn, hidden, [hidden.shape[1]])


def _new_transformer(setup: PeerSetup) -> MaskGitTransformer:
    return new_transformer(setup.layout, setup.value_table, setup.num_classes, setup.generator_settings)


def _cross_entropy(
    model: Any, features: torch.Tensor, codes: torch.Tensor, draw: TrainingDraw
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and rows (M,) of the cross-entropy at the masked cells, of features (M, D) of these or (B, T, D) of all."""
    rows = features if features.ndim == 2 else features.flatten(0, 1)[draw.cells]
    weights = torch.full((len(rows),), 1 / len(rows), device=rows.device)
    return chunked_cross_entropy(rows, model.code_embedding.weight, codes.flatten()[draw.cells], weights)
