"""`coda edit inpaint`, `outpaint`, `vary`, `change-class`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from ..cli.arguments import Box, Count, Device, Natural, Precision, Range, Region, Seed, Weight

Coverage = Annotated[float, Range(0, 1, open_low=True)]


def inpaint(
    image: Path,
    *,
    region: Region,
    class_: str | None = None,
    model: str = "bundled",
    tokenizer: str | None = None,
    num: Count = 4,
    seed: Seed = 0,
    steps: tuple[Count, ...] | None = None,
    guidance: Weight | None = None,
    coverage: Coverage = 0.5,
    composite: bool = True,
    batch_size: Count = 16,
    out: Path = Path("runs/edits"),
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
) -> str:
    """Fill a region of a photograph anew, so that it fits the rest.

    Args:
        image: The photograph; it is scaled and cropped to the tokenizer's size.
        region: What to fill: a box left,top,right,bottom in pixels of the tokenizer's picture or in shares of its
            size, or a mask image whose light part is meant.
        class_: What the picture shows: index, WordNet id or name; without it, no class and no guidance.
        model: Generator directory, pipeline directory or hub id, or the word bundled.
        tokenizer: Directory or hub id of the tokenizer that belongs to a generator; runs/tokenizer if not given.
        num: How many variants.
        seed: Seed of the first variant; the next one has the next seed.
        steps: One number, shared out over the levels, or one per level; the model's if not given.
        guidance: Classifier-free guidance, 1 is none; the model's if not given.
        coverage: A cell is sampled anew if at least this share of its area is to change.
        composite: Leave what the decoder gives everywhere, instead of laying the photograph's own pixels over all that
            was to stay.
        batch_size: Variants made at a time.
        out: Directory to make.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: Precision of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Replace what --out holds.

    Examples:
        coda edit inpaint dog.jpg --region 64,64,192,192 --class 207
    """
    return _edit(
        "inpaint",
        image,
        region=region,
        class_=class_,
        model=model,
        tokenizer=tokenizer,
        num=num,
        seed=seed,
        steps=steps,
        guidance=guidance,
        coverage=coverage,
        composite=composite,
        batch_size=batch_size,
        out=out,
        device=device,
        dtype=dtype,
        overwrite=overwrite,
    )


def outpaint(
    image: Path,
    *,
    box: Box = (0.25, 0.25, 0.75, 0.75),
    class_: str | None = None,
    model: str = "bundled",
    tokenizer: str | None = None,
    num: Count = 4,
    seed: Seed = 0,
    steps: tuple[Count, ...] | None = None,
    guidance: Weight | None = None,
    coverage: Coverage = 0.5,
    composite: bool = True,
    batch_size: Count = 16,
    out: Path = Path("runs/edits"),
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
) -> str:
    """Make a photograph smaller and paint on around it.

    Args:
        image: The photograph; it is scaled and cropped to the tokenizer's size.
        box: Where the photograph goes: left,top,right,bottom in pixels of the tokenizer's picture, or in shares of its
            size.
        class_: What the picture shows: index, WordNet id or name; without it, no class and no guidance.
        model: Generator directory, pipeline directory or hub id, or the word bundled.
        tokenizer: Directory or hub id of the tokenizer that belongs to a generator; runs/tokenizer if not given.
        num: How many variants.
        seed: Seed of the first variant; the next one has the next seed.
        steps: One number, shared out over the levels, or one per level; the model's if not given.
        guidance: Classifier-free guidance, 1 is none; the model's if not given.
        coverage: A cell is sampled anew if at least this share of its area is to change.
        composite: Leave what the decoder gives everywhere, instead of laying the photograph's own pixels over all that
            was to stay.
        batch_size: Variants made at a time.
        out: Directory to make.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: Precision of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Replace what --out holds.

    Examples:
        coda edit outpaint dog.jpg --box 0.2,0.4,0.8,1 --class 207
    """
    return _edit(
        "outpaint",
        image,
        box=box,
        class_=class_,
        model=model,
        tokenizer=tokenizer,
        num=num,
        seed=seed,
        steps=steps,
        guidance=guidance,
        coverage=coverage,
        composite=composite,
        batch_size=batch_size,
        out=out,
        device=device,
        dtype=dtype,
        overwrite=overwrite,
    )


def vary(
    image: Path,
    *,
    region: Region | None = None,
    keep_levels: Natural | None = None,
    class_: str | None = None,
    model: str = "bundled",
    tokenizer: str | None = None,
    num: Count = 4,
    seed: Seed = 0,
    steps: tuple[Count, ...] | None = None,
    guidance: Weight | None = None,
    coverage: Coverage = 0.5,
    composite: bool = True,
    batch_size: Count = 16,
    out: Path = Path("runs/edits"),
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
) -> str:
    """Other versions of a photograph: the layout stays, details are sampled anew.

    Args:
        image: The photograph; it is scaled and cropped to the tokenizer's size.
        region: Where: a box left,top,right,bottom in pixels of the tokenizer's picture or in shares of its size, or a
            mask image whose light part is meant; everywhere if not given.
        keep_levels: How many of the coarsest levels stay; half of them if not given.
        class_: What the picture shows: index, WordNet id or name; without it, no class and no guidance.
        model: Generator directory, pipeline directory or hub id, or the word bundled.
        tokenizer: Directory or hub id of the tokenizer that belongs to a generator; runs/tokenizer if not given.
        num: How many variants.
        seed: Seed of the first variant; the next one has the next seed.
        steps: One number, shared out over the levels, or one per level; the model's if not given.
        guidance: Classifier-free guidance, 1 is none; the model's if not given.
        coverage: A cell is sampled anew if at least this share of its area is to change.
        composite: Leave what the decoder gives everywhere, instead of laying the photograph's own pixels over all that
            was to stay.
        batch_size: Variants made at a time.
        out: Directory to make.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: Precision of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Replace what --out holds.

    Examples:
        coda edit vary dog.jpg --keep-levels 3 --num 8
    """
    return _edit(
        "vary",
        image,
        region=region,
        keep_levels=keep_levels,
        class_=class_,
        model=model,
        tokenizer=tokenizer,
        num=num,
        seed=seed,
        steps=steps,
        guidance=guidance,
        coverage=coverage,
        composite=composite,
        batch_size=batch_size,
        out=out,
        device=device,
        dtype=dtype,
        overwrite=overwrite,
    )


def change_class(
    image: Path,
    *,
    class_: str,
    region: Region | None = None,
    keep_levels: Natural | None = None,
    model: str = "bundled",
    tokenizer: str | None = None,
    num: Count = 4,
    seed: Seed = 0,
    steps: tuple[Count, ...] | None = None,
    guidance: Weight | None = None,
    coverage: Coverage = 0.5,
    composite: bool = True,
    batch_size: Count = 16,
    out: Path = Path("runs/edits"),
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
) -> str:
    """Make something else of what a photograph shows, in its place.

    Args:
        image: The photograph; it is scaled and cropped to the tokenizer's size.
        class_: What the picture is to show: index, WordNet id or name.
        region: Where: a box left,top,right,bottom in pixels of the tokenizer's picture or in shares of its size, or a
            mask image whose light part is meant; everywhere if not given.
        keep_levels: How many of the coarsest levels stay; a quarter of them if not given.
        model: Generator directory, pipeline directory or hub id, or the word bundled.
        tokenizer: Directory or hub id of the tokenizer that belongs to a generator; runs/tokenizer if not given.
        num: How many variants.
        seed: Seed of the first variant; the next one has the next seed.
        steps: One number, shared out over the levels, or one per level; the model's if not given.
        guidance: Classifier-free guidance, 1 is none; the model's if not given.
        coverage: A cell is sampled anew if at least this share of its area is to change.
        composite: Leave what the decoder gives everywhere, instead of laying the photograph's own pixels over all that
            was to stay.
        batch_size: Variants made at a time.
        out: Directory to make.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: Precision of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Replace what --out holds.

    Examples:
        coda edit change-class dog.jpg --class tabby
    """
    return _edit(
        "change_class",
        image,
        region=region,
        keep_levels=keep_levels,
        class_=class_,
        model=model,
        tokenizer=tokenizer,
        num=num,
        seed=seed,
        steps=steps,
        guidance=guidance,
        coverage=coverage,
        composite=composite,
        batch_size=batch_size,
        out=out,
        device=device,
        dtype=dtype,
        overwrite=overwrite,
    )


def _edit(
    kind: str,
    image: Path,
    *,
    class_: str | None,
    model: str,
    tokenizer: str | None,
    num: int,
    seed: int,
    steps: Sequence[int] | None,
    guidance: float | None,
    out: Path,
    batch_size: int,
    device: str,
    dtype: str,
    overwrite: bool,
    **how: Any,
) -> str:
    """Make variants with the function `kind` of `coda.pipeline.editing`, write them, and say so."""
    from coda.tokenizer.foundation.atomic_io import write_json

    from .. import editing
    from .model import find_class, open_pipeline, settings_of, steps_of
    from .output import new_directory

    with new_directory(out, overwrite, mark="edit.json") as folder:
        pipeline = open_pipeline(model, tokenizer, device, dtype)
        label = None if class_ is None else find_class(class_, pipeline.classes)
        seeds = [seed + i for i in range(num)]
        edit = getattr(editing, kind)(
            pipeline,
            image,
            class_label=label,
            num_images=num,
            guidance_scale=guidance,
            num_inference_steps=steps_of(steps),
            generator=seeds,
            batch_size=batch_size,
            **how,
        )
        edit.original.save(folder / "original.png")
        edit.mask.save(folder / "region.png")
        for own_seed, variant in zip(seeds, edit.images, strict=True):
            variant.save(folder / f"variant-seed{own_seed}.png")
        edit.grid().save(folder / "grid.png")
        made = {"edit": kind, "image": str(image), "class": label, "seeds": seeds, **how}
        measured = {"resampled_codes": edit.resampled, "outside_psnr": edit.outside_psnr}
        write_json(folder / "edit.json", {**made, **settings_of(pipeline, model, steps, guidance), **measured})
    return f"Made {num} variant{'s' if num > 1 else ''} of {image} in {out}, together in {out / 'grid.png'}"
