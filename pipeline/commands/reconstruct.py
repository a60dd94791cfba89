"""`coda reconstruct`."""

from __future__ import annotations

from pathlib import Path

from ..cli.arguments import Count, Device, Precision, Size

_OVERLAP = 64  # pixels over which neighbouring tiles are blended, where they are large enough


def reconstruct(
    images: tuple[Path, ...],
    *,
    tokenizer: str = "runs/tokenizer",
    levels: Count | None = None,
    size: Size | None = None,
    tile: Count | None = None,
    out: Path = Path("runs/reconstructions"),
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
) -> str:
    """Photographs -> original, reconstruction and difference side by side, with PSNR, tokens and bits.

    Args:
        images: Photographs; they are scaled and cropped.
        tokenizer: Tokenizer directory or hub id.
        levels: Use only that many levels, from the coarsest on; all of them if not given.
        size: Pixels, or height x width as in 768x1024; the tokenizer's own if not given.
        tile: Take larger pictures through the VAE in tiles of so many pixels, in little memory; whole if not given.
        out: Directory to make.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: Precision of the arithmetic; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Replace what --out holds.

    Examples:
        coda reconstruct dog.jpg
        coda reconstruct dog.jpg cat.png --levels 4 --out runs/four-levels
        coda reconstruct panorama.jpg --size 1024x3072 --tile 512
    """
    from coda.tokenizer import CodaTokenizer
    from coda.tokenizer.foundation.atomic_io import write_json

    from ..reconstruction import reconstruct as through
    from .model import on_device
    from .output import new_directory

    figures = []
    with new_directory(out, overwrite, mark="reconstruction.json") as folder:
        model = on_device(CodaTokenizer.from_pretrained(tokenizer), device, dtype)
        if tile is not None:
            model.enable_tiling(tile, overlap=min(_OVERLAP, tile // 2 // model.vae.factor * model.vae.factor))
        pixels = (size, size) if isinstance(size, int) else size
        for number, image in enumerate(images):
            found = through(model, image, levels, pixels)
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
