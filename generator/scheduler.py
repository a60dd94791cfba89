"""The sampler as a diffusers scheduler: keeps the settings and calls `sample_codes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from coda.tokenizer.foundation.bounds import check_integer, check_number
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.layout import CodeLayout

from .sampling import ORDERS, Hook, Predict, sample_codes
from .schedules import GUIDANCE_SCHEDULES, MASK_SCHEDULES, STEP_SHARES, guidance_scale_at, steps_per_level


class MaskGitScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # both name their config file
    """Settings of sampling: in which order, with how many steps and with how much guidance masked codes are filled.

        pipeline.scheduler = MaskGitScheduler.from_config(pipeline.scheduler.config, temperature=0.9, top_p=0.95)

    Args:
        num_inference_steps: One number for all levels together, or one per level.
        order: Which cells first: "confidence", "halton" or "random".
        temperature: Divides the logits; 0 takes the most likely code.
        confidence_noise: Gumbel noise on the confidence, annealed to 0 over a level's steps ("confidence" only).
        mask_schedule: "cosine", "arccos" or "linear"; use the one that the model was trained with.
        guidance_scale: Classifier-free guidance as in diffusers; 1 is none.
        guidance_schedule: "constant", or growing over the interval: "linear", "cosine".
        guidance_interval: (first, last) in [0, 1] of progress through all steps; no guidance outside of it.
        step_share: How one number of steps is split over the levels: "sqrt" or "equal" (see `steps_per_level`).
        top_k: Draw from the k most likely codes only; 0 for all.
        top_p: Draw from the most likely codes that together have this probability.
        redraw: Share of every finished level's cells, the least likely, that are drawn once more without guidance.

    The defaults are those of configs that do not name a setting; `train_maskgit` writes all of them.

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
        step_share: str = "sqrt",
        top_k: int = 0,
        top_p: float = 1.0,
        redraw: float = 0.0,
    ) -> None:
        for name, value, known in (
            ("order", order, ORDERS),
            ("mask_schedule", mask_schedule, MASK_SCHEDULES),
            ("guidance_schedule", guidance_schedule, GUIDANCE_SCHEDULES),
            ("step_share", step_share, STEP_SHARES),
        ):
            if value not in known:
                raise CodaError(f"{name} {value!r} is not one of {', '.join(known)}")
        check_number("temperature", temperature, low=0)
        check_number("confidence_noise", confidence_noise, low=0)
        check_number("guidance_scale", guidance_scale)
        check_integer("top_k", top_k, 0, 2**62)
        check_number("top_p", top_p, positive=True)
        check_number("redraw", redraw, low=0)
        if max(top_p, redraw) > 1:
            raise CodaError(f"top_p {top_p} and redraw {redraw} are shares, at most 1")
        pair = isinstance(guidance_interval, Sequence) and len(guidance_interval) == 2
        if not pair or not 0 <= guidance_interval[0] <= guidance_interval[1] <= 1:
            raise CodaError(f"guidance_interval {guidance_interval!r} is not (first, last) within [0, 1]")
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
        self.steps = steps_per_level(wanted, layout, self.config["step_share"])
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
        check_number("guidance_scale", scale)
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
            top_k=config["top_k"],
            top_p=config["top_p"],
            redraw=config["redraw"],
            guidance=lambda progress: guidance_scale_at(progress, scale, config["guidance_schedule"], (first, last)),
            known=known,
            on_step=on_step,
            on_level_end=on_level_end,
        )
