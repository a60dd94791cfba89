"""What `tokenize_dataset` costs for ImageNet, by number of GPUs: hours, disk, files, memory, and what decides.

Three kinds of numbers stand side by side and are never mixed: what the real code gives here (shards, bytes, the
manifest, the cost of a source), what is assumed (above all how fast a GPU encodes), and what follows from both, on
paper and by simulation (`tokenizing_run.py`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.progress import progress
from coda.tokenizer.images import ImageSource, decode_image, open_images
from coda.tokenizer.training.run_directory import RunDirectory

from .cache_cost import ManifestCost, ShardCost, manifest_cost, shard_cost
from .plots import Plot
from .provenance import describe_run
from .report import Cell, Figure, Report, Table
from .source_cost import KINDS, SourceCost, source_cost
from .tokenizing_run import Simulated, TokenizingRun, simulate

Kind = Literal["folder", "archive", "table"]

IMAGENET_1K, IMAGENET_21K = 1_281_167, 14_197_122  # the latter as of fall 2011
DECODE_RATE, DECODE_SPREAD = 200.0, 0.5  # assumed where no photographs are given

_SIZE = 256
_PHOTOGRAPHS, _DECODINGS = 200, 3
_HOUR = 3600
_NEVER_MEASURED = (
    "The rate of a GPU is an assumption: this project has never measured one. So are the storage's figures and how "
    "much devices differ; all hours follow from them. Measure yours with coda benchmark speed --what tokenize."
)

Case = tuple[TokenizingRun, Simulated]


def tokenizing_scale(
    out: str | Path = "runs/scale",
    images: Sequence[int] = (IMAGENET_1K, IMAGENET_21K),
    gpus: Sequence[int] = (1, 8, 64),
    num_tokens: int = 680,
    codebook_size: int = 16384,
    shard_size: int = 16384,
    batch_size: int = 32,
    workers: int = 8,
    encode_rate: float = 500.0,
    data: str | Path | ImageSource | None = None,
    decode_rate: float | None = None,
    decode_spread: float | None = None,
    device_spread: float = 0.03,
    image_bytes: int = 110_000,
    bandwidth: float = 2000.0,
    request_seconds: float = 0.0005,
    flush_seconds: float = 0.02,
    source: Kind = "table",
    skipped_share: float = 0.001,
    listed: int = 20_000,
    seed: int = 0,
    overwrite: bool = False,
) -> Report:
    """Work out what tokenizing costs for every number of images and of GPUs.

    Args:
        out: Directory of the report.
        images: Items of each data set.
        gpus: Numbers of processes, each with a GPU of its own.
        num_tokens: T, codes per image.
        codebook_size: K, which decides the codes' type on disk.
        shard_size: Images per file of the cache.
        batch_size: Images at a time.
        workers: Processes that decode, for each GPU.
        encode_rate: Images per second that one GPU encodes. Assumed.
        data: Photographs on which the next two are measured, where they are not given.
        decode_rate: Images per second that one loading process decodes out of memory; 150 without photographs, which is
            on the safe side for 500×375 pixels.
        decode_spread: Standard deviation of the logarithm of an image's decoding time; 0.5 without photographs.
        device_spread: The same of whole processes: no two nodes are equally fast. Assumed.
        image_bytes: Of an encoded image; ImageNet-1k has 115,000 on average, ImageNet-21k 92,000.
        bandwidth: Megabytes (10⁶) per second of the storage that all processes share.
        request_seconds: From asking the storage for one thing to its first byte: 0.5 ms are a good network's.
        flush_seconds: Of one fsync.
        source: What the simulated runs read: "folder", "archive" (WebDataset) or "table" (parquet).
        skipped_share: Share of the items, in [0, 1], that cannot be read.
        listed: Items of the sources that are made and listed to see what listing costs.
        seed: Of the simulated decoding times and devices.
        overwrite: Replace what `out` holds.

    Returns:
        The report: hours on paper and simulated for every case, disk, and the cost of knowing each kind of source.

    Raises:
        CodaError: A rate or a number is not above zero, or `out` holds something else.
    """
    numbers = [*images, *gpus, num_tokens, shard_size, batch_size, encode_rate, image_bytes, bandwidth, listed]
    if not (images and gpus and all(number > 0 for number in numbers) and workers >= 0 and decode_rate != 0):
        raise CodaError("images, GPUs, sizes and rates must be above zero, and workers at least 0")
    measured_now = describe_run(torch.device("cpu"))
    run = RunDirectory(out, "scale benchmark", {"date": measured_now["date"]}, overwrite)
    rate, spread = (DECODE_RATE, DECODE_SPREAD) if data is None else _measured_decoding(open_images(data))
    shard = shard_cost(num_tokens, codebook_size)
    manifests = {count: manifest_cost(count, shard_size, shard, skipped_share) for count in images}
    sources = _costs_of_sources(listed)
    one = TokenizingRun(
        images=1,
        gpus=1,
        shard_size=shard_size,
        batch_size=batch_size,
        workers=workers,
        encode_rate=encode_rate,
        decode_rate=decode_rate or rate,
        decode_spread=spread if decode_spread is None else decode_spread,
        device_spread=device_spread,
        image_bytes=image_bytes,
        row_bytes=shard.row,
        bandwidth=bandwidth * 1e6,
        request_seconds=request_seconds,
        flush_seconds=flush_seconds,
        listing_seconds=0.0,
    )
    listing = {count: sources[source].seconds(count, request_seconds) for count in images}
    cases = [
        replace(one, images=count, gpus=number, listing_seconds=listing[count]) for count in images for number in gpus
    ]
    with progress("Simulating", total=len(cases), unit="runs") as bar:
        simulated = []
        for case in cases:
            simulated.append((case, simulate(case, seed)))
            bar.advance()
    report = Report(
        title="What tokenizing costs at scale",
        figures=[
            Figure("loading processes that keep up with one GPU", one.workers_needed),
            *(figure for case in simulated for figure in _figures(*case)),
        ],
        tables=[
            _runs(simulated),
            _disk(one, images, shard, manifests),
            _lists(images, sources, request_seconds, max(gpus)),
        ],
        plots=[_plot(simulated, count) for count in images],
        warnings=[_NEVER_MEASURED],
        provenance={
            **_assumptions(one, skipped_share),
            "decode rate and spread": "assumed" if data is None else f"measured on {open_images(data).describe()}",
            "cache": f"{num_tokens} codes of {codebook_size:,}: real files, scaled in proportion",
            "sources": f"{listed:,} items each, made and listed here, scaled in proportion",
            "simulated source": source,
            "seed": seed,
            **measured_now,
        },
    )
    run.finish(report.save)
    return report


def _assumptions(run: TokenizingRun, skipped_share: float) -> dict[str, Any]:
    """What every run has in common."""
    varying = ("images", "gpus", "row_bytes", "listing_seconds")
    common = {name: value for name, value in asdict(run).items() if name not in varying}
    return {**common, "skipped_share": skipped_share}


def _measured_decoding(source: ImageSource) -> tuple[float, float]:
    """Images per processor second, and the standard deviation of the logarithm of an image's seconds."""
    chosen = range(0, len(source), max(1, len(source) // _PHOTOGRAPHS))
    seconds = []
    with progress("Decoding", total=len(chosen), unit="images") as bar:
        for i in chosen:
            content = source.read(i)
            taken = []
            for _ in range(_DECODINGS):
                began = time.process_time()
                decode_image(content, _SIZE)
                taken.append(time.process_time() - began)
            seconds.append(min(taken))
            bar.advance()
    return 1 / float(np.mean(seconds)), float(np.std(np.log(seconds)))


def _costs_of_sources(items: int) -> dict[str, SourceCost]:
    with progress("Listing", total=len(KINDS), unit="sources") as bar:
        costs = {}
        for kind in KINDS:
            costs[kind] = source_cost(kind, items)
            bar.advance(kind=kind)
    return costs


def _figures(run: TokenizingRun, found: Simulated) -> list[Figure]:
    name = f"{run.images:,} images, {run.gpus} {'GPU' if run.gpus == 1 else 'GPUs'}"
    paper = run.paper_seconds
    note = f"decided by {run.bottleneck}; {100 * (found.seconds / paper - 1):+.1f} % against paper"
    return [
        Figure(f"{name}, on paper", paper / _HOUR, "h"),
        Figure(f"{name}, simulated", found.seconds / _HOUR, "h", note=note),
    ]


def _runs(cases: Sequence[Case]) -> Table:
    columns = (
        "images", "GPUs", "shards", "most shards of a GPU", "hours on paper", "hours simulated", "difference %",
        "listing, hours", "waiting for the slowest, %", "images/s", "decided by",
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for run, found in cases:
        shares = run.shares
        rows.append(
            [
                run.images,
                run.gpus,
                sum(map(len, shares)),
                max(map(len, shares)),
                run.paper_seconds / _HOUR,
                found.seconds / _HOUR,
                100 * (found.seconds / run.paper_seconds - 1),
                run.listing_seconds / _HOUR,
                100 * found.waiting_share,
                run.images / found.seconds,
                run.bottleneck,
            ]
        )
    return Table("Runs", columns, rows)


def _disk(one: TokenizingRun, images: Sequence[int], shard: ShardCost, manifests: dict[int, ManifestCost]) -> Table:
    columns = (
        "images", "photographs, GB", "cache, GB", "files", "shard, MB", "manifest, MB", "writing it, s",
        "reading it, s", "in memory, MB", "all notes of one GPU alone, s",
    )  # fmt: skip
    rows: list[list[Cell]] = []
    for count in images:
        manifest = manifests[count]
        spans = replace(one, images=count).shares[0]
        rows.append(
            [
                count,
                count * one.image_bytes / 1e9,
                shard.of(spans) / 1e9,
                manifest.shards + 2,  # the manifest and the value table
                shard.of(spans[:1]) / 1e6,
                manifest.bytes / 1e6,
                manifest.write_seconds,
                manifest.read_seconds,
                manifest.memory / 1e6,
                manifest.noting_seconds(1),
            ]
        )
    return Table("Disk", columns, rows)


def _lists(images: Sequence[int], sources: dict[str, SourceCost], request_seconds: float, processes: int) -> Table:
    columns = (
        "images", "source", "listing, processor s", "fingerprint, processor s", "requests", "with the storage's, min",
        "GB in a process", f"requests of {processes} processes",
    )  # fmt: skip
    rows: list[list[Cell]] = [
        [
            count,
            cost.kind,
            count * cost.listing,
            count * cost.fingerprint,
            None if cost.requests is None else math.ceil(count * cost.requests),
            cost.seconds(count, request_seconds) / 60,
            count * cost.memory / 1e9,
            None if cost.requests is None else math.ceil(count * cost.requests) * processes,
        ]
        for count in images
        for cost in sources.values()
    ]
    return Table("Knowing the source, in each process", columns, rows)


def _plot(cases: Sequence[Case], count: int) -> Plot:
    here = [case for case in cases if case[0].images == count]
    first = here[0][0]
    evenly = [(run.paper_seconds, run.gpus) for run, _ in here]
    lines = {
        "simulated": [found.seconds / _HOUR for _, found in here],
        "on paper": [run.paper_seconds / _HOUR for run, _ in here],
        "the first, divided": [evenly[0][0] * first.gpus / number / _HOUR for _, number in evenly],
    }
    labels = [str(run.gpus) for run, _ in here]
    return Plot(f"hours-{count}", f"Tokenizing {count:,} images", "GPUs", "hours", labels, lines, "line", log=True)
