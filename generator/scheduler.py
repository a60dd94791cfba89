"""The sampler as a diffusers scheduler: a thin shell that keeps settings and calls `sample_codes`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.layout import CodeLayout

from .sampling import ORDERS, Predict, SamplingStep, sample_codes
from .schedules import GUIDANCE_SCHEDULES, MASK_LAWS, guidance_scale_at, steps_per_level


class MaskGitScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # both name their config file
    """How masked codes are filled.

    Args:
        num_inference_steps: One number, shared out over the levels, or one per level.
        order: Which cells first: "confidence", "halton" or "random".
        temperature: Divides the logits; 0 takes the likeliest code.
        confidence_noise: Gumbel noise on the confidence, annealed to 0 over a level's steps ("confidence" only).
        mask_law: "cosine", "arccos" or "linear"; the one trained with.
        guidance_scale: Classifier-free guidance, as diffusers counts it: 1 is none.
        guidance_schedule: "constant", or growing over the interval: "linear", "cosine".
        guidance_interval: (first, last) in [0, 1] of progress through all steps; outside there is no guidance.
    """

    order = 1  # of the solver, for diffusers' pipelines; the order of the cells is config.order

    @register_to_config
    def __init__(
        self,
        num_inference_steps: int | Sequence[int] = 16,
        order: str = "confidence",
        temperature: float = 1.0,
        confidence_noise: float = 4.5,
        mask_law: str = "cosine",
        guidance_scale: float = 2.0,
        guidance_schedule: str = "constant",
        guidance_interval: Sequence[float] = (0.0, 1.0),
    ) -> None:
        for what, value, known in (
            ("order", order, ORDERS),
            ("mask law", mask_law, MASK_LAWS),
            ("guidance schedule", guidance_schedule, GUIDANCE_SCHEDULES),
        ):
            if value not in known:
                raise CodaError(f"{what} {value!r} is none of {', '.join(known)}")
        if temperature < 0 or confidence_noise < 0:
            raise CodaError(f"temperature {temperature} and confidence noise {confidence_noise} must not be negative")
        if len(guidance_interval) != 2 or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
            raise CodaError(f"guidance interval {tuple(guidance_interval)} is not (first, last) within [0, 1]")
        self.steps: tuple[int, ...] = ()
        self.timesteps = torch.empty(0, dtype=torch.long)

    def set_timesteps(self, num_inference_steps: int | Sequence[int] | None, layout: CodeLayout) -> None:
        """Share steps out over the levels: sets `steps`, one number per level, and `timesteps`, (sum(steps),).

        Args:
            num_inference_steps: One number or one per level; the configured one by default.
            layout: Layout of the codes.

        Raises:
            CodaError: Fewer steps than levels.
        """
        asked = self.config["num_inference_steps"] if num_inference_steps is None else num_inference_steps
        self.steps = steps_per_level(asked, layout)
        self.timesteps = torch.arange(sum(self.steps))

    def sample(
        self,
        predict: Predict,
        layout: CodeLayout,
        value_table: torch.Tensor,
        generators: Sequence[torch.Generator],
        *,
        num_inference_steps: int | Sequence[int] | None = None,
        guidance_scale: float | None = None,
        known: tuple[torch.Tensor, torch.Tensor] | None = None,
        on_step: Callable[[SamplingStep], torch.Tensor | None] | None = None,
    ) -> torch.Tensor:
        """Sample codes (B, T) with these settings; arguments as in `sample_codes`, None means as configured."""
        self.set_timesteps(num_inference_steps, layout)
        config = self.config
        scale = config["guidance_scale"] if guidance_scale is None else guidance_scale
        first, last = config["guidance_interval"]
        return sample_codes(
            predict,
            layout,
            value_table,
            self.steps,
            generators,
            order=config["order"],
            temperature=config["temperature"],
            confidence_noise=config["confidence_noise"],
            mask_law=config["mask_law"],
            guidance=lambda progress: guidance_scale_at(progress, scale, config["guidance_schedule"], (first, last)),
            known=known,
            on_step=on_step,
        )
