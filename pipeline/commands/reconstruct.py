"""`coda reconstruct`."""

from __future__ import annotations

from pathlib import Path

from ..arguments import Count, Device, Precision


def reconstruct(
    images: tuple[Path, ...],
    *,
    tokenizer: str = "runs/tokenizer",
    levels: Count | None = None,
    out: Path = Path("runs/reconstructions"),
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
) -> str:
    """Photographs -> original, reconstruction and difference side by side, with PSNR, tokens and bits.

    Args:
        images: Photographs; they are scaled and cropped to the tokenizer's size.
        tokenizer: Tokenizer directory or hub id.
        levels: Use only that many levels, from the coarsest on; all of them if not given.
        out: Directory to make.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: Precision of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Replace what --out holds.

    Examples:
        coda reconstruct dog.jpg
        coda reconstruct dog.jpg cat.png --levels 4 --out runs/four-levels
    """
    from coda.tokenizer import CodaTokenizer
    from coda.tokenizer.durable import write_json

    from ..reconstruction import reconstruct as through
    from .model import on_device
    from .output import new_directory

    figures = []
    with new_directory(out, overwrite, mark="reconstruction.json") as folder:
        model = on_device(CodaTokenizer.from_pretrained(tokenizer), device, dtype)
        for number, image in enumerate(images):
            found = through(model, image, levels)
            repeated = image.stem in [other.stem for other in images[:number]]
            name = f"{image.stem}-{number}" if repeated else image.stem
            found.side_by_side().save(folder / f"{name}.png")
            for kind, picture in zip(("original", "reconstruction", "difference"), found.images, strict=True):
                picture.save(folder / f"{name}-{kind}.png")
            print(f"{image}: {found.describe()}", flush=True)
            figures.append(
                {
                    "image": str(image),
                    "file": f"{name}.png",
                    "psnr": found.psnr,
                    "tokens": found.tokens,
                    "bits": found.bits,
                    "bits_per_pixel": found.bits_per_pixel,
                }
            )
        made = {"tokenizer": tokenizer, "fingerprint": model.fingerprint, "levels": levels, "images": figures}
        write_json(folder / "reconstruction.json", made)
    return f"Made {', '.join(str(out / str(entry['file'])) for entry in figures)}"
