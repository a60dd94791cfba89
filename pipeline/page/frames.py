"""Sampling as a film: one frame per step, with the cells that are still masked.

K codes · T codes of an image · (h_l, w_l) cells of level l · (H, W) pixels
"""

from __future__ import annotations

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
from coda.generator.settings import SamplingSettings
from coda.tokenizer.images import to_pil
from coda.tokenizer.quantizer.resampling import upsample

from ..coda_pipeline import CodaPipeline
from ..commands.model import sampling_arguments

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


def with_order(pipeline: CodaPipeline, order: str) -> CodaPipeline:
    """The same models with a scheduler that fills the cells in another order; `pipeline` is not changed."""
    scheduler = MaskGitScheduler.from_config(pipeline.scheduler.config, order=order)
    made = CodaPipeline(pipeline.vae, pipeline.quantizer, pipeline.transformer, scheduler)
    made.set_progress_bar_config(disable=True)
    return made


def sample_frames(
    pipeline: CodaPipeline, label: int | None, settings: SamplingSettings
) -> Generator[Frame, None, None]:
    """Sample one image, frame by frame.

    The pipeline runs in a thread of its own. It ends with the iterator: at the next step if that is closed early.

    Args:
        pipeline: The pipeline; nothing else may sample with it meanwhile.
        label: Class of the image, None for no class.
        settings: Steps, guidance and seed.

    Yields:
        One frame per step; the last holds the image that a call of the pipeline makes.

    Raises:
        CodaError: If a setting does not fit the model.
    """
    frames: SimpleQueue[Frame | BaseException | None] = SimpleQueue()
    closed = threading.Event()

    def on_step(_: CodaPipeline, step: int, timestep: torch.Tensor, tensors: dict[str, torch.Tensor]) -> None:
        if closed.is_set():
            raise GeneratorExit
        frames.put(draw_frame(pipeline, step, tensors["codes"], tensors["prefix_latents"]))

    def run() -> None:
        try:
            arguments: dict[str, Any] = {"generator": settings.seed, **sampling_arguments(settings)}
            names = ("codes", "prefix_latents")
            pipeline(label, callback_on_step_end=on_step, callback_on_step_end_tensor_inputs=names, **arguments)
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
    last = step == ends[-1] - 1
    if last:
        pixels = pipeline.decode(codes)
    else:
        table = pipeline.transformer.value_table
        values = F.embedding(cells.masked_fill(masked, 0), table).masked_fill(masked[..., None], 0).movedim(-1, 1)
        latents = prefix + upsample(values.to(prefix), layout.grid)
        pixels = pipeline.vae.decode(latents).clamp(-1, 1).float()
    veil = _VEIL * F.interpolate(masked[:, None].float(), size=pixels.shape[-2:])
    image = to_pil((pixels * (1 - veil))[0])  # 0 is gray
    return Frame(image, level, int((~masked).sum()), masked.numel(), last)
