"""`coda benchmark speed-sample`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from coda import benchmarks
from coda import tokenizer as library
from coda.benchmarks.settings import SpeedSettings
from coda.generator.settings import SamplingSettings
from coda.tokenizer.settings import RunOptions

from ..cli.arguments import Help, UsageError, Without
from .flags import ModelOptions, Out, Overwrite, Placement
from .model import open_pipeline, sampler_of, tokenizer_place
from .output import ending_of


def speed_sample(
    *,
    model: Annotated[
        str | None,
        Help('Generator directory, pipeline directory or hub id; by default "bundled", or only --tokenizer if given.'),
    ] = None,
    tokenizer: Annotated[str | None, Help("Tokenizer directory or hub id for a generator, or to time alone.")] = None,
    sampling: SamplingSettings,
    out: Out = Path("runs/speed-sample"),
    settings: Annotated[SpeedSettings, Without("codebook_sizes", "seed")],
    placement: Placement,
    overwrite: Overwrite = False,
) -> str:
    """Measure the speed of sampling, and of its tokenizer's encoding and decoding.

    Examples:
        coda benchmark speed-sample
        coda benchmark speed-sample --model runs/generator --batch-size 16
        coda benchmark speed-sample --tokenizer runs/tokenizer
    """
    sampler, label = None, 0
    if model is not None or tokenizer is None:
        pipeline = open_pipeline(ModelOptions(model or "bundled", tokenizer), placement, sampling)
        timed, sampler = pipeline.tokenizer, sampler_of(pipeline)
        label = next(iter(pipeline.classes.seen), 0)  # a model without classes ignores it
    elif sampling != SamplingSettings(seed=sampling.seed):
        raise UsageError("--model is missing: a tokenizer alone has no --steps, --guidance and their like")
    else:
        timed = library.CodaTokenizer.from_pretrained(tokenizer_place(tokenizer))
    settings = replace(settings, seed=sampling.seed)
    run = RunOptions(device=placement.device, overwrite=overwrite)
    return ending_of(benchmarks.speed(timed, sampler, out, (), settings, run, label), out)
