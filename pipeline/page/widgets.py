"""Parts that several tabs share: the choice of a class, settings of the sampling, and messages in place of errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from coda.generator.schedules import steps_per_level
from coda.tokenizer import CodaError

from ..cli.failures import reason
from ..coda_pipeline import CodaPipeline

NO_CLASS = -1
BUTTONS: Any = ["download", "fullscreen"]
ONE_AT_A_TIME: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}  # of all that use the model


def choose_class(pipeline: CodaPipeline, default: int | None = None) -> gr.Dropdown:
    """The classes that the model knows, by all their names; `NO_CLASS` stands for none."""
    classes = pipeline.classes
    choices = [(f"{', '.join(classes[i].names) or 'class'} ({i})", i) for i in classes.seen]
    value = NO_CLASS if default is None or not classes.seen else classes.seen[default]
    return gr.Dropdown([("no class", NO_CLASS), *choices], value=value, label="Class", info="Type to search by name.")


def choose_seed() -> gr.Number:
    """The seed of the (first) image."""
    return gr.Number(0, label="Seed", info="The same seed gives the same image.", precision=0, minimum=0)


def choose_guidance(pipeline: CodaPipeline) -> gr.Slider:
    """The guidance scale, by default the model's."""
    value = pipeline.scheduler.config["guidance_scale"]
    info = "How strongly the class is followed; 1 turns guidance off."
    return gr.Slider(1, max(10, value), value, step=0.1, label="Guidance", info=info)


def choose_steps(pipeline: CodaPipeline) -> gr.Textbox:
    """The steps of each level, by default the model's."""
    layout = pipeline.tokenizer.layout
    config = pipeline.scheduler.config
    value = steps_per_level(config["num_inference_steps"], layout, config["step_share"])
    info = f"One number per level ({layout.num_levels}), or one for all together; more are slower and finer."
    return gr.Textbox(",".join(map(str, value)), label="Steps per level", info=info, max_length=500)


def read_class(value: int | None) -> int | None:
    """The class that was chosen, as the pipeline takes it."""
    return None if value in (None, NO_CLASS) else value


def read_seed(value: int | None) -> int:
    """The seed that was chosen; 0 if the field was emptied."""
    return 0 if value is None else int(value)


def read_steps(steps: str) -> int | list[int]:
    """The steps that were chosen, as the scheduler takes them.

    Raises:
        CodaError: If they are not numbers.
    """
    words = [word.strip() for word in steps.split(",") if word.strip()]
    if not words or not all(word.isdecimal() for word in words):
        raise CodaError(f"steps {steps}: write one number, or one per level with commas between, like 1,1,2,4")
    return int(words[0]) if len(words) == 1 else [int(word) for word in words]


def show_image(label: str, height: int = 340) -> gr.Image:
    """An image of the tokenizer's size, enlarged to fill its box."""
    return gr.Image(label=label, height=height, format="png", buttons=BUTTONS, elem_classes="pixels", interactive=False)


def show_wide(caption: str) -> gr.Image:
    """A wide image that has text of its own, under a caption."""
    gr.Markdown(caption)
    return gr.Image(format="png", show_label=False, buttons=BUTTONS, interactive=False)


def show_gallery(label: str, height: int) -> gr.Gallery:
    """Several images of the tokenizer's size."""
    return gr.Gallery(
        label=label, columns=5, height=height, format="png", object_fit="contain", buttons=BUTTONS,
        elem_classes="pixels", interactive=False,
    )  # fmt: skip


def choose_photo() -> gr.File:
    """One uploaded file; it is read and checked by `read_upload`."""
    return gr.File(label="Photo", file_types=["image"], height=140)


@contextmanager
def messages() -> Iterator[None]:
    """Show what goes wrong as one line; only what is our own mistake leaves a trace in the terminal."""
    try:
        yield
    except Exception as error:
        raise gr.Error(reason(error), print_exception=not isinstance(error, CodaError | MemoryError)) from error
