"""`coda benchmark scale`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from ..cli.arguments import Count, Fraction, Natural, Positive, Range, Seed, Weight
from .output import ending_of


def scale(
    *,
    images: tuple[Count, ...] = (1_281_167, 14_197_122),
    gpus: tuple[Count, ...] = (1, 8, 64),
    num_tokens: Count = 680,
    codebook_size: Annotated[int, Range(2)] = 16384,
    shard_size: Count = 16384,
    batch_size: Count = 32,
    workers: Natural = 8,
    encode_rate: Positive = 500.0,
    data: str | None = None,
    decode_rate: Positive | None = None,
    decode_spread: Weight | None = None,
    device_spread: Weight = 0.03,
    image_bytes: Count = 110_000,
    bandwidth: Positive = 2000.0,
    request_seconds: Weight = 0.0005,
    flush_seconds: Weight = 0.02,
    source: Literal["folder", "archive", "table"] = "table",
    skipped_share: Fraction = 0.001,
    listed: Count = 20_000,
    out: Path = Path("runs/scale"),
    seed: Seed = 0,
    overwrite: bool = False,
) -> str:
    """What tokenize-dataset costs for ImageNet, by number of GPUs.

    Hours on paper and by simulation, disk, files, and what listing the source costs every process. How fast a GPU
    encodes and a storage answers is assumed: give yours.

    Args:
        images: Pictures of each data set; ImageNet-1k and ImageNet-21k if not given.
        gpus: Numbers of processes, each with a GPU of its own.
        num_tokens: Codes per picture.
        codebook_size: Number of codes.
        shard_size: Pictures per file of the cache.
        batch_size: Pictures at a time.
        workers: Processes that decode, for each GPU.
        encode_rate: Pictures per second that one GPU encodes; an assumption until you measure yours.
        data: Photographs on which decoding is measured.
        decode_rate: Pictures per second that one process decodes; measured on --data if not given, or 150.
        decode_spread: Standard deviation of the logarithm of a picture's decoding time; measured likewise, or 0.5.
        device_spread: The same of whole processes, since no two nodes are equally fast.
        image_bytes: Bytes of a photograph's file.
        bandwidth: Megabytes per second of the storage, for all processes together.
        request_seconds: Seconds until the storage answers one request.
        flush_seconds: Seconds of one fsync.
        source: What is read; folder is a file per picture, archive WebDataset, table parquet.
        skipped_share: Share of the pictures that cannot be read.
        listed: Pictures of the sources that are made and listed, to see what listing costs.
        out: Directory of the report.
        seed: Of the simulated times.
        overwrite: Replace what --out holds.

    Examples:
        coda benchmark scale --data photographs
        coda benchmark scale --gpus 4 --encode-rate 800 --workers 12 --bandwidth 500
    """
    from coda.benchmarks import tokenizing_scale

    report = tokenizing_scale(
        out=out,
        images=images,
        gpus=gpus,
        num_tokens=num_tokens,
        codebook_size=codebook_size,
        shard_size=shard_size,
        batch_size=batch_size,
        workers=workers,
        encode_rate=encode_rate,
        data=data,
        decode_rate=decode_rate,
        decode_spread=decode_spread,
        device_spread=device_spread,
        image_bytes=image_bytes,
        bandwidth=bandwidth,
        request_seconds=request_seconds,
        flush_seconds=flush_seconds,
        source=source,
        skipped_share=skipped_share,
        listed=listed,
        seed=seed,
        overwrite=overwrite,
    )
    return ending_of(report, out)
