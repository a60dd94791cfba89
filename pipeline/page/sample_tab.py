"""The tab *Sample*: an image forms, level by level."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import gradio as gr

from coda.generator.sampling import ORDERS

from ..coda_pipeline import CodaPipeline
from .frames import sample_frames, with_sampling
from .uploads import saved
from .widgets import (
    ONE_AT_A_TIME,
    choose_class,
    choose_guidance,
    choose_seed,
    choose_steps,
    messages,
    read_class,
    read_seed,
    read_steps,
    show_gallery,
    show_image,
)

_ORDER_HELP = "Which cells of a level first: those the model is surest of, evenly spread ones, or any."


def add_sample_tab(pipeline: CodaPipeline) -> None:
    """Add the tab to the page that is being built."""

    def sample(
        label: int, seed: int, guidance: float, steps: str, order: str
    ) -> Iterator[tuple[str, str, list[tuple[str, str]]]]:
        levels: dict[int, tuple[str, str]] = {}
        sides = pipeline.tokenizer.layout.sides
        seed = read_seed(seed)
        with messages():
            how = with_sampling(pipeline, num_inference_steps=read_steps(steps), guidance_scale=guidance, order=order)
            with closing(sample_frames(how, read_class(label), seed)) as frames:
                for frame in frames:
                    height, width = sides[frame.level]
                    grid = f"{height}×{width}"
                    path = saved(frame.image)
                    if frame.filled == frame.cells:
                        levels[frame.level] = path, f"level {frame.level}: {grid}"
                    text = f"Level {frame.level}, {grid}: {frame.filled} of {frame.cells} codes."
                    yield path, f"Finished, with seed {seed}." if frame.last else text, [*levels.values()]

    with gr.Tab("Sample"):
        gr.Markdown(
            "The generator writes an image as codes, from a coarse level to a fine one; "
            "cells under the gray veil have no code yet."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                inputs = [choose_class(pipeline, 0), choose_seed(), choose_guidance(pipeline), choose_steps(pipeline)]
                order = pipeline.scheduler.config["order"]
                inputs.append(gr.Radio([*ORDERS], value=order, label="Order", info=_ORDER_HELP))
                with gr.Row():
                    start, stop = gr.Button("Sample", variant="primary"), gr.Button("Stop")
            with gr.Column(scale=2):
                image = show_image("Image", height=420)
                state = gr.Markdown("Choose a class and press Sample.")
                strip = show_gallery("After each level", height=330)
        sampling = start.click(
            sample, inputs, [image, state, strip], show_progress="hidden", api_name="sample", **ONE_AT_A_TIME
        )
        stop.click(None, cancels=sampling)
