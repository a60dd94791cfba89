"""`coda benchmark speed-sample`."""

from __future__ import annotations

from pathlib import Path

from ..cli.arguments import Count, Device, Precision, Seed, UsageError, Weight
from .output import ending_of


def speed_sample(
    *,
    model: str | None = None,
    tokenizer: str | None = None,
    steps: tuple[Count, ...] | None = None,
    guidance: Weight | None = None,
    out: Path = Path("runs/speed-sample"),
    size: Count | None = None,
    batch_size: Count = 4,
    repeats: Count = 3,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
) -> str:
    """Speed of sampling, and of its tokenizer's encoding and decoding.

    Args:
        model: Generator directory, pipeline directory or hub id, or the word bundled; without it, only --tokenizer is
            timed.
        tokenizer: Directory or hub id of the tokenizer that belongs to a generator, or of one to time alone.
        steps: One number, distributed over the levels, or one per level; the model's if not given.
        guidance: Classifier-free guidance scale, 1 for none; the model's if not given.
        out: Directory of the report.
        size: Image size for the tokenizer in pixels; its own if not given.
        batch_size: Images per batch.
        repeats: Repetitions; the fastest counts.
        seed: Seed for images and samples.
        device: auto, cpu, cuda, cuda:1.
        dtype: Precision of a model; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Replace what --out holds.

    Examples:
        coda benchmark speed-sample --model runs/generator --batch-size 16
        coda benchmark speed-sample --tokenizer runs/tokenizer
    """
    from coda.benchmarks import speed
    from coda.tokenizer import CodaTokenizer

    from .model import open_pipeline, sampler_of

    if model is None and (tokenizer is None or steps is not None or guidance is not None):
        raise UsageError("--model is missing (or give --tokenizer alone, without --steps and --guidance)")
    sampler = None
    if model is None:
        timed = CodaTokenizer.from_pretrained(tokenizer)
    else:
        pipeline = open_pipeline(model, tokenizer, device, dtype)
        timed, sampler = pipeline.tokenizer, sampler_of(pipeline, steps, guidance)
    report = speed(
        timed,
        sampler,
        out,
        shapes=(),
        size=size,
        batch_size=batch_size,
        repeats=repeats,
        seed=seed,
        device=device,
        overwrite=overwrite,
    )
    return ending_of(report, out)
