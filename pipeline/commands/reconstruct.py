"""`coda reconstruct`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Annotated

from coda.tokenizer.foundation.atomic_io import write_json
from coda.tokenizer.foundation.errors import shown
from coda.tokenizer.foundation.settings import Count, Unsplit
from coda.tokenizer.settings import ImageOptions

from ..cli.arguments import Help, Without
from .flags import Out, Overwrite, Placement, TokenizerSize
from .model import to_device, tokenizer_place
from .output import new_directory

_OVERLAP = 64  # pixels over which neighboring tiles are blended, if they are large enough
_KINDS = ("original", "reconstruction", "difference")
OwnOrBundled = Annotated[
    str | None,
    Help("Tokenizer directory or hub id; by default runs/tokenizer, or the bundled model's if there is none."),
]
Images = Annotated[tuple[Path, ...], Unsplit, Help("Images; they are scaled and cropped.")]
Levels = Annotated[Count | None, Help("Use only this many levels, the coarsest; by default all.")]
Tile = Annotated[
    Count | None, Help("Encode and decode in tiles of this many pixels, to save memory; by default in one piece.")
]


def reconstruct(
    images: Images,
    *,
    tokenizer: OwnOrBundled = None,
    levels: Levels = None,
    size: TokenizerSize = None,
    tile: Tile = None,
    out: Out = Path("runs/reconstructions"),
    placement: Placement,
    options: Annotated[ImageOptions, Without("num_classes")],
    overwrite: Overwrite = False,
) -> str:
    """Encode and decode images: original, reconstruction and difference, with PSNR, tokens and bits.

    Examples:
        coda reconstruct dog.jpg
        coda reconstruct dog.jpg cat.png --levels 4 --out runs/four-levels
        coda reconstruct panorama.jpg --size 1024x3072 --tile 512
    """
    from coda.tokenizer import CodaTokenizer

    from ..reconstruction import reconstruct as through

    names = _file_names(images)
    made = []
    place = tokenizer_place(tokenizer)
    with new_directory(out, overwrite, mark="reconstruction.json") as folder:
        model = to_device(CodaTokenizer.from_pretrained(place), placement)
        if tile is not None:
            model.enable_tiling(tile, overlap=min(_OVERLAP, tile // 2 // model.vae.factor * model.vae.factor))
        for image, name in zip(images, names, strict=True):
            pixels = (size, size) if isinstance(size, int) else size
            found = through(model, image, levels, pixels, options.max_pixels)
            found.side_by_side().save(folder / f"{name}.png")
            for kind, part in zip(_KINDS, found.images, strict=True):
                part.save(folder / f"{name}-{kind}.png")
            print(f"{shown(image)}: {found.describe()}", flush=True)
            figures = {key: getattr(found, key) for key in ("psnr", "tokens", "bits", "bits_per_pixel")}
            made.append({"image": str(image), "file": f"{name}.png", **figures})
        described = {"tokenizer": str(place), "fingerprint": model.fingerprint, "levels": levels, "images": made}
        write_json(folder / "reconstruction.json", described)
    return f"Made {', '.join(str(out / f'{name}.png') for name in names)}"


def _file_names(images: Sequence[Path]) -> list[str]:
    """A name for each image's four files, such that no file is written twice."""
    names: list[str] = []
    used: set[str] = set()
    for image in images:
        for name in chain([image.stem], (f"{image.stem}-{number}" for number in count(1))):
            files = {name.casefold(), *(f"{name}-{kind}".casefold() for kind in _KINDS)}
            if not files & used:
                break
        names.append(name)
        used |= files
    return names
