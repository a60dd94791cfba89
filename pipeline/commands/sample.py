"""`coda sample`."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from ..cli.arguments import Count, Device, Precision, Seed, Unsplit, Weight

if TYPE_CHECKING:
    from ..classes import ClassTable


def sample(
    *,
    class_: Annotated[tuple[str, ...], Unsplit] = (),
    model: str = "bundled",
    tokenizer: str | None = None,
    num: Count = 4,
    seed: Seed = 0,
    steps: tuple[Count, ...] | None = None,
    guidance: Weight | None = None,
    batch_size: Count = 16,
    out: Path = Path("runs/samples"),
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
) -> str:
    """Generator + tokenizer -> PNGs and a grid.

    A picture depends on its class and its seed alone: neither --num, --batch-size nor the other classes change it.
    The file 207-golden-retriever-seed3.png comes out again with --class 207 --seed 3 --num 1.

    Args:
        class_: Index (207), WordNet id (n02099601) or name ("golden retriever"); several with commas between, or the
            flag again. Without any, each seed draws a class.
        model: Generator directory, pipeline directory or hub id, or the word bundled.
        tokenizer: Directory or hub id of the tokenizer that belongs to a generator; runs/tokenizer if not given.
        num: Pictures per class.
        seed: Seed of the first picture of each class; the next one has the next seed.
        steps: One number, shared out over the levels, or one per level (1,1,2,4); the model's if not given.
        guidance: Classifier-free guidance, 1 is none; the model's if not given.
        batch_size: Pictures made at a time.
        out: Directory to make.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: Precision of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Replace what --out holds.

    Examples:
        coda sample --class 207
        coda sample --model runs/generator --class "golden retriever,tabby" --class n02783161 --num 8 --seed 1
    """
    from coda.tokenizer.foundation.atomic_io import write_json
    from coda.tokenizer.foundation.progress import progress
    from coda.tokenizer.images import to_pil, to_uint8

    from ..grid import labelled_grid
    from .model import find_classes, open_pipeline, sampler_of, settings_of
    from .output import new_directory

    with new_directory(out, overwrite, mark="samples.json") as folder:
        pipeline = open_pipeline(model, tokenizer, device, dtype)
        classes = pipeline.classes
        chosen = find_classes(class_, classes)
        labels = [label for label in chosen for _ in range(num)] if chosen else _drawn(classes, seed, num)
        seeds = [seed + i % num for i in range(len(labels))]
        draw = sampler_of(pipeline, steps, guidance)
        pictures, names = [], []
        with progress("Sampling", total=len(labels), unit="images") as bar:
            for first in range(0, len(labels), batch_size):
                part = slice(first, first + batch_size)
                batch = to_uint8(draw(labels[part], seeds[part]))
                for label, own_seed, image in zip(labels[part], seeds[part], batch, strict=True):
                    names.append(_name(classes, label, own_seed))
                    pictures.append(to_pil(image))
                    pictures[-1].save(folder / f"{names[-1]}.png")
                bar.advance(len(batch))
        labelled_grid(pictures, names, columns=num if len(chosen) > 1 else None).save(folder / "grid.png")
        made = [{"file": f"{n}.png", "class": c, "seed": s} for n, c, s in zip(names, labels, seeds, strict=True)]
        write_json(folder / "samples.json", {**settings_of(pipeline, model, steps, guidance), "pictures": made})
    return f"Made {len(names)} picture{'s' if len(names) > 1 else ''} in {out}, together in {out / 'grid.png'}"


def _drawn(classes: ClassTable, seed: int, num: int) -> list[int | None]:
    """A class for each seed; None where the model knows no classes."""
    if not classes.seen:
        return [None] * num
    return [random.Random(seed + i).choice(classes.seen) for i in range(num)]


def _name(classes: ClassTable, label: int | None, seed: int) -> str:
    """A file's name: class index, class name, seed."""
    if label is None:
        return f"seed{seed}"
    words = re.sub(r"[^a-z0-9]+", "-", classes[label].name.lower()).strip("-")
    return "-".join(part for part in (str(label), words if words != str(label) else "", f"seed{seed}") if part)
