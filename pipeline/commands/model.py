"""`--model`, `--tokenizer` and `--class`, for the commands that sample."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coda.generator.settings import SamplingSettings
from coda.tokenizer.foundation.errors import CodaError

from ..classes import ClassTable
from ..cli.arguments import UsageError
from .flags import ModelOptions, Placement

if TYPE_CHECKING:
    import torch

    from ..coda_pipeline import CodaPipeline

TOKENIZER = "runs/tokenizer"  # the tokenizer of a generator, if none is given


def open_pipeline(source: ModelOptions, placement: Placement, sampling: SamplingSettings | None = None) -> CodaPipeline:
    """The pipeline of `--model` and `--tokenizer`, on its device; its scheduler as `sampling` asks.

    Raises:
        UsageError: If a tokenizer was given although the model is a whole pipeline.
        CodaError: If the generator's training is not finished, the tokenizer is missing, something cannot be loaded,
            or the two do not belong together.
    """
    from coda.tokenizer.foundation.device import resolve_device

    from ..coda_pipeline import CodaPipeline

    resolve_device(placement.device)  # is refused before anything is loaded
    model, tokenizer = source.model, source.tokenizer
    folder = Path(model).expanduser()
    is_generator = (folder / "config.json").is_file() and not (folder / "model_index.json").is_file()
    if (folder / "run.json").is_file() and not (folder / "config.json").is_file():
        raise CodaError(f"{model} is an unfinished training: run its coda train-maskgit again to finish it")
    if is_generator:
        if tokenizer is None and not Path(TOKENIZER).exists():
            raise CodaError(f"there is no {TOKENIZER} for the generator {model}: give its --tokenizer")
        pipeline = CodaPipeline.from_parts(folder, tokenizer or TOKENIZER)
    elif tokenizer is not None:
        raise UsageError(f"--tokenizer belongs to a generator; {model} is a whole pipeline (or not a directory)")
    else:
        pipeline = load_whole_pipeline(model)
    if sampling is not None:
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **_asked(sampling))
        pipeline.scheduler.set_timesteps(None, pipeline.transformer.layout)
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
    return to_device(pipeline, placement)


def tokenizer_place(given: str | None) -> str | Path:
    """The directory or hub id of `--tokenizer`, which may be "bundled".

    None is runs/tokenizer, or the bundled model's tokenizer as long as there is no runs/tokenizer.
    """
    from ..loading import bundled_model

    given = given or (TOKENIZER if Path(TOKENIZER).exists() else "bundled")
    return bundled_model() if given == "bundled" else given


def load_whole_pipeline(model: str) -> CodaPipeline:
    """`CodaPipeline.from_pretrained` without diffusers' progress bar over four components."""
    from diffusers.utils import logging

    from ..coda_pipeline import CodaPipeline

    logging.disable_progress_bar()
    try:
        return CodaPipeline.from_pretrained(model)
    finally:
        logging.enable_progress_bar()


def to_device(model: Any, placement: Placement) -> Any:
    """A pipeline or a module on the device and in the precision of `--device` and `--dtype`."""
    import torch

    from coda.tokenizer.foundation.device import resolve_device

    device = resolve_device(placement.device)
    automatic = torch.bfloat16 if device.type == "cuda" else torch.float32
    return model.to(device=device, dtype=automatic if placement.dtype == "auto" else getattr(torch, placement.dtype))


def find_classes(words: Sequence[str], classes: ClassTable) -> list[int]:
    """Indices of the classes of `--class`.

    Raises:
        UsageError: If there is no such class, or the model has never seen it; the message has the nearest names.
    """
    try:
        return classes.find_all(words)
    except CodaError as error:
        raise UsageError(f"--class: {error}") from error


def find_class(word: str, classes: ClassTable) -> int:
    """Index of the one class of `--class`.

    Raises:
        UsageError: As `find_classes`, or if there are several.
    """
    found = find_classes([word], classes)
    if len(found) != 1:
        raise UsageError(f'--class "{word}" means {len(found)} classes; one is needed here')
    return found[0]


def _asked(sampling: SamplingSettings) -> dict[str, Any]:
    """The settings that were given, by their names in the scheduler's config."""
    steps = sampling.steps
    named = {
        "num_inference_steps": steps[0] if steps is not None and len(steps) == 1 else steps,
        "guidance_scale": sampling.guidance,
        "confidence_noise": sampling.noise,
        **{name: getattr(sampling, name) for name in ("guidance_schedule", "temperature", "top_k", "top_p", "redraw")},
    }
    return {name: value for name, value in named.items() if value is not None}


def sampling_record(pipeline: CodaPipeline, model: str) -> dict[str, Any]:
    """The record of how an image was made: the model, its tokenizer, and the scheduler's settings."""
    scheduler = {name: value for name, value in pipeline.scheduler.config.items() if not name.startswith("_")}
    return {
        "model": model,
        "tokenizer": pipeline.transformer.config.get("tokenizer_fingerprint"),
        "steps": scheduler.pop("num_inference_steps"),
        "guidance": scheduler.pop("guidance_scale"),
        **scheduler,
    }


def sampler_of(
    pipeline: CodaPipeline,
) -> Callable[[Sequence[int | None], Sequence[int]], torch.Tensor]:
    """The pipeline as a callable (class indices, seeds) -> images (B, 3, H, W) in [-1, 1], as benchmarks take it.

    Each image depends on its own class and seed alone. A model without classes ignores the indices.
    """
    classless = not pipeline.classes.seen

    def sample(labels: Sequence[int | None], seeds: Sequence[int]) -> torch.Tensor:
        chosen = [None] * len(labels) if classless else labels
        sampled: Any = pipeline(chosen, generator=seeds, batch_size=len(seeds), output_type="codes")
        return pipeline.decode(sampled.images)

    return sample
