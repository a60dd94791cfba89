"""`coda benchmark speed-sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from coda.generator.settings import SamplingSettings
from coda.tokenizer.foundation.settings import Count

from ..cli.arguments import Help, UsageError
from .flags import BatchSize, ModelOptions, Out, Overwrite, Placement, Repeats
from .model import open_pipeline, sampler_of
from .output import ending_of


def speed_sample(
    *,
    model: Annotated[
        str | None,
        Help('Generator directory, pipeline directory or hub id, or "bundled"; by default only --tokenizer.'),
    ] = None,
    tokenizer: Annotated[str | None, Help("Tokenizer directory or hub id for a generator, or to time alone.")] = None,
    sampling: SamplingSettings,
    out: Out = Path("runs/speed-sample"),
    size: Annotated[Count | None, Help("Image size for the tokenizer in pixels; by default its own.")] = None,
    batch_size: BatchSize = 4,
    repeats: Repeats = 3,
    placement: Placement,
    overwrite: Overwrite = False,
) -> str:
    """Measure the speed of sampling, and of its tokenizer's encoding and decoding.

    Examples:
        coda benchmark speed-sample --model runs/generator --batch-size 16
        coda benchmark speed-sample --tokenizer runs/tokenizer
    """
    from coda.benchmarks import speed
    from coda.tokenizer import CodaTokenizer

    sampler = None
    if model is not None:
        pipeline = open_pipeline(ModelOptions(model, tokenizer), placement)
        timed, sampler = pipeline.tokenizer, sampler_of(pipeline, sampling)
    elif tokenizer is None or sampling.steps is not None or sampling.guidance is not None:
        raise UsageError("--model is missing (or give --tokenizer alone, without --steps and --guidance)")
    else:
        timed = CodaTokenizer.from_pretrained(tokenizer)
    report = speed(
        timed,
        sampler,
        out,
        shapes=(),
        size=size,
        batch_size=batch_size,
        repeats=repeats,
        seed=sampling.seed,
        device=placement.device,
        overwrite=overwrite,
    )
    return ending_of(report, out)
