"""The sampler as a diffusers scheduler: keeps the settings and calls `sample_codes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.settings import Choices, Fraction, Weight, check_value, kind_of
from coda.tokenizer.layout import CodeLayout

from .sampling import ORDERS, Hook, Predict, sample_codes
from .schedules import GUIDANCE_SCHEDULES, MASK_SCHEDULES, guidance_scale_at, steps_per_level


class MaskGitScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # both name their config file
    """Settings of sampling: in which order, with how many steps and with how much guidance masked codes are filled.

    Args:
        num_inference_steps: One number for all levels together, or one per level.
        order: Which cells first: "confidence", "halton" or "random".
        temperature: Divides the logits; 0 takes the most likely code.
        confidence_noise: Gumbel noise on the confidence, annealed to 0 over a level's steps ("confidence" only).
        mask_schedule: "cosine", "arccos" or "linear"; use the one that the model was trained with.
        guidance_scale: Classifier-free guidance as in diffusers; 1 is none.
        guidance_schedule: "constant", or growing over the interval: "linear", "cosine".
        guidance_interval: (first, last) in [0, 1] of progress through all steps; no guidance outside of it.

    Raises:
        CodaError: If a setting is unknown or out of range.
    """

    order = 1  # order of the solver, which diffusers' pipelines read; the order of the cells is config.order

    @register_to_config
    def __init__(
        self,
        num_inference_steps: int | Sequence[int] = 16,
        order: str = "confidence",
        temperature: float = 1.0,
        confidence_noise: float = 4.5,
        mask_schedule: str = "cosine",
        guidance_scale: float = 2.0,
        guidance_schedule: str = "constant",
        guidance_interval: Sequence[float] = (0.0, 1.0),
    ) -> None:
        check_value("order", order, kind_of(Annotated[str, Choices(ORDERS)]))
        check_value("temperature", temperature, kind_of(Weight))
        check_value("confidence_noise", confidence_noise, kind_of(Weight))
        check_value("mask_schedule", mask_schedule, kind_of(Annotated[str, Choices(MASK_SCHEDULES)]))
        check_value("guidance_scale", guidance_scale, kind_of(float))
        check_value("guidance_schedule", guidance_schedule, kind_of(Annotated[str, Choices(GUIDANCE_SCHEDULES)]))
        interval = check_value("guidance_interval", guidance_interval, kind_of(tuple[Fraction, ...]))
        if len(interval) != 2 or interval[0] > interval[1]:
            raise CodaError(f"guidance_interval {interval} is not (first, last) within [0, 1]")
        self.steps: tuple[int, ...] = ()
        self.timesteps = torch.empty(0, dtype=torch.long)

    @classmethod
    def from_config(cls, config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers; `mask_law`, the name of `mask_schedule` in older configs, is read too."""
        if isinstance(config, Mapping) and "mask_law" in config:
            config = {**config, "mask_schedule": config["mask_law"]}
            del config["mask_law"]
        return super().from_config(config, *args, **kwargs)

    def set_timesteps(self, num_inference_steps: int | Sequence[int] | None, layout: CodeLayout) -> None:
        """Set `steps`, one number per level, and `timesteps`, (sum(steps),).

        Args:
            num_inference_steps: One number for all levels together, or one per level; the configured one by default.
            layout: Layout of the codes.

        Raises:
            CodaError: If there are fewer steps than levels.
        """
        wanted = self.config["num_inference_steps"] if num_inference_steps is None else num_inference_steps
        self.steps = steps_per_level(wanted, layout)
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
        on_step: Hook | None = None,
        on_level_end: Hook | None = None,
    ) -> torch.Tensor:
        """Sample codes (B, T) with these settings; arguments as in `sample_codes`, None means as configured."""
        self.set_timesteps(num_inference_steps, layout)
        config = self.config
        scale = config["guidance_scale"] if guidance_scale is None else guidance_scale
        check_value("guidance_scale", scale, kind_of(float))
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
            mask_schedule=config["mask_schedule"],
            guidance=lambda progress: guidance_scale_at(progress, scale, config["guidance_schedule"], (first, last)),
            known=known,
            on_step=on_step,
            on_level_end=on_level_end,
        )
