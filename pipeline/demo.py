"""The whole chain at pocket size: photographs in, a sampled picture out, in minutes on a laptop's CPU.

    python -m coda.pipeline.demo [--data FOLDER] [--out runs/demo]

Every stage is one command of `coda`, printed before it runs, so that it can be copied, changed and given again. What
is finished already is not done twice. Without --data the photographs are crops of those that scikit-image ships.
"""

from __future__ import annotations

import random
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from .cli.arguments import UsageError, arguments_of, parse, resolve
from .cli.cli import main as coda

SIZE = 64  # pixels a side
PICTURES = 2000  # of --data, at the most
CROPS = 160  # per photograph
CLASSES_SHOWN = 4

# File in scikit-image, ImageNet class that fits it.
PHOTOGRAPHS = {
    "chelsea.png": "n02123045",  # tabby
    "coffee.png": "n07920052",  # espresso
    "motorcycle_left.png": "n03791053",  # motor scooter
    "rocket.jpg": "n04008634",  # projectile
}


def demo(*, data: Path | None = None, out: Path = Path("runs/demo")) -> int:
    """Run the chain.

    Args:
        data: Folder, tars or parquet of photographs; crops of scikit-image's if none is given.
        out: Where everything goes.

    Returns:
        The exit status of the first stage that failed, or 0.
    """
    shown = "photographs" if data is None else str(data)
    print(f"coda, pocket size: from {shown} to a sampled picture, in {out}", flush=True)
    photographs = f"{data}[:{PICTURES}]" if data else str(cut_photographs(out / "photographs"))
    vae, tokenizer, cache, generator, samples = (str(out / name) for name in _STAGES)
    stages = [
        ["train-vae", "--data", photographs, "--out", vae, "--size", str(SIZE), "--width", "8", "--steps", "500",
         "--batch-size", "16"],
        ["adapt", "--vae", vae, "--data", photographs, "--out", tokenizer, "--codebook-size", "512", "--lora-rank", "8",
         "--steps", "100", "--batch-size", "16"],
        ["tokenize-dataset", "--tokenizer", tokenizer, "--data", photographs, "--out", cache],
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


def cut_photographs(folder: Path) -> Path:
    """Fill `folder` with crops of scikit-image's photographs, one subfolder per class; returns `folder`."""
    if folder.exists():
        return folder
    try:
        import skimage
    except ImportError as error:
        raise UsageError(
            "the demonstration's photographs come with scikit-image: pip install 'coda[demo]', or --data FOLDER"
        ) from error
    from PIL import Image

    from coda.tokenizer.foundation.atomic_io import publish_directory

    partial = folder.with_name(f".{folder.name}.partial")
    rng = random.Random(0)
    for name, wordnet_id in PHOTOGRAPHS.items():
        with Image.open(Path(skimage.__file__).parent / "data" / name) as opened:
            photograph = opened.convert("RGB")
        (partial / wordnet_id).mkdir(parents=True, exist_ok=True)
        for number in range(CROPS):
            side = int(min(photograph.size) * rng.uniform(0.6, 1.0))
            left, top = (rng.randint(0, extent - side) for extent in photograph.size)
            crop = photograph.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), Image.Resampling.LANCZOS)
            crop.save(partial / wordnet_id / f"{Path(name).stem}_{number:03}.png")
    return publish_directory(partial, folder)


def _run(words: Sequence[str]) -> int:
    print(f"\n$ coda {shlex.join(words)}", flush=True)
    return coda(words)


def _classes_in(cache: Path) -> list[int]:
    """The classes of a cache, most pictures first; none where it knows none."""
    from collections import Counter

    from coda.tokenizer.code_cache import CodeCache

    counts = Counter(CodeCache(cache).labels.tolist())
    return [label for label, _ in counts.most_common() if label >= 0]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demonstration from the command line; returns the exit status."""
    arguments = arguments_of(demo)
    try:
        return demo(**resolve(parse(sys.argv[1:] if argv is None else argv, arguments), arguments))
    except UsageError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
