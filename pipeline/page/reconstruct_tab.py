"""The tab *Reconstruct*: an image through the tokenizer and back."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ..coda_pipeline import CodaPipeline
from ..reconstruction import DIFFERENCE_GAIN, reconstruct
from .level_images import draw_codes
from .uploads import read_upload
from .widgets import ONE_AT_A_TIME, choose_photo, messages, show_image, show_wide


def add_reconstruct_tab(pipeline: CodaPipeline, max_pixels: int) -> None:
    """Add the tab to the page that is being built."""
    tokenizer = pipeline.tokenizer
    layout = tokenizer.layout

    def through(path: str | None, levels: int) -> tuple[Any, ...]:
        with messages():
            found = reconstruct(tokenizer, read_upload(path, tokenizer.size, max_pixels), levels)
            codes = draw_codes(found.codes, layout, tokenizer.value_table().float())
            return *found.images, f"**{levels} of {layout.num_levels} levels.** {found.describe()}", codes

    with gr.Tab("Reconstruct"):
        gr.Markdown(
            "The tokenizer turns a photo into codes and back; fewer levels are a coarser image in fewer bits, "
            "and what is lost shows in the difference."
        )
        with gr.Row():
            photo = choose_photo()
            levels = gr.Slider(
                1, layout.num_levels, layout.num_levels, step=1, label="Levels", scale=3,
                info="How many of the levels are decoded, from the coarsest.",
            )  # fmt: skip
        state = gr.Markdown("Drop a photo; it is scaled and cropped to {1}×{0} pixels.".format(*tokenizer.size))
        with gr.Row():
            labels = ("Original", "Reconstruction", f"Difference, {DIFFERENCE_GAIN} times")
            images = [show_image(label) for label in labels]
        codes = show_wide("The codes of each level: a cell is a code, and similar codes have similar colors.")
        outputs = [*images, state, codes]
        photo.upload(through, [photo, levels], outputs, api_name="reconstruct", **ONE_AT_A_TIME)
        levels.release(
            through, [photo, levels], outputs, api_visibility="private", show_progress="hidden", **ONE_AT_A_TIME
        )
