"""`coda edit inpaint`, `outpaint`, `vary`, `change-class`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from coda.generator.settings import SamplingSettings
from coda.tokenizer.foundation.atomic_io import write_json
from coda.tokenizer.foundation.settings import Count, Natural, Parsed, Range, setting
from coda.tokenizer.settings import ImageOptions

from ..cli.arguments import Help, Without
from .flags import ModelOptions, Out, Overwrite, Placement
from .model import find_class, open_pipeline, sampling_record
from .output import new_directory


def parse_box(value: Any) -> tuple[float, ...]:
    """Four numbers: left, top, right, bottom."""
    parts = list(value) if isinstance(value, list | tuple) else str(value).split(",")
    numbers = tuple(float(part) for part in parts if not isinstance(part, bool))
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise ValueError
    return numbers


def parse_region(value: Any) -> tuple[float, ...] | str:
    """A box, or the path of a mask image."""
    if not isinstance(value, str) or re.fullmatch(r"[-+0-9.,eE\s]+", value):
        return parse_box(value)
    return value


Box = Annotated[Any, Parsed(parse_box, "a box like 64,64,192,192: left,top,right,bottom", "L,T,R,B")]
Region = Annotated[
    Any, Parsed(parse_region, "a box like 64,64,192,192 (left,top,right,bottom) or a mask image", "L,T,R,B|PATH")
]
_REGION = (
    "a box left,top,right,bottom, in pixels of the tokenizer's image size or as fractions of it, or a mask image, "
    "which is light inside the region"
)
InputImage = Annotated[Path, Help("The image; it is scaled and cropped to the tokenizer's size.")]
ShownClass = Annotated[
    str | None, Help("What the image shows: index, WordNet id or name; by default no class and no guidance.")
]
OptionalRegion = Annotated[Region | None, Help(f"Where: {_REGION}; by default everywhere.")]
KeepLevels = Annotated[
    Natural | None,
    Help("How many of the coarsest levels stay; by default half of them for vary, a quarter for change-class."),
]


@dataclass(frozen=True)
class EditOptions(ImageOptions, Placement, SamplingSettings, ModelOptions):
    """Flags of every kind of editing."""

    num: Count = setting(4, "Number of variants, with the seeds --seed, --seed + 1, ...")
    coverage: Annotated[float, Range(0, 1, open_low=True)] = setting(
        0.5, "A cell is resampled if at least this fraction of its area is to change."
    )
    composite: bool = setting(
        True, "Show the decoder's output everywhere, instead of the image's own pixels outside the region."
    )
    batch_size: Count = setting(16, "Variants per batch.")


Options = Annotated[EditOptions, Without("num_classes")]


def inpaint(
    image: InputImage,
    *,
    region: Annotated[Region, Help(f"What to fill: {_REGION}.")],
    class_: ShownClass = None,
    options: Options,
    out: Out = Path("runs/edits"),
    overwrite: Overwrite = False,
) -> str:
    """Fill a region of an image so that it fits the rest.

    Examples:
        coda edit inpaint dog.jpg --region 64,64,192,192 --class 207
    """
    return _edit("inpaint", image, class_, options, out, overwrite, region=region)


def outpaint(
    image: InputImage,
    *,
    box: Annotated[
        Box, Help("Where the image goes: left,top,right,bottom, in pixels of the tokenizer's size or as fractions.")
    ] = (0.25, 0.25, 0.75, 0.75),
    class_: ShownClass = None,
    options: Options,
    out: Out = Path("runs/edits"),
    overwrite: Overwrite = False,
) -> str:
    """Make an image smaller and continue it beyond its border.

    Examples:
        coda edit outpaint dog.jpg --box 0.2,0.4,0.8,1 --class 207
    """
    return _edit("outpaint", image, class_, options, out, overwrite, box=box)


def vary(
    image: InputImage,
    *,
    region: OptionalRegion = None,
    keep_levels: KeepLevels = None,
    class_: ShownClass = None,
    options: Options,
    out: Out = Path("runs/edits"),
    overwrite: Overwrite = False,
) -> str:
    """Resample the finer levels of an image: variants of the whole or of a region.

    Examples:
        coda edit vary dog.jpg --keep-levels 3 --num 8
    """
    return _edit("vary", image, class_, options, out, overwrite, region=region, keep_levels=keep_levels)


def change_class(
    image: InputImage,
    *,
    class_: Annotated[str, Help("What the image should show: index, WordNet id or name.")],
    region: OptionalRegion = None,
    keep_levels: KeepLevels = None,
    options: Options,
    out: Out = Path("runs/edits"),
    overwrite: Overwrite = False,
) -> str:
    """Turn what an image shows into another class, in the same place.

    Examples:
        coda edit change-class dog.jpg --class tabby
    """
    return _edit("change_class", image, class_, options, out, overwrite, region=region, keep_levels=keep_levels)


def _edit(
    kind: str, image: Path, class_: str | None, options: EditOptions, out: Path, overwrite: bool, **how: Any
) -> str:
    """Make variants with the function `kind` of `coda.pipeline.editing`, and write them."""
    from .. import editing

    how |= {"coverage": options.coverage, "composite": options.composite}
    with new_directory(out, overwrite, mark="edit.json") as folder:
        pipeline = open_pipeline(options, options, options)
        label = None if class_ is None else find_class(class_, pipeline.classes)
        seeds = [options.seed + i for i in range(options.num)]
        edit = getattr(editing, kind)(
            pipeline,
            image,
            class_label=label,
            num_images=options.num,
            generator=seeds,
            batch_size=options.batch_size,
            max_pixels=options.max_pixels,
            **how,
        )
        edit.original.save(folder / "original.png")
        edit.mask.save(folder / "region.png")
        for seed, variant in zip(seeds, edit.images, strict=True):
            variant.save(folder / f"variant-seed{seed}.png")
        edit.grid().save(folder / "grid.png")
        made = {"edit": kind, "image": str(image), "class": label, "seeds": seeds, **how}
        measured = {"resampled_codes": edit.resampled, "outside_psnr": edit.outside_psnr}
        write_json(folder / "edit.json", {**made, **sampling_record(pipeline, options.model), **measured})
    variants = f"{options.num} variant{'s' if options.num > 1 else ''}"
    return f"Made {variants} of {image} in {out}, together in {out / 'grid.png'}"
