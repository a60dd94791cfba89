"""The tab *Edit*: a region that was brushed is sampled again, or an image is continued or varied."""

from __future__ import annotations

from typing import Any

import gradio as gr

from coda.tokenizer import CodaError

from .. import editing
from ..coda_pipeline import CodaPipeline
from .frames import with_sampling
from .uploads import brushed_mask, easel_size, on_easel, read_upload
from .widgets import (
    ONE_AT_A_TIME,
    choose_class,
    choose_guidance,
    choose_photo,
    choose_seed,
    messages,
    read_class,
    read_seed,
    show_gallery,
)

_KINDS = [("fill the brushed region", "inpaint"), ("continue beyond the borders", "outpaint"), ("vary", "vary")]
_MOST = 4  # variants
_HINT = "Brush over what is to change, then press Edit; without a brushed region, vary changes everything."


def add_edit_tab(pipeline: CodaPipeline, max_pixels: int) -> None:
    """Add the tab to the page that is being built."""
    size, levels = pipeline.tokenizer.size, pipeline.tokenizer.layout.num_levels

    def prepare(path: str | None) -> tuple[dict[str, Any], str]:
        with messages():
            image = on_easel(read_upload(path, size, max_pixels))
            return {"background": image, "layers": [], "composite": None}, _HINT

    def fit_controls(kind: str) -> tuple[Any, Any]:
        return gr.Slider(visible=kind == "vary"), gr.Slider(visible=kind == "outpaint")

    def edit(
        path: str | None,
        drawn: Any,
        kind: str,
        label: int,
        kept: int,
        share: float,
        seed: int,
        guidance: float,
        num: int,
    ) -> tuple[Any, str]:
        with messages():
            image, region = read_upload(path, size, max_pixels), brushed_mask(drawn)
            how: dict[str, Any] = {"class_label": read_class(label)}
            if kind == "inpaint":
                if region is None:
                    raise CodaError("brush over the part to fill first")
                how |= {"region": region}
            elif kind == "outpaint":
                how |= {"box": (0.5 - share / 2, 0.5 - share / 2, 0.5 + share / 2, 0.5 + share / 2)}
            else:
                how |= {"region": region, "keep_levels": kept}
            seeds, guided = [read_seed(seed) + i for i in range(num)], with_sampling(pipeline, guidance_scale=guidance)
            made = getattr(editing, kind)(guided, image, num_images=num, generator=seeds, **how)
            text = f"{made.resampled:,} of {pipeline.tokenizer.layout.num_tokens:,} codes were sampled again."
            variants = [(variant, f"seed {seed}") for variant, seed in zip(made.images, seeds, strict=True)]
            return [(made.original, "original"), *variants], text

    with gr.Tab("Edit"):
        gr.Markdown(
            "Codes of a region are sampled again so that they fit the others; "
            "everything outside of the brushed region stays as it is."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                photo = choose_photo()
                kind = gr.Radio(_KINDS, value="inpaint", label="What to do")
                label = choose_class(pipeline)
                kept = gr.Slider(
                    0, levels - 1, levels // 2, step=1, label="Levels kept",
                    info="More of the coarse levels stay: less changes.", visible=False,
                )  # fmt: skip
                share = gr.Slider(
                    0.25, 0.9, 0.5, step=0.05, label="Size of the photo",
                    info="Its share of the new width and height.", visible=False,
                )  # fmt: skip
                with gr.Row():
                    seed, num = choose_seed(), gr.Slider(1, _MOST, 2, step=1, label="Variants")
                guidance = choose_guidance(pipeline)
            with gr.Column(scale=2):
                canvas = gr.ImageEditor(
                    label="Brush over what is to change", type="pil", sources=(), transforms=(), layers=False,
                    brush=gr.Brush(default_size=64, colors=[("#ff7a00", 0.7)], color_mode="fixed"),
                    canvas_size=easel_size(*size), fixed_canvas=True, height=440,
                )  # fmt: skip
                start = gr.Button("Edit", variant="primary")
                state = gr.Markdown("Drop a photo first.")
                variants = show_gallery("Original and variants", height=300)
        photo.upload(prepare, photo, [canvas, state], api_visibility="private")
        kind.change(fit_controls, kind, [kept, share], api_visibility="private")
        inputs = [photo, canvas, kind, label, kept, share, seed, guidance, num]
        start.click(edit, inputs, [variants, state], api_name="edit", **ONE_AT_A_TIME)
