"""`coda sample`."""

from __future__ import annotations

import math
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from coda.generator.settings import SamplingSettings
from coda.tokenizer.foundation.atomic_io import write_json
from coda.tokenizer.foundation.settings import Count

from ..cli.arguments import Help
from .flags import BatchSize, Classes, ModelOptions, Out, Overwrite, Placement
from .model import find_classes, open_pipeline, sampling_record
from .output import new_directory

if TYPE_CHECKING:
    from ..classes import ClassTable


def sample(
    *,
    class_: Classes = (),
    source: ModelOptions,
    num: Annotated[Count, Help("Images per class, with the seeds --seed, --seed + 1, ...")] = 4,
    sampling: SamplingSettings,
    batch_size: BatchSize = 16,
    out: Out = Path("runs/samples"),
    placement: Placement,
    overwrite: Overwrite = False,
) -> str:
    """Sample images of classes, as PNGs and a grid. Without a class, each seed draws one.

    An image depends on its class and its seed alone, not on --num, --batch-size or the other classes: --class 207
    --seed 3 --num 1 makes the file 207-golden-retriever-seed3.png again.

    Examples:
        coda sample --class 207
        coda sample --class all --num 2
        coda sample --model runs/generator --class "golden retriever,tabby" --class n02783161 --num 8 --seed 1
    """
    from ..seeds import image_seeds

    with new_directory(out, overwrite, mark="samples.json") as folder:
        pipeline = open_pipeline(source, placement, sampling)
        chosen = find_classes(class_, pipeline.classes)
        labels = [label for label in chosen for _ in range(num)] or _drawn(pipeline.classes, sampling.seed, num)
        seeds = image_seeds(sampling.seed, labels if chosen else [None] * num)
        output: Any = pipeline(labels, generator=seeds, batch_size=batch_size)
        names = [_name(pipeline.classes, label, seed) for label, seed in zip(labels, seeds, strict=True)]
        for name, image in zip(names, output.images, strict=True):
            image.save(folder / f"{name}.png")
        output.grid(_columns(len(chosen), num)).save(folder / "grid.png")
        made = [{"file": f"{n}.png", "class": c, "seed": s} for n, c, s in zip(names, labels, seeds, strict=True)]
        record = sampling_record(pipeline, source.model)
        write_json(folder / "samples.json", {**record, "images": made})
    return f"Made {len(names)} image{'s' if len(names) > 1 else ''} in {out}, together in {out / 'grid.png'}"


def _drawn(classes: ClassTable, seed: int, num: int) -> list[int | None]:
    """A class for each seed; None if the model was trained without classes."""
    if not classes.seen:
        return [None] * num
    return [random.Random(seed + i).choice(classes.seen) for i in range(num)]


def _name(classes: ClassTable, label: int | None, seed: int) -> str:
    """A file's name: class index, class name, seed."""
    if label is None:
        return f"seed{seed}"
    words = re.sub(r"[^a-z0-9]+", "-", classes[label].name.lower())[:80].strip("-")
    return "-".join(part for part in (str(label), words if words != str(label) else "", f"seed{seed}") if part)


def _columns(classes: int, num: int) -> int | None:
    """Columns of a grid that is about as wide as high, in which each class's images stay together in a row."""
    if classes < 2:
        return None
    return num * max(1, round(math.sqrt(classes / num)))
