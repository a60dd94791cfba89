"""Speed of `tokenize_dataset`, against an upper bound for this machine and against a plain loop.

The bound follows from two rates, each measured alone: d, images read and decoded per second by the loader and its
processes, and e, images encoded per second from batches in memory. Without loading processes, images are decoded and
encoded in turn,

    bound = 1 / (1/d + 1/e).

With w processes both happen at the same time and the slower one decides, unless there are too few cores for both. On c
cores, of which decoding alone keeps min(w, c) busy and encoding on the CPU its t threads (0 on an accelerator),

    bound = min(d, e, c / (min(w, c)/d + t/e)).

Writing is not part of the bound: it should cost nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from coda.tokenizer import CodaTokenizer, CodeCache, tokenize_dataset
from coda.tokenizer.code_cache import ShuffledBatches
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import (
    BrokenImage,
    ImageSource,
    decode_image,
    image_batches,
    open_images,
    to_unit,
)
from coda.tokenizer.settings import RunOptions, TokenizeSettings
from coda.tokenizer.tokenize_dataset import encode_variants
from coda.tokenizer.training.optimization import start_accelerator
from coda.tokenizer.training.run_directory import RunDirectory

from ..reports.provenance import describe_run
from ..reports.report import Figure, Report, Table
from ..settings import TokenizingSpeedSettings
from .measure import Measured, measure_in_turns

_READY_BYTES = 256 * 2**20  # images in memory for timing the encoder alone
_READ_BATCH = 256  # as in training


def tokenizing_speed(
    tokenizer: str | Path | CodaTokenizer,
    data: str | Path | ImageSource,
    out: str | Path = "runs/speed",
    settings: TokenizingSpeedSettings = TokenizingSpeedSettings(),
    run: RunOptions = RunOptions(),
) -> Report:
    """Time `tokenize_dataset` and its parts, in turns, on the same images.

    Args:
        tokenizer: The tokenizer, or its directory or hub id.
        data: Images: anything that `open_images` takes.
        out: Directory of the report; the caches are written there too, and removed at the end.
        settings: How much is timed.
        run: Device, workers, and precision of the VAE's encoder; the plain loop uses float32.

    Returns:
        The report: rates in images per second, the share of the bound, the speed-up over the plain loop, and the peak
        memory for a quarter of the images and for all.

    Raises:
        CodaError: If there are fewer than four images, or `out` holds something else.
    """
    batch_size = settings.batch_size
    source = open_images(data, settings.max_pixels, settings.num_classes)
    source = source if settings.limit is None else source.part(slice(0, settings.limit))
    if len(source) < 4:
        raise CodaError(f"{source.location} holds {len(source)} images; at least four are needed")
    if not isinstance(tokenizer, CodaTokenizer):
        tokenizer = CodaTokenizer.from_pretrained(tokenizer)
    accelerator = start_accelerator(run.device, run.dtype)
    tokenizer.to(accelerator.device).eval()
    run_description = describe_run(accelerator.device)
    directory = RunDirectory(out, "tokenizing benchmark", {"date": run_description["date"]}, run.overwrite)
    ready, quarter = _ready_images(source, tokenizer.size, batch_size), source.part(slice(0, len(source) // 4))
    # Two shards in the quarter: one is held in memory at a time.
    shards = TokenizeSettings(batch_size=batch_size, shard_size=len(source) // 8 or 1)

    with tempfile.TemporaryDirectory(dir=directory.path) as aside:

        def tokenize(images: ImageSource, name: str) -> Callable[[], object]:
            return lambda: tokenize_dataset(tokenizer, images, Path(aside, name), shards, replace(run, overwrite=True))

        # Tokenizing comes after everything that it uses is warmed up, so that only its own memory is measured.
        works: dict[str, tuple[int, Callable[[], object]]] = {
            "decode alone": (len(source), lambda: _decode_all(source, tokenizer.size, batch_size, run.workers)),
            "encode alone": (
                sum(map(len, ready)),
                lambda: [encode_variants(tokenizer, accelerator, ("original",), images) for images in ready],
            ),
            "plain loop": (len(source), lambda: _plain_loop(tokenizer, source, accelerator.device, Path(aside))),
            "tokenize-dataset, a quarter": (len(quarter), tokenize(quarter, "quarter")),
            "tokenize-dataset": (len(source), tokenize(source, "whole")),
            "read shuffled": (len(source), lambda: _read_shuffled(Path(aside, "whole"))),
        }
        measured = measure_in_turns([work for _, work in works.values()], accelerator.device, settings.repeats)

    found = {name: (images, cost) for (name, (images, _)), cost in zip(works.items(), measured, strict=True)}
    threads = torch.get_num_threads() if accelerator.device.type == "cpu" else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    alone = [found[name][0] / found[name][1].seconds for name in ("decode alone", "encode alone")]
    provenance = {
        "tokenizer": tokenizer.fingerprint,
        "data": source.describe(),
        "timing": f"in turns, the fastest of {settings.repeats}, after one warm-up each, which measures the memory",
        "bound": "1 / (1/d + 1/e)" if run.workers == 0 else "min(d, e, c / (min(w, c)/d + t/e))",
        "batch_size": batch_size,
        "workers": run.workers,
        "precision": accelerator.mixed_precision,
        "cores": cores,
        **run_description,
    }
    report = _report(found, allowed_rate(alone[0], alone[1], run.workers, threads, cores), provenance)
    directory.finish(report.save)
    return report


def _report(found: dict[str, tuple[int, Measured]], bound: float, provenance: dict[str, Any]) -> Report:
    """The report of works by their names, each with its number of images and its cost."""
    rate = {name: images / cost.seconds for name, (images, cost) in found.items()}
    peak = {name: cost.peak_mib for name, (_, cost) in found.items()}
    ours, above = rate["tokenize-dataset"], "in this process, above what was held before"
    rows = [[name, images, cost.seconds, cost.slowest, cost.peak_mib] for name, (images, cost) in found.items()]
    figures = [
        Figure("decode rate", rate["decode alone"], "images/s", note="the loader alone"),
        Figure("encode rate", rate["encode alone"], "images/s", note="VAE and quantizer, batches in memory"),
        Figure("rate that the machine would allow", bound, "images/s", note="from both"),
        Figure("tokenize-dataset rate", ours, "images/s", note="decoding to renamed files"),
        Figure("plain loop rate", rate["plain loop"], "images/s", note="one at a time, float32, a .npy each"),
        Figure("read rate", rate["read shuffled"], "samples/s", note=f"shuffled, batches of {_READ_BATCH}, one core"),
        Figure("share of what the machine would allow", 100 * ours / bound, "%"),
        Figure("times faster than the plain loop", ours / rate["plain loop"], "×"),
        Figure("peak memory, a quarter of the images", peak["tokenize-dataset, a quarter"], "MiB", note=above),
        Figure("peak memory, all images", peak["tokenize-dataset"], "MiB", note=above),
    ]
    table = Table("Seconds and memory", ("work", "images", "seconds", "slowest", "peak MiB"), rows)
    return Report("Speed of tokenizing", figures, provenance, [table])


def allowed_rate(decode: float, encode: float, workers: int, threads: int, cores: int) -> float:
    """Upper bound of images per second, from the two rates measured alone; derived at the head of this file.

    Args:
        decode: d, images per second with these `workers`.
        encode: e, images per second.
        workers: w, processes that decode; 0 decodes in the encoding process.
        threads: t, cores that encoding keeps busy; 0 on an accelerator.
        cores: c, cores that both share.
    """
    if workers == 0:
        return 1 / (1 / decode + 1 / encode)
    return min(decode, encode, cores / (min(workers, cores) / decode + threads / encode))


def _ready_images(source: ImageSource, size: tuple[int, int], batch_size: int) -> list[torch.Tensor]:
    """The first batches, uint8, up to `_READY_BYTES`."""
    most = max(1, _READY_BYTES // (batch_size * 3 * size[0] * size[1]))
    return [batch.pixels for batch in islice(image_batches(source, size, batch_size), most)]


def _read_shuffled(path: Path) -> None:
    """Open a cache and read one shuffled epoch, as training does."""
    cache = CodeCache(path)
    batches = ShuffledBatches(cache, _READ_BATCH)
    for step in range(-(-len(cache) // _READ_BATCH)):
        batches[step]


def _decode_all(source: ImageSource, size: tuple[int, int], batch_size: int, workers: int) -> None:
    for _ in image_batches(source, size, batch_size, workers=workers):
        pass


def _plain_loop(tokenizer: CodaTokenizer, source: ImageSource, device: torch.device, folder: Path) -> None:
    """The obvious loop: one image at a time, and one file per image."""
    for i in range(len(source)):
        try:
            pixels = decode_image(source.read(i), tokenizer.size, max_pixels=source.max_pixels)
        except BrokenImage:
            continue
        codes = tokenizer.encode(to_unit(pixels)[None].to(device))
        np.save(folder / f"{i}.npy", codes.cpu().numpy())
