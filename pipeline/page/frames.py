"""Sampling as a film: one frame per step, with the cells that are still masked.

K codes · T codes of an image · (h_l, w_l) cells of level l · (H, W) pixels
"""

from __future__ import annotations

import math
import threading
from collections.abc import Generator
from dataclasses import dataclass
from itertools import accumulate
from queue import SimpleQueue
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image

from coda.generator import MaskGitScheduler
from coda.tokenizer.images import to_pil
from coda.tokenizer.quantizer.resampling import upsample

from ..coda_pipeline import CodaPipeline

_VEIL = 0.7  # opacity of the gray over masked cells


@dataclass(frozen=True)
class Frame:
    """The image after one step.

    Attributes:
        image: What the decoder makes of the codes so far; masked cells of the level are under a gray veil.
        level: The level that is being filled, from 0.
        filled: Cells of the level that are filled.
        cells: Cells of the level.
        last: Whether this is the finished image.
    """

    image: Image.Image
    level: int
    filled: int
    cells: int
    last: bool


def with_sampling(pipeline: CodaPipeline, **config: Any) -> CodaPipeline:
    """The same models with other settings of the scheduler; `pipeline` is not changed.

    Raises:
        CodaError: If a setting is out of range.
    """
    scheduler = MaskGitScheduler.from_config(pipeline.scheduler.config, **config)
    made = CodaPipeline(pipeline.vae, pipeline.quantizer, pipeline.transformer, scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def sample_frames(pipeline: CodaPipeline, label: int | None, seed: int) -> Generator[Frame, None, None]:
    """Sample one image, frame by frame.

    The pipeline runs in a thread of its own. It ends with the iterator: at the next step if that is closed early.

    Args:
        pipeline: The pipeline; nothing else may sample with it meanwhile.
        label: Class of the image, None for no class.
        seed: Seed of the image.

    Yields:
        One frame per step, and the image that a call of the pipeline returns.

    Raises:
        CodaError: If the class or the scheduler's settings do not fit the model.
    """
    frames: SimpleQueue[Frame | BaseException | None] = SimpleQueue()
    closed, layout = threading.Event(), pipeline.tokenizer.layout

    def on_step(_: CodaPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        if closed.is_set():
            raise GeneratorExit
        frames.put(draw_frame(pipeline, step, tensors["codes"], tensors["prefix_latents"]))

    def run() -> None:
        try:
            names = ("codes", "prefix_latents")
            sampled: Any = pipeline(
                label, generator=seed, callback_on_step_end=on_step, callback_on_step_end_tensor_inputs=names
            )
            cells = math.prod(layout.grid)
            frames.put(Frame(sampled.images[0], layout.num_levels - 1, cells, cells, last=True))
            frames.put(None)
        except BaseException as error:  # raised again below, in the thread that waits for frames
            frames.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (found := frames.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        closed.set()
        thread.join()


@torch.no_grad()
def draw_frame(pipeline: CodaPipeline, step: int, codes: torch.Tensor, prefix: torch.Tensor) -> Frame:
    """The frame of codes (1, T), K where masked, after `step` of the pipeline's steps.

    `prefix` (1, C, h, w) is the sum of the levels before the one that the step belongs to.
    """
    layout, ends = pipeline.tokenizer.layout, [*accumulate(pipeline.scheduler.steps)]
    level = next(level for level, end in enumerate(ends) if step < end)
    cells = layout.split(codes)[level]  # (1, h_l, w_l)
    masked = cells == layout.codebook_size
    table = pipeline.transformer.value_table
    values = F.embedding(cells.masked_fill(masked, 0), table).masked_fill(masked[..., None], 0).movedim(-1, 1)
    latents = prefix + upsample(values.to(prefix), layout.grid)
    pixels = pipeline.vae.decode(latents).clamp(-1, 1).float()
    veil = _VEIL * F.interpolate(masked[:, None].float(), size=pixels.shape[-2:])
    image = to_pil((pixels * (1 - veil))[0])  # 0 is gray
    return Frame(image, level, int((~masked).sum()), masked.numel(), last=False)
