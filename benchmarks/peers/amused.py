"""`UVit2DModel` with `AmusedScheduler`, the masked transformer of diffusers (aMUSEd, arXiv 2401.01808)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.models.unets.uvit_2d import UVit2DModel
from diffusers.schedulers.scheduling_amused import AmusedScheduler
from torch import nn

from coda.generator.schedules import guidance_scale_at
from coda.tokenizer.foundation.seeding import derived_seed

from .peer import FlatPeer, PeerSetup

_RESIDUAL_BLOCKS = 1  # on the way in, and again on the way out
_MICRO_CHANNELS = 32  # of the sinusoidal embedding of the one micro-condition
_TEMPERATURE = (2, 0)  # the scheduler's own: of the noise on the confidence, at the first and the last step


class AmusedPeer(FlatPeer):
    """`UVit2DModel` on the codes of all levels, written row by row into a square.

    The model takes a square grid of tokens. The T codes, in the order of the cache, fill the smallest square that
    holds them. What is left at its end is filled with one more token, which has no loss and is not shown to the
    scheduler: T = 85 takes a square of 10 × 10, with 15 such cells. The convolutions see this square, not the image.

    Its text conditions become classes: one learned embedding is both the only token of `encoder_hidden_states` and
    `pooled_text_emb`. The micro-conditions (sizes and crops) are one constant. Of its depth, one block with a
    convolution stands before the transformer's blocks and one behind.
    """

    title = "UVit2DModel, AmusedScheduler"

    def __init__(self, setup: PeerSetup) -> None:
        super().__init__(setup)
        settings, codes = setup.settings, setup.layout.codebook_size
        self.side = math.isqrt(setup.layout.num_tokens - 1) + 1
        self.mask, self.padding = codes, codes + 1
        width = settings.width
        self.class_embedding = nn.Embedding(setup.num_classes + 1, width)
        self.model = UVit2DModel(
            hidden_size=width,
            cond_embed_dim=width,
            micro_cond_encode_dim=_MICRO_CHANNELS,
            micro_cond_embed_dim=_MICRO_CHANNELS,
            encoder_hidden_size=width,
            vocab_size=codes + 2,
            codebook_size=codes,
            in_channels=width,
            block_out_channels=width,
            num_res_blocks=_RESIDUAL_BLOCKS,
            block_num_heads=settings.heads,
            num_hidden_layers=max(1, settings.depth - 2 * _RESIDUAL_BLOCKS),
            num_attention_heads=settings.heads,
            intermediate_size=setup.mlp_width,
            sample_size=self.side,
        )

    def features(self, codes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Logits (B, T, K) of codes (B, T), K where masked."""
        embedded = self.class_embedding(labels)
        constant = torch.zeros(len(labels), 1, device=labels.device)
        logits = self.model(self.squared(codes), embedded[:, None], embedded, constant)  # (B, K, side, side)
        return logits.flatten(2)[..., : codes.shape[1]].mT

    def squared(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, T) as a padded square (B, side, side)."""
        rest = self.side**2 - codes.shape[1]
        return F.pad(codes, (0, rest), value=self.padding).view(-1, self.side, self.side)

    @torch.no_grad()
    def sample(self, labels: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
        """Codes (B, T) int64. The scheduler draws for a batch at once, from a seed that the batch's seeds give."""
        settings, steps = self.setup.settings, self.sampling_steps
        generator = torch.Generator(self.device).manual_seed(derived_seed("amused", *seeds))
        indices = self._indices(labels)
        both_indices = torch.cat([indices, torch.full_like(indices, self.none)])
        codes = torch.full((len(indices), self.setup.layout.num_tokens), self.mask, device=self.device)
        scheduler = AmusedScheduler(mask_token_id=self.mask)
        scheduler.set_timesteps(steps, _TEMPERATURE, self.device)
        for number, timestep in enumerate(scheduler.timesteps):
            scale = guidance_scale_at((number + 0.5) / steps, settings.guidance, settings.guidance_schedule)
            if scale == 1:
                logits = self.features(codes, indices)
            else:
                conditional, unconditional = self.features(codes.repeat(2, 1), both_indices).chunk(2)
                logits = torch.lerp(unconditional, conditional, scale)
            codes = scheduler.step(logits.float(), timestep, codes, generator=generator, return_dict=False)[0]
        return codes
