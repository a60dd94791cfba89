"""How fast a data set becomes codes: against what the machine would allow, and against a loop that anyone would write.

What the machine would allow follows from two rates measured alone: d, images read and decoded per second by the loader
with its processes, and e, images encoded per second out of ready batches. Without loading processes one image after
the other is decoded and encoded in turn,

    bound = 1 / (1/d + 1/e).

With w of them both go on at once, so the slower rules, unless there are too few cores for both: on c cores, of which
decoding alone kept min(w, c) busy and encoding on the CPU its t threads (on another device none),

    bound = min(d, e, c / (min(w, c)/d + t/e)).

Writing is not in the bound: it is to cost nothing.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from coda.tokenizer import CodaTokenizer, CodeCache, tokenize_dataset
from coda.tokenizer.code_cache import ShuffledBatches
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.images import (
    BrokenImage,
    ImageBatch,
    ImageDataset,
    ImageSource,
    decode_image,
    open_images,
    read_batches,
    to_unit,
)
from coda.tokenizer.tokenize_dataset import encode_variants
from coda.tokenizer.training.optimization import start_accelerator
from coda.tokenizer.training.run_directory import RunDirectory

from ..reports.provenance import describe_run
from ..reports.report import Cell, Figure, Report, Table
from .measure import measure_in_turns

_READY_BYTES = 256 * 2**20  # of images that wait in memory for the encoder to be timed alone
_READ_AT_ONCE = 256  # a training's batch


def tokenizing_speed(
    tokenizer: str | Path | CodaTokenizer,
    data: str | Path | ImageSource,
    out: str | Path = "runs/speed",
    limit: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    repeats: int = 3,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
) -> Report:
    """Time `tokenize_dataset` and what it consists of, in turns, on the same images.

    Args:
        tokenizer: The tokenizer, or its directory or hub id.
        data: What `open_images` takes.
        out: Directory of the report; the caches that are made lie there too until they are removed.
        limit: Take only so many images, the first; all if None.
        batch_size: Images at a time.
        workers: Processes that decode.
        repeats: Repetitions; the fastest counts.
        device: "auto", "cpu", "mps", "cuda" or "cuda:N".
        dtype: Precision of the VAE's encoder; the plain loop has float32.
        overwrite: Replace what `out` holds.

    Returns:
        The report: rates in images per second, the share of the bound, times faster than the plain loop, and the peak
        of memory over a quarter of the images and over all.

    Raises:
        CodaError: There are fewer than four images, or `out` holds something else.
    """
    if repeats < 1:
        raise CodaError(f"repeats is {repeats}; at least one is needed")
    source = open_images(data)
    source = source if limit is None else source.part(slice(0, limit))
    if len(source) < 4:
        raise CodaError(f"{source.location} holds {len(source)} images; at least four are needed")
    if not isinstance(tokenizer, CodaTokenizer):
        tokenizer = CodaTokenizer.from_pretrained(tokenizer)
    accelerator = start_accelerator(device, dtype)
    place = accelerator.device
    tokenizer.to(place).eval()
    measured_now = describe_run(place)
    run = RunDirectory(out, "tokenizing benchmark", {"date": measured_now["date"]}, overwrite)
    ready = _ready_images(source, tokenizer.size, batch_size)

    with tempfile.TemporaryDirectory(dir=run.path) as aside:

        def tokenize(images: ImageSource, name: str) -> Callable[[], object]:
            return lambda: tokenize_dataset(
                tokenizer,
                images,
                Path(aside, name),
                batch_size=batch_size,
                workers=workers,
                shard_size=len(source) // 8 or 1,  # two shards in the quarter: one is held in memory at a time
                device=device,
                dtype=dtype,
                overwrite=True,
            )

        # Tokenizing comes when all has been warmed up that it uses, so that its memory is its own.
        works: dict[str, tuple[int, Callable[[], object]]] = {
            "decode alone": (len(source), lambda: _decode_all(source, tokenizer.size, batch_size, workers)),
            "encode alone": (
                sum(map(len, ready)),
                lambda: [encode_variants(tokenizer, accelerator, ("original",), images) for images in ready],
            ),
            "plain loop": (len(source), lambda: _plain_loop(tokenizer, source, place, Path(aside))),
            "tokenize-dataset, a quarter": (
                len(source) // 4,
                tokenize(source.part(slice(0, len(source) // 4)), "quarter"),
            ),
            "tokenize-dataset": (len(source), tokenize(source, "whole")),
            "read shuffled": (len(source), lambda: _read_shuffled(Path(aside, "whole"))),
        }
        measured = measure_in_turns([work for _, work in works.values()], place, repeats)

    found = {name: (images, cost) for (name, (images, _)), cost in zip(works.items(), measured, strict=True)}
    rate = {name: images / cost.seconds for name, (images, cost) in found.items()}
    threads = torch.get_num_threads() if place.type == "cpu" else 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bound = allowed_rate(rate["decode alone"], rate["encode alone"], workers, threads, cores)
    rows: list[list[Cell]] = [
        [name, images, cost.seconds, cost.slowest, cost.peak_mib] for name, (images, cost) in found.items()
    ]
    report = Report(
        title="Speed of tokenizing",
        figures=_figures(rate, bound, {name: cost.peak_mib for name, (_, cost) in found.items()}),
        tables=[Table("Seconds and memory", ("work", "images", "seconds", "slowest", "peak MiB"), rows)],
        provenance={
            "tokenizer": tokenizer.fingerprint,
            "data": source.describe(),
            "timing": f"in turns, the fastest of {repeats}, after one warm-up each, in which the memory is taken",
            "bound": "1 / (1/d + 1/e)" if workers == 0 else "min(d, e, c / (min(w, c)/d + t/e))",
            "batch_size": batch_size,
            "workers": workers,
            "precision": accelerator.mixed_precision,
            "cores": cores,
            **measured_now,
        },
    )
    run.finish(report.save)
    return report


def _figures(rate: dict[str, float], bound: float, peak: dict[str, float | None]) -> list[Figure]:
    """The figures of the report, from rates (per second) and peaks of memory (MiB) of each work by its name."""
    above = "of this process, above what was held before"
    ours = rate["tokenize-dataset"]
    return [
        Figure("decode rate", rate["decode alone"], "images/s", note="the loader alone"),
        Figure("encode rate", rate["encode alone"], "images/s", note="VAE and quantizer on ready batches"),
        Figure("rate that the machine would allow", bound, "images/s", note="from both"),
        Figure("tokenize-dataset rate", ours, "images/s", note="decoding to renamed files"),
        Figure("plain loop rate", rate["plain loop"], "images/s", note="one at a time, float32, a .npy each"),
        Figure("read rate", rate["read shuffled"], "samples/s", note=f"shuffled, by {_READ_AT_ONCE}, one core"),
        Figure("share of what the machine would allow", 100 * ours / bound, "%"),
        Figure("times faster than the plain loop", ours / rate["plain loop"], "×"),
        Figure("peak memory, a quarter of the images", peak["tokenize-dataset, a quarter"], "MiB", note=above),
        Figure("peak memory, all images", peak["tokenize-dataset"], "MiB", note=above),
    ]


def allowed_rate(decode: float, encode: float, workers: int, threads: int, cores: int) -> float:
    """Images per second that the two rates, each measured alone, allow together; the head of this file derives it.

    Args:
        decode: d, with these `workers`.
        encode: e.
        workers: w, processes that decode; 0 decodes in the process that encodes.
        threads: t, cores that encoding keeps busy; 0 on an accelerator.
        cores: c of this machine that both share.
    """
    if workers == 0:
        return 1 / (1 / decode + 1 / encode)
    return min(decode, encode, cores / (min(workers, cores) / decode + threads / encode))


def _ready_images(source: ImageSource, size: tuple[int, int], batch_size: int) -> list[torch.Tensor]:
    """The first batches, uint8, at most as many as memory easily holds."""
    most = max(1, _READY_BYTES // (batch_size * 3 * size[0] * size[1]))
    return [batch.pixels for batch in islice(_decode(source, size, batch_size, 0), most) if len(batch)]


def _read_shuffled(path: Path) -> None:
    """One epoch of a cache, opened anew, as a training reads it."""
    cache = CodeCache(path)
    batches = ShuffledBatches(cache, _READ_AT_ONCE)
    for step in range(-(-len(cache) // _READ_AT_ONCE)):
        batches[step]


def _decode_all(source: ImageSource, size: tuple[int, int], batch_size: int, workers: int) -> None:
    for _ in _decode(source, size, batch_size, workers):
        pass


def _decode(source: ImageSource, size: tuple[int, int], batch_size: int, workers: int) -> Iterator[ImageBatch]:
    """All images in order, as `tokenize_dataset` has them."""
    order = range(len(source))
    requests = [[(i, i) for i in order[start : start + batch_size]] for start in range(0, len(source), batch_size)]
    return read_batches(ImageDataset(source, size), requests, workers)


def _plain_loop(tokenizer: CodaTokenizer, source: ImageSource, device: torch.device, folder: Path) -> None:
    """What one writes on a quiet afternoon."""
    for i in range(len(source)):
        try:
            pixels = decode_image(source.read(i), tokenizer.size)
        except BrokenImage:
            continue
        codes = tokenizer.encode(to_unit(pixels)[None].to(device))
        np.save(folder / f"{i}.npy", codes.cpu().numpy())
