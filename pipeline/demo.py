"""The whole chain at pocket size: photos in, sampled images out, in minutes on a laptop's CPU.

    python -m coda.pipeline.demo [--data FOLDER] [--out runs/demo]

Every stage is one command of `coda`, printed before it runs, so that it can be copied, changed and run again. Finished
stages are not repeated. Without --data the images are crops of the photos that scikit-image ships.
"""

from __future__ import annotations

import argparse
import random
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from coda.tokenizer.foundation.errors import CodaError

from .cli.cli import main as coda

SIZE = 64  # pixels
MOST_IMAGES = 2000  # of --data
CROPS = 160  # per photo
CLASSES_SHOWN = 4

# File in scikit-image, ImageNet class that fits it.
PHOTOS = {
    "chelsea.png": "n02123045",  # tabby
    "coffee.png": "n07920052",  # espresso
    "motorcycle_left.png": "n03791053",  # motor scooter
    "rocket.jpg": "n04008634",  # projectile
}


def demo(*, data: Path | None = None, out: Path = Path("runs/demo")) -> int:
    """Run the chain.

    Args:
        data: Folder, tars or parquet of images; crops of scikit-image's photos by default.
        out: Output directory.

    Returns:
        The exit status of the first stage that failed, or 0.
    """
    shown = "photos" if data is None else str(data)
    print(f"coda, pocket size: from {shown} to sampled images, in {out}", flush=True)
    photos = f"{data}[:{MOST_IMAGES}]" if data else str(crop_photos(out / "photographs"))
    vae, tokenizer, cache, generator, samples = (str(out / name) for name in _STAGES)
    stages = [
        ["train-vae", "--data", photos, "--out", vae, "--size", str(SIZE), "--steps", "300", "--batch-size", "16"],
        ["adapt", "--vae", vae, "--data", photos, "--out", tokenizer, "--codebook-size", "512", "--lora-rank", "8",
         "--steps", "100", "--batch-size", "16"],
        ["tokenize-dataset", "--tokenizer", tokenizer, "--data", photos, "--out", cache],
        ["train-maskgit", "--cache", cache, "--out", generator, "--preset", "pocket", "--steps", "1000",
         "--batch-size", "32", "--lr", "3e-3", "--ema-decay", "0.99"],
    ]  # fmt: skip
    for words in stages:
        if status := _run(words):
            return status
    classes = ",".join(map(str, _classes_in(Path(cache))[:CLASSES_SHOWN]))
    return _run(
        ["sample", "--model", generator, "--tokenizer", tokenizer, *(["--class", classes] if classes else []),
         "--num", "4", "--out", samples, "--overwrite"]
    )  # fmt: skip


_STAGES = ("vae", "tokenizer", "cache", "generator", "samples")


def crop_photos(folder: Path, size: int = SIZE) -> Path:
    """Fill `folder` with square crops of scikit-image's photos, one subfolder per class; returns `folder`."""
    if folder.exists():
        return folder
    try:
        import skimage
    except ImportError as error:
        raise CodaError(
            "the photos of the demonstration come with scikit-image: pip install 'coda[demo]', or give --data"
        ) from error
    from PIL import Image

    from coda.tokenizer.foundation.atomic_io import publish_directory

    partial = folder.with_name(f".{folder.name}.partial")
    rng = random.Random(0)
    for name, wordnet_id in PHOTOS.items():
        with Image.open(Path(skimage.__file__).parent / "data" / name) as opened:
            photo = opened.convert("RGB")
        (partial / wordnet_id).mkdir(parents=True, exist_ok=True)
        for number in range(CROPS):
            side = int(min(photo.size) * rng.uniform(0.6, 1.0))
            left, top = (rng.randint(0, extent - side) for extent in photo.size)
            crop = photo.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS)
            crop.save(partial / wordnet_id / f"{Path(name).stem}_{number:03}.png")
    return publish_directory(partial, folder)


def _run(words: Sequence[str]) -> int:
    print(f"\n$ coda {shlex.join(words)}", flush=True)
    return coda(words)


def _classes_in(cache: Path) -> list[int]:
    """The classes of a cache, most images first."""
    from collections import Counter

    from coda.tokenizer.code_cache import CodeCache

    counts = Counter(CodeCache(cache).labels.tolist())
    return [label for label, _ in counts.most_common() if label >= 0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration from the command line; returns the exit status."""
    parser = argparse.ArgumentParser("coda.pipeline.demo", description="The whole chain at pocket size.")
    parser.add_argument("--data", type=Path, help="folder, tars or parquet of images [default: crops of photos]")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="output directory [default: runs/demo]")
    try:
        return demo(**vars(parser.parse_args(argv)))
    except CodaError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
