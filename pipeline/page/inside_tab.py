"""The tab *Look inside*: codebook usage, the generator's confidence, and curves of trainings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from coda.benchmarks.cache_statistics import cache_statistics
from coda.tokenizer import CodeCache
from coda.tokenizer.usage import CodeUsage

from ..coda_pipeline import CodaPipeline
from ..reconstruction import reconstruct
from .level_images import confidences, draw_codes, draw_confidences
from .runs import USAGE_COLUMNS, find_runs, run_curves, usage_rows
from .uploads import read_upload
from .widgets import ONE_AT_A_TIME, choose_class, choose_photo, choose_seed, messages, read_class, read_seed, show_wide


def add_inside_tab(pipeline: CodaPipeline, runs: Path, max_pixels: int) -> None:
    """Add the tab to the page that is being built; `runs` is the folder with trainings and caches."""
    tokenizer, layout = pipeline.tokenizer, pipeline.tokenizer.layout

    def look(path: str | None, label: int, seed: int) -> tuple[Any, ...]:
        with messages():
            if path is None:
                sampled: Any = pipeline(read_class(label), generator=read_seed(seed), output_type="codes")
                codes = sampled.images[0].cpu()
            else:
                codes = reconstruct(tokenizer, read_upload(path, tokenizer.size, max_pixels)).codes
            usage = CodeUsage(layout)
            usage.update(codes[None])
            sure = draw_confidences(confidences(pipeline, codes, read_class(label)), layout)
            colored = draw_codes(codes, layout, tokenizer.value_table().float())
            return usage_rows(usage.per_level(), layout), colored, sure

    def list_runs() -> tuple[gr.Dropdown, ...]:
        trainings, caches = find_runs(runs, "log.jsonl"), find_runs(runs, "manifest.json")
        return tuple(gr.Dropdown(choices=found, value=found[0] if found else None) for found in (trainings, caches))

    def curves(name: str | None) -> Image.Image | None:
        with messages():
            return run_curves(runs, name) if name else None

    def cache_usage(name: str | None) -> list[list[object]] | None:
        with messages():
            if name not in find_runs(runs, "manifest.json"):
                return None
            cache = CodeCache(runs / name)
            return usage_rows(cache_statistics(cache).levels, cache.layout)

    with gr.Tab("Look inside") as tab:
        gr.Markdown(
            "How many different codes each level uses, and how sure the generator is of each cell "
            "when it knows the levels before: of a photo, or of a sample if there is none."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=320):
                inputs = [choose_photo(), choose_class(pipeline, 0), choose_seed()]
                start = gr.Button("Look", variant="primary")
            with gr.Column(scale=2):
                table = gr.Dataframe(headers=[*USAGE_COLUMNS], label="Codebook usage of this image", interactive=False)
        codes = show_wide("Its codes: a cell is a code, and similar codes have similar colors.")
        sure = show_wide("The generator's confidence in each cell: the lightest are the most certain of their level.")
        start.click(look, inputs, [table, codes, sure], api_name="look", **ONE_AT_A_TIME)
        gr.Markdown(f"Trainings and code caches found in the folder `{runs}`:")
        with gr.Row():
            training = gr.Dropdown([], label="Training")
            cache = gr.Dropdown([], label="Code cache")
        drawn = show_wide("Curves of the training:")
        counted = gr.Dataframe(headers=[*USAGE_COLUMNS], label="Codebook usage of the cache", interactive=False)
        tab.select(list_runs, None, [training, cache], api_visibility="private")
        training.change(curves, training, drawn, api_visibility="private")
        cache.change(cache_usage, cache, counted, api_visibility="private")
