"""A small U-Net on pixels with flow matching, the yardstick: `UNet2DModel` of diffusers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import init_empty_weights
from diffusers.models.unets.unet_2d import UNet2DModel

from coda.generator.schedules import guidance_scale_at
from coda.tokenizer.foundation.seeding import step_generator

from .peer import Peer, PeerSetup

_MOST_BLOCKS = 4
_ATTENTION_UP_TO = 16  # pixels; blocks at higher resolutions have convolutions only
_CHANNEL_STEP = 8  # of the width, which the groups of its normalization divide
_WIDEST = 1024
_TIME_SCALE = 1000.0  # its time embedding expects 0 to 1000


class FlowUNetPeer(Peer):
    """`UNet2DModel` that learns the velocity from noise to image, on pixels in [-1, 1], with classes.

    Training (flow matching, arXiv 2210.02747, Equation 23 with σ_min = 0): x_t = (1 − t) · noise + t · image with t
    uniform in [0, 1], and the loss is the mean squared error to image − noise. Classes are dropped as ours are.
    Sampling takes Euler steps of equal length, with guidance as the others.

    It is as wide as brings it nearest to `parameters`.

    Args:
        setup: What all peers are made from.
        parameters: How many parameters it should have.
    """

    title = "UNet2DModel, flow matching on pixels"
    learns = "images"

    def __init__(self, setup: PeerSetup, parameters: int) -> None:
        super().__init__(setup)
        self.sampling_steps = setup.settings.flow_steps
        self.model = UNet2DModel(**unet_config(setup.size, setup.num_classes, parameters))

    def loss(self, batch: torch.Tensor, labels: torch.Tensor, step: int) -> torch.Tensor:
        """Mean squared error of the velocity, a scalar, for images (B, 3, H, W) in [-1, 1]."""
        settings, generator = self.setup.generator_settings, step_generator(self.setup.settings.seed, step)
        noise = torch.randn(batch.shape, generator=generator).to(batch)
        t = torch.rand(len(batch), generator=generator).to(batch)
        unconditional = torch.rand(len(batch), generator=generator).to(batch) < settings.class_dropout
        labels = torch.where(unconditional | (labels < 0), self.none, labels)
        mixed = torch.lerp(noise, batch, t[:, None, None, None])
        return F.mse_loss(self._velocity(mixed, t, labels), batch - noise)

    @torch.no_grad()
    def sample(self, labels: Sequence[int], seeds: Sequence[int]) -> torch.Tensor:
        """Images (B, 3, H, W) in [-1, 1]; each depends on its own label and seed alone."""
        settings, indices = self.setup.settings, self._indices(labels)
        without = torch.full_like(indices, self.none)
        noise = [torch.randn(3, *self.setup.size, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        images, steps = torch.stack(noise).to(self.device), self.sampling_steps
        for number in range(steps):
            t = torch.full((len(images),), number / steps, device=self.device)
            scale = guidance_scale_at((number + 0.5) / steps, settings.guidance, settings.guidance_schedule)
            if scale == 1:
                velocity = self._velocity(images, t, indices)
            else:
                both = self._velocity(images.repeat(2, 1, 1, 1), t.repeat(2), torch.cat([indices, without]))
                conditional, unconditional = both.chunk(2)
                velocity = torch.lerp(unconditional, conditional, scale)
            images = images + velocity / steps
        return images.clamp(-1, 1)

    def _velocity(self, images: torch.Tensor, t: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) float32."""
        return self.model(images, t * _TIME_SCALE, class_labels=labels, return_dict=False)[0].float()


def unet_config(size: tuple[int, int], num_classes: int, parameters: int) -> dict[str, Any]:
    """Configuration of the `UNet2DModel` whose number of parameters is nearest to `parameters`.

    Every block but the last halves the resolution, down to 8 pixels, as long as height and width are even.
    """
    blocks = 1
    while (
        blocks < _MOST_BLOCKS and min(size) >> (blocks - 1) >= _ATTENTION_UP_TO and not any(n % 2**blocks for n in size)
    ):
        blocks += 1
    attends = [min(size) >> i <= _ATTENTION_UP_TO for i in range(blocks)]

    def config(width: int) -> dict[str, Any]:
        return {
            "sample_size": size,
            "down_block_types": tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
            "up_block_types": tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
            "block_out_channels": tuple(width * min(2**i, 4) for i in range(blocks)),
            "attention_head_dim": width,
            "norm_num_groups": _CHANNEL_STEP,
            "num_class_embeds": num_classes + 1,
        }

    nearest, distance = config(_CHANNEL_STEP), math.inf
    for width in range(_CHANNEL_STEP, _WIDEST + 1, _CHANNEL_STEP):
        with init_empty_weights():
            count = sum(p.numel() for p in UNet2DModel(**config(width)).parameters())
        if abs(count - parameters) >= distance:
            break
        nearest, distance = config(width), abs(count - parameters)
    return nearest
