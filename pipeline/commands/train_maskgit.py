"""`coda train-maskgit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda import generator
from coda.generator.settings import MaskGitSettings
from coda.tokenizer.settings import RunOptions

from ..cli.arguments import Help, Without
from .flags import Cache, Out
from .model import TOKENIZER

DecodedBy = Annotated[
    str | None,
    Help(
        "Tokenizer that will decode the samples; the cache must hold its codes. By default runs/tokenizer, if it "
        "exists and the cache is runs/cache."
    ),
]

HeldOutCache = Annotated[
    Path | None, Help("Another cache of the same tokenizer to validate on; then none of the images is held out.")
]


def train_maskgit(
    *,
    cache: Cache = Path("runs/cache"),
    out: Out = Path("runs/generator"),
    tokenizer: DecodedBy = None,
    validation_cache: HeldOutCache = None,
    settings: MaskGitSettings,
    run: Annotated[RunOptions, Without("strict")],
) -> str:
    """Train a generator on the codes of a cache.

    A masked transformer learns from codes alone: no VAE is loaded and no image is read. Rerun the same command to
    resume an interrupted run.

    Examples:
        coda train-maskgit
        coda train-maskgit --cache runs/cache --preset tiny --steps 5000
    """
    if tokenizer is None and cache == Path("runs/cache") and Path(TOKENIZER, "coda_tokenizer.json").is_file():
        tokenizer = TOKENIZER
    return f"Made a generator in {generator.train_maskgit(cache, out, settings, run, tokenizer, validation_cache)}"
