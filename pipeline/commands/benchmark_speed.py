"""`coda benchmark speed`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from ..cli.arguments import Count, Device, Natural, Precision, Seed, UsageError, Weight
from .output import ending_of

Shape = Literal["small", "kl16", "flux"]
Timed = Literal["all", "quantizer", "tokenize"]


def speed(
    *,
    what: Timed = "all",
    tokenizer: str | None = None,
    data: str | None = None,
    limit: Count | None = None,
    model: str | None = None,
    shapes: tuple[Shape, ...] | None = None,
    codebook_sizes: tuple[Count, ...] | None = None,
    steps: tuple[Count, ...] | None = None,
    guidance: Weight | None = None,
    out: Path = Path("runs/speed"),
    size: Count | None = None,
    batch_size: Count | None = None,
    workers: Natural | None = None,
    repeats: Count = 3,
    seed: Seed = 0,
    device: Device = "auto",
    dtype: Precision = "auto",
    overwrite: bool = False,
) -> str:
    """Seconds and memory: the quantizer against a dense one, a tokenizer, a sampler.

    Args:
        what: all times the parts; quantizer times dense, tiled and fused ones over codebook sizes; tokenize times
            tokenize-dataset on --data against what the machine would allow and against a plain loop.
        tokenizer: Tokenizer to time; with --model, the one that belongs to a generator.
        data: Photographs for --what tokenize.
        limit: Take only so many of them, the first.
        model: Generator directory, pipeline directory or hub id, or the word bundled, to time sampling.
        shapes: Quantizers to compare with a dense one; for --what quantizer those of the paper if not given, else all.
        codebook_sizes: Codebooks for --what quantizer; 4,096 to 262,144 if not given.
        steps: Steps of sampling, as in coda sample; the model's if not given.
        guidance: Guidance of sampling; the model's if not given.
        out: Directory of the report.
        size: Pixels each way for the tokenizer; its own if not given.
        batch_size: Pictures at a time; 4, or 32 for --what tokenize.
        workers: Processes that decode for --what tokenize; 0 if not given.
        repeats: Repetitions; the fastest counts.
        seed: Of the random latents, images and samples.
        device: auto, cpu, cuda, cuda:1.
        dtype: Precision of the sampling, or of the VAE for --what tokenize; auto is bfloat16 on CUDA and float32
            elsewhere.
        overwrite: Replace what --out holds.

    Examples:
        coda benchmark speed --shapes small
        coda benchmark speed --what quantizer --shapes kl16 --codebook-sizes 4096,16384
        coda benchmark speed --what tokenize --tokenizer runs/tokenizer --data photographs --limit 5000
    """
    sampling = {"--model": model, "--steps": steps, "--guidance": guidance, "--size": size}
    loading = {"--data": data, "--limit": limit, "--workers": workers}
    if what == "quantizer":
        _refuse(
            "has no use with --what quantizer",
            sampling | loading | {"--tokenizer": tokenizer, "--batch-size": batch_size},
        )
        return _speed_of_quantizer(shapes, codebook_sizes, out, repeats, seed, device, overwrite)
    if what == "tokenize":
        _refuse("has no use with --what tokenize", sampling | {"--shapes": shapes, "--codebook-sizes": codebook_sizes})
        return _speed_of_tokenizing(
            tokenizer, data, out, limit, batch_size or 32, workers or 0, repeats, device, dtype, overwrite
        )
    _refuse("is for --what tokenize", loading)
    _refuse("is for --what quantizer", {"--codebook-sizes": codebook_sizes})
    from coda.benchmarks import speed as run
    from coda.benchmarks.timing.quantizer import QUANTIZER_SHAPES
    from coda.tokenizer import CodaTokenizer

    from .model import open_pipeline, sampler_of

    if model is None and (steps is not None or guidance is not None):
        raise UsageError("--steps and --guidance are about sampling: give --model too")
    timed, sampler = None, None
    if model is not None:
        pipeline = open_pipeline(model, tokenizer, device, dtype)
        timed, sampler = pipeline.tokenizer, sampler_of(pipeline, steps, guidance)
    elif tokenizer is not None:
        timed = CodaTokenizer.from_pretrained(tokenizer)
    report = run(
        tokenizer=timed,
        samples=sampler,
        out=out,
        shapes=[shape for shape in QUANTIZER_SHAPES if shapes is None or shape.name in shapes],
        size=size,
        batch_size=batch_size or 4,
        repeats=repeats,
        seed=seed,
        device=device,
        overwrite=overwrite,
    )
    return ending_of(report, out)


def _refuse(why: str, flags: Mapping[str, object]) -> None:
    """Refuse flags that were given and would not be read."""
    for flag, value in flags.items():
        if value is not None:
            raise UsageError(f"{flag} {why}")


def _speed_of_quantizer(
    shapes: tuple[Shape, ...] | None,
    codebook_sizes: tuple[int, ...] | None,
    out: Path,
    repeats: int,
    seed: int,
    device: str,
    overwrite: bool,
) -> str:
    from coda.benchmarks import quantizer_speed
    from coda.benchmarks.timing.quantizer import CODEBOOK_SIZES, PUBLISHED_SHAPES, QUANTIZER_SHAPES

    chosen = PUBLISHED_SHAPES if shapes is None else [shape for shape in QUANTIZER_SHAPES if shape.name in shapes]
    report = quantizer_speed(out, chosen, codebook_sizes or CODEBOOK_SIZES, repeats, seed, device, overwrite)
    return ending_of(report, out)


def _speed_of_tokenizing(
    tokenizer: str | None,
    data: str | None,
    out: Path,
    limit: int | None,
    batch_size: int,
    workers: int,
    repeats: int,
    device: str,
    dtype: str,
    overwrite: bool,
) -> str:
    from coda.benchmarks import tokenizing_speed

    if tokenizer is None or data is None:
        raise UsageError("--what tokenize needs --tokenizer and --data")
    report = tokenizing_speed(tokenizer, data, out, limit, batch_size, workers, repeats, device, dtype, overwrite)
    return ending_of(report, out)
