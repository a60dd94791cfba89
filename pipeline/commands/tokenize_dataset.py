"""`coda tokenize-dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda import tokenizer as library
from coda.tokenizer.settings import RunOptions, TokenizeSettings

from ..cli.arguments import Without
from .flags import Data, Out, Tokenizer
from .model import tokenizer_place


def tokenize_dataset(
    *,
    data: Data,
    tokenizer: Tokenizer = "runs/tokenizer",
    out: Out = Path("runs/cache"),
    settings: TokenizeSettings,
    run: Annotated[RunOptions, Without("checkpoint_every", "log_with")],
) -> str:
    """Encode images into a code cache.

    Rerun the same command to resume an interrupted run. Under torchrun or accelerate launch, several processes share
    the work. The cache is the same, byte for byte, however often a run is interrupted and with any number of processes.

    Examples:
        coda tokenize-dataset --data photos
        coda tokenize-dataset --data "train-{000..255}.tar" --part 2/4 --out runs/cache-2 --workers 8
        torchrun --nproc-per-node 8 --no-python coda tokenize-dataset --data photos --workers 4
    """
    summary = library.tokenize_dataset(tokenizer_place(tokenizer), data, out, settings, run)
    left_out = len(summary.skipped)
    items = f"{summary.images + left_out:,} items, {left_out:,} of them broken and left out"
    labels = f"{summary.num_classes:,} classes" if summary.num_classes else "no labels"
    speed = f"{summary.images_per_second:,.1f} images/s" if summary.encoded else "all encoded before"
    made = f"Made a code cache of {summary.images:,} images in {summary.path}: {items}; {labels}; {speed}"
    return "; ".join(filter(None, [made, summary.ignored]))
