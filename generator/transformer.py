"""The masked transformer over residual codes (MaskGIT, arXiv 2202.04200, level by level).

It knows integers and the value table only: codes in, features and logits over codes out. No VAE, no pixels.

    B images · T cells of all levels · N packed cells of the given levels · V levels given, of L · K codes
    D hidden size · C channels and (h, w) grid of the latent

The integer K stands for a masked cell, the class `num_classes` for no class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionMixin
from torch import nn

from coda.tokenizer.foundation.bounds import check_integer, check_number
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.strict_loading import StrictModel
from coda.tokenizer.layout import CodeLayout
from coda.tokenizer.quantizer.resampling import downsample

from .blocks import POSITION_FEATURES, Block, Modulation, modulated_norm, position_features
from .sampling import Predict

_LOGITS_AT_ONCE = 1 << 24  # logits that sampling computes at a time, rows × K float32: 64 MiB
_LARGEST_SIZE = 16_384  # of channels and widths
_MOST_LAYERS = 1_000
_MOST_CLASSES = 1_000_000
_MOST_PARAMETERS = 10**10


@dataclass(frozen=True)
class MaskGitOutput:
    """Output of `MaskGitTransformer`.

    Attributes:
        features: (B, N, D); `MaskGitTransformer.logits` turns rows of them into logits over the codes. Logits are
            computed only where they are needed: (B, N, K) would not fit into memory at K = 65,536.
    """

    features: torch.Tensor


class MaskGitTransformer(StrictModel, AttentionMixin):  # type: ignore[misc]  # two config names
    """Predicts masked codes of a level from its other codes, the prefix latent of earlier levels, and the class.

    Args:
        sides: Grid of each level, numbers or (h, w) pairs (see `CodeLayout`).
        codebook_size: K.
        latent_channels: C, width of the value table.
        num_classes: Number of classes; one more embedding stands for no class.
        hidden_size: D.
        depth: Number of blocks.
        num_heads: Number of attention heads; divides `hidden_size`.
        mlp_ratio: Width of the SwiGLU relative to `hidden_size`; 8/3 costs as much as a plain MLP of ratio 4.
        modulation_rank: R, width of the bottleneck in every block's modulation; by default an eighth of D.
        class_labels: Classes in the training data; None for all.
        class_names: Name of each class, if they are known.
        tokenizer_fingerprint: Fingerprint of the tokenizer that made the codes.
        dropout: Dropout in the blocks while training.

    Raises:
        CodaError: If a size is out of bounds; nothing has been allocated then.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules: Any = ["Block"]  # noqa: RUF012  diffusers declares it so
    _gradient_checkpointing_func: Any
    value_table: torch.Tensor
    positions: torch.Tensor

    @register_to_config
    def __init__(
        self,
        sides: Sequence[int | Sequence[int]],
        codebook_size: int,
        latent_channels: int,
        num_classes: int,
        hidden_size: int = 256,
        depth: int = 8,
        num_heads: int = 4,
        mlp_ratio: float = 8 / 3,
        modulation_rank: int | None = None,
        class_labels: list[int] | None = None,
        class_names: list[str] | None = None,
        tokenizer_fingerprint: str | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layout = CodeLayout(sides, codebook_size)
        check_integer("latent_channels", latent_channels, 1, _LARGEST_SIZE)
        check_integer("num_classes", num_classes, 0, _MOST_CLASSES)
        check_integer("hidden_size", hidden_size, 1, _LARGEST_SIZE)
        check_integer("depth", depth, 1, _MOST_LAYERS)
        check_integer("num_heads", num_heads, 1, hidden_size)
        check_number("mlp_ratio", mlp_ratio, positive=True)
        check_number("dropout", dropout, low=0)
        rank = max(8, hidden_size // 8) if modulation_rank is None else modulation_rank
        check_integer("modulation_rank", rank, 1, _LARGEST_SIZE)
        mlp_width = check_integer("mlp width", max(8, round(hidden_size * mlp_ratio / 8) * 8), 8, 64 * _LARGEST_SIZE)
        if hidden_size % num_heads:
            raise CodaError(f"hidden size {hidden_size} is not a multiple of the {num_heads} attention heads")
        parameters = hidden_size * (depth * (4 * hidden_size + 3 * mlp_width + 7 * rank) + codebook_size + num_classes)
        if parameters > _MOST_PARAMETERS:
            raise CodaError(f"these sizes give {parameters:,} parameters; the limit is {_MOST_PARAMETERS:,}")
        _check_classes(num_classes, class_labels, class_names)
        if not isinstance(tokenizer_fingerprint, str | None):
            raise CodaError("tokenizer_fingerprint is not text")
        self.class_labels = tuple(range(num_classes)) if class_labels is None else tuple(class_labels)
        self.class_names = None if class_names is None else tuple(class_names)
        self.tokenizer_fingerprint = tokenizer_fingerprint

        self.code_embedding = nn.Embedding(codebook_size, hidden_size)  # also the head
        self.mask_embedding = nn.Parameter(torch.empty(hidden_size))
        self.level_embedding = nn.Embedding(self.layout.num_levels, hidden_size)
        self.class_embedding = nn.Embedding(num_classes + 1, hidden_size)
        self.prefix_projection = nn.Linear(latent_channels, hidden_size, bias=False)
        self.position_projection = nn.Linear(POSITION_FEATURES, hidden_size, bias=False)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, mlp_width, rank, dropout) for _ in range(depth))
        self.modulation_out = Modulation(hidden_size, rank, parts=2)
        self.register_buffer("value_table", torch.zeros(codebook_size, latent_channels))
        positions = torch.cat([position_features(side) for side in self.layout.sides])
        self.register_buffer("positions", positions, persistent=False)  # (T, features), follows from the sides
        self.gradient_checkpointing = False
        self._initialize()

    def _initialize(self) -> None:
        """Unit variance for every part of the input and for the logits; every block the identity (adaLN-zero)."""
        width = self.code_embedding.embedding_dim
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
        nn.init.normal_(self.code_embedding.weight, std=width**-0.5)
        nn.init.normal_(self.mask_embedding)
        nn.init.normal_(self.position_projection.weight, std=(POSITION_FEATURES / 2) ** -0.5)
        nn.init.normal_(self.prefix_projection.weight, std=self.prefix_projection.in_features**-0.5)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module.up.weight)

    @torch.no_grad()
    def set_value_table(self, value_table: torch.Tensor) -> None:
        """Copy the tokenizer's value table (K, C)."""
        if value_table.shape != self.value_table.shape:
            shapes = tuple(value_table.shape), tuple(self.value_table.shape)
            raise CodaError("the value table is {}; the generator's codes need {}".format(*shapes))
        self.value_table.copy_(value_table)

    @torch.no_grad()
    def initialize_embedding(self, value_table: torch.Tensor) -> None:
        """Set the value table (K, C), and start codes of similar values with similar embeddings.

        Half of an embedding's variance becomes a random projection of its value, half stays as it was. On codes of
        64-pixel images (K 1,024, width 128, 160 steps of 16) the validation loss was 6.11 with it, 6.16 without.
        """
        self.set_value_table(value_table)
        embedding = self.code_embedding.weight
        projection = torch.randn(value_table.shape[1], embedding.shape[1]).to(embedding)
        projected = self.value_table @ projection
        projected *= embedding.std() / projected.std().clamp(min=1e-12)
        embedding.copy_((embedding + projected) * 0.5**0.5)

    def forward(
        self,
        codes: torch.Tensor,
        prefixes: Sequence[torch.Tensor],
        class_labels: torch.Tensor,
        levels: Sequence[int] | None = None,
    ) -> MaskGitOutput:
        """Features of every cell of the given levels; no level attends to another.

        Args:
            codes: (B, N) int64, level by level; K where a cell is masked.
            prefixes: V prefix latents (B, C, h, w), the sum of the levels before each level.
            class_labels: (B,) int64 in [0, num_classes]; num_classes is no class.
            levels: The V levels packed into `codes`; all of them by default.
        """
        levels = range(self.layout.num_levels) if levels is None else levels
        grids, offsets = [self.layout.sides[level] for level in levels], self.layout.offsets
        cells = [h * w for h, w in grids]
        level_of_cell = torch.cat([codes.new_full((n,), v) for v, n in enumerate(cells)])  # (N,) in [0, V)
        positions = torch.cat([self.positions[offsets[level] : offsets[level + 1]] for level in levels])
        downsampled = [downsample(prefix, grid).flatten(2).mT for prefix, grid in zip(prefixes, grids, strict=True)]
        dtype = self.prefix_projection.weight.dtype

        level_embedding = torch.stack([self.level_embedding.weight[level] for level in levels])  # (V, D)
        hidden = self._embed(codes)
        hidden = hidden + self.prefix_projection(torch.cat(downsampled, dim=1).to(dtype))
        hidden = hidden + (self.position_projection(positions.to(dtype)) + level_embedding[level_of_cell])
        condition = F.silu(self.class_embedding(class_labels)[:, None] + level_embedding)  # (B, V, D)
        numbers = torch.arange(len(levels), device=codes.device)
        one_hot = (level_of_cell[:, None] == numbers).to(hidden.dtype)  # (N, V); F.one_hot would wait for the device
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden = self._gradient_checkpointing_func(block, hidden, condition, cells, one_hot)
            else:
                hidden = block(hidden, condition, cells, one_hot)
        return MaskGitOutput(modulated_norm(hidden, *self.modulation_out(condition, one_hot)))

    def _embed(self, codes: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, N, D) of unit variance, of codes (B, N) that are K where masked."""
        masked = codes == self.layout.codebook_size
        embedded = self.code_embedding(codes.masked_fill(masked, 0)) * self.code_embedding.embedding_dim**0.5
        return torch.where(masked[..., None], self.mask_embedding.to(embedded.dtype), embedded)

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (…, K) float32 of features (…, D); the head is the code embedding."""
        return F.linear(features, self.code_embedding.weight.to(features.dtype)).float()

    def predictor(self, class_labels: Sequence[int | None]) -> Predict:
        """The function that `sample_codes` calls: logits for chosen cells of one level, for images of these classes.

        Guidance runs the model with and without classes and mixes *features*: the head is linear, so that equals mixing
        logits, which are computed once.

        Args:
            class_labels: B classes in [0, num_classes); None is no class.
        """
        none = self.class_embedding.num_embeddings - 1
        for label in class_labels:
            if label is not None and not 0 <= label < none:
                raise CodaError(f"class {label} does not exist: this generator has {none} classes, numbered from 0")
        indices = [none if label is None else int(label) for label in class_labels]
        labels = torch.tensor(indices, device=self.level_embedding.weight.device)
        without = torch.full_like(labels, none)

        def predict(
            codes: torch.Tensor, prefix: torch.Tensor, level: int, cells: torch.Tensor, scale: float
        ) -> Iterator[torch.Tensor]:
            if scale == 1:
                features = self(codes, [prefix], labels, [level]).features
            else:
                both = self(codes.repeat(2, 1), [prefix.repeat(2, 1, 1, 1)], torch.cat([labels, without]), [level])
                conditional, unconditional = both.features.chunk(2)
                features = torch.lerp(unconditional, conditional, scale)
            rows = features.gather(1, cells[..., None].expand(-1, -1, features.shape[2])).flatten(0, 1)
            return map(self.logits, rows.split(max(1, _LOGITS_AT_ONCE // self.layout.codebook_size)))

        return predict


def _check_classes(num_classes: int, labels: Sequence[int] | None, names: Sequence[str] | None) -> None:
    """Raise a CodaError unless `labels` are classes and `names` are one text per class."""
    if labels is not None:
        if not isinstance(labels, list | tuple):
            raise CodaError("class_labels is not a list of classes")
        for label in labels:
            check_integer("class_labels: a class", label, 0, num_classes - 1)
    if names is not None:
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise CodaError("class_names is not a list of names")
        if len(names) > num_classes:
            raise CodaError(f"class_names has {len(names)} names for {num_classes} classes")
