"""What `--model`, `--tokenizer` and `--class` mean, for the commands that sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..cli.arguments import FailedRun, UsageError

if TYPE_CHECKING:
    import torch

    from ..classes import ClassTable
    from ..coda_pipeline import CodaPipeline

TOKENIZER = "runs/tokenizer"  # beside a bare generator, where none is given


def open_pipeline(model: str, tokenizer: str | None, device: str, dtype: str) -> CodaPipeline:
    """The pipeline of `--model` and `--tokenizer`, on its device.

    Args:
        model: "bundled", the directory of a generator or of a pipeline, or a pipeline's hub id.
        tokenizer: Directory or hub id, for a generator; None takes `TOKENIZER`.
        device: "auto" or a torch device.
        dtype: "auto" (bfloat16 on CUDA, float32 elsewhere) or torch's name of one.

    Raises:
        UsageError: A tokenizer was given beside a whole pipeline.
        FailedRun: The generator's training has not ended, or no tokenizer was given and there is none in `TOKENIZER`.
        CodaError: Something cannot be loaded, or the two do not belong together.
    """
    import sys

    from ..coda_pipeline import CodaPipeline

    folder = Path(model).expanduser()
    if (folder / "run.json").is_file() and not (folder / "config.json").is_file():
        raise FailedRun(f"{model} is a training that has not ended: give its coda train-maskgit again")
    if tokenizer is None and not Path(TOKENIZER).exists() and (folder / "config.json").is_file():
        raise FailedRun(f"there is no {TOKENIZER} beside the generator {model}: give its --tokenizer")
    if (folder / "config.json").is_file() and not (folder / "model_index.json").is_file():
        pipeline = CodaPipeline.from_parts(folder, tokenizer or TOKENIZER)
    elif tokenizer is not None:
        raise UsageError(f"--tokenizer belongs to a generator; {model} is a whole pipeline (or no directory)")
    else:
        pipeline = load_whole_pipeline(model)
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
    return on_device(pipeline, device, dtype)


def load_whole_pipeline(model: str) -> CodaPipeline:
    """`CodaPipeline.from_pretrained` without diffusers' progress bar over four components."""
    from diffusers.utils import logging

    from ..coda_pipeline import CodaPipeline

    logging.disable_progress_bar()
    try:
        return CodaPipeline.from_pretrained(model)
    finally:
        logging.enable_progress_bar()


def on_device(model: Any, device: str, dtype: str) -> Any:
    """A pipeline or a module on the device and in the precision of `--device` and `--dtype`."""
    import torch

    from coda.tokenizer.foundation.device import resolve_device

    place = resolve_device(device)
    automatic = torch.bfloat16 if place.type == "cuda" else torch.float32
    return model.to(device=place, dtype=automatic if dtype == "auto" else getattr(torch, dtype))


def find_classes(words: Sequence[str], classes: ClassTable) -> list[int]:
    """Indices of the classes that `--class` means: each word one class, or several with commas between.

    Names with commas in them ("tench, Tinca tinca") are found too: the longest stretch that is a name wins.

    Raises:
        UsageError: There is no such class, or the model has never seen it; the message has the nearest names.
    """
    from coda.tokenizer.foundation.errors import CodaError

    found = []
    for word in words:
        parts = word.split(",")
        while parts:
            for taken in range(len(parts), 0, -1):
                try:
                    index = classes.find(",".join(parts[:taken]).strip())
                except CodaError as error:
                    if taken == 1:
                        raise UsageError(f"--class: {error}") from error
                else:
                    break
            found.append(index)
            del parts[:taken]
    return found


def find_class(word: str, classes: ClassTable) -> int:
    """Index of the one class that `word` means.

    Raises:
        UsageError: As in `find_classes`, or it means several.
    """
    found = find_classes([word], classes)
    if len(found) != 1:
        raise UsageError(f'--class "{word}" means {len(found)} classes; one is needed here')
    return found[0]


def sampler_of(
    pipeline: CodaPipeline, steps: Sequence[int] | None, guidance: float | None
) -> Callable[[Sequence[int | None], Sequence[int]], torch.Tensor]:
    """The pipeline as a callable (class indices, seeds) -> images (B, 3, H, W) in [-1, 1].

    Each picture depends on its own class and seed alone. A model that knows no classes is not asked for any.
    """
    classless = not pipeline.classes.seen

    def sample(labels: Sequence[int | None], seeds: Sequence[int]) -> torch.Tensor:
        import torch

        with torch.inference_mode():
            codes = pipeline.sample_codes(
                [None] * len(labels) if classless else labels,
                [torch.Generator().manual_seed(seed) for seed in seeds],
                guidance_scale=guidance,
                num_inference_steps=steps_of(steps),
                batch_size=len(labels),
            )
            return pipeline.decode(codes)

    return sample


def steps_of(steps: Sequence[int] | None) -> int | tuple[int, ...] | None:
    """`--steps` as the pipeline takes it: one number for all levels, or one per level."""
    return None if steps is None else steps[0] if len(steps) == 1 else tuple(steps)


def settings_of(
    pipeline: CodaPipeline, model: str, steps: Sequence[int] | None, guidance: float | None
) -> dict[str, Any]:
    """What made a picture, for the files beside it: the model, its tokenizer, steps and guidance."""
    scheduler = pipeline.scheduler.config
    return {
        "model": model,
        "tokenizer": pipeline.transformer.config.get("tokenizer_fingerprint"),
        "steps": steps_of(steps) or scheduler["num_inference_steps"],
        "guidance": scheduler["guidance_scale"] if guidance is None else guidance,
        **{name: scheduler[name] for name in ("order", "temperature", "confidence_noise", "mask_schedule")},
    }
