"""`coda tokenize-dataset`."""

from __future__ import annotations

from pathlib import Path

from ..cli.arguments import Count, Device, Natural, Part, TrainingPrecision, UsageError


def tokenize_dataset(
    *,
    data: str,
    tokenizer: str = "runs/tokenizer",
    out: Path = Path("runs/cache"),
    size: Count | None = None,
    flip: bool = False,
    ten_crop: bool = False,
    part: Part | None = None,
    batch_size: Count = 32,
    workers: Natural = 0,
    shard_size: Count = 16384,
    max_skipped: Natural | None = None,
    device: Device = "auto",
    dtype: TrainingPrecision = "auto",
    overwrite: bool = False,
    strict: bool = False,
) -> str:
    """Tokenizer + images -> code cache.

    An interrupted run goes on with the same command, and ends with the same bytes as one that was not. Started by
    torchrun or accelerate launch, several processes share the work, with the same bytes too.

    Args:
        data: Photographs: ImageFolder, folder, WebDataset tars or parquet; DIR[:650] takes a part.
        tokenizer: Tokenizer directory or hub id.
        out: Directory to make.
        size: Pixels each way, to be sure of: any other than the tokenizer's is refused.
        flip: Encode every picture mirrored too.
        ten_crop: Encode ten crops of every picture instead, as LlamaGen does.
        part: Encode only the first of four parts with 1/4, which are whole files of --shard-size; merge-cache
            joins them.
        batch_size: Pictures at a time.
        workers: Processes that decode; 0 decodes in this one.
        shard_size: Pictures per file of the cache.
        max_skipped: Fail if more pictures than that are broken.
        device: auto, cpu, cuda, cuda:1, mps.
        dtype: Precision of the VAE; auto is bfloat16 on CUDA and float32 elsewhere.
        overwrite: Start anew over what --out holds.
        strict: Stop at a broken picture instead of leaving it out.

    Examples:
        coda tokenize-dataset --data photographs
        coda tokenize-dataset --data "train-{000..255}.tar" --part 2/4 --out runs/cache-2 --workers 8
        torchrun --nproc-per-node 8 --no-python coda tokenize-dataset --data photographs --workers 4
    """
    if flip and ten_crop:
        raise UsageError("--flip and --ten-crop exclude each other: half of the ten crops are mirrored already")
    from coda.tokenizer import tokenize_dataset as tokenize

    summary = tokenize(
        tokenizer=tokenizer,
        data=data,
        out=out,
        size=size,
        flip=flip,
        ten_crop=ten_crop,
        part=part,
        batch_size=batch_size,
        workers=workers,
        shard_size=shard_size,
        max_skipped=max_skipped,
        device=device,
        dtype=dtype,
        overwrite=overwrite,
        strict=strict,
    )
    left_out = len(summary.skipped)
    items = f"{summary.images + left_out:,} items, {left_out:,} of them broken and left out"
    speed = f"{summary.images_per_second:,.1f} images/s" if summary.encoded else "all there before"
    return f"Made a code cache of {summary.images:,} pictures in {summary.path}: {items}; {speed}"
