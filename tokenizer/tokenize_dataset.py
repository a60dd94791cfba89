"""Encode every image of a data set once: the code cache that a generator is trained from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from .code_cache import CacheWriter, CodeCache, ShardRows
from .code_cache.format import MANIFEST
from .code_cache.manifest import manifest_header
from .code_cache.variants import crop_of, each_variant, size_for, variant_names
from .code_cache.writer_thread import WriterThread
from .foundation.distributed import Processes
from .foundation.errors import CodaError
from .foundation.progress import log_info, progress
from .images import ImageBatch, ImageDataset, ImageSource, Skipped, open_images, read_batches, to_unit
from .images.decoding import ORIENTATION, RESAMPLING, TRANSPARENCY
from .settings import RunOptions, TokenizeSettings
from .tokenizer import CodaTokenizer
from .training.optimization import start_accelerator

# On a CPU the VAE takes few images at a time, so that activations stay in the processor's caches: measured up to twice
# as fast at 128 and 256 pixels. Channels last are another tenth.
_CPU_PIXELS = 2**16

_FEWEST_SHARDS = 8  # per process: with fewer, one shard more or less is a large part of its work


@dataclass(frozen=True)
class TokenizeSummary:
    """Result of `tokenize_dataset`.

    Attributes:
        path: The cache.
        images: Images in it, including those of earlier, interrupted runs.
        skipped: Items left out, likewise.
        num_classes: Classes of the labels; 0 if there are none.
        encoded: Images that this run encoded, in all its processes; 0 if the cache was complete already.
        seconds: How long that took.
        ignored: The files of the data that are not images, counted in words; "" if there are none.
    """

    path: Path
    images: int
    skipped: list[Skipped]
    num_classes: int
    encoded: int
    seconds: float
    ignored: str

    @property
    def images_per_second(self) -> float:
        """Throughput of this run, decoding and writing included."""
        return self.encoded / self.seconds if self.encoded else 0.0


def tokenize_dataset(
    tokenizer: str | Path | CodaTokenizer,
    data: str | Path | ImageSource,
    out: str | Path = "runs/cache",
    settings: TokenizeSettings = TokenizeSettings(),
    run: RunOptions = RunOptions(),
) -> TokenizeSummary:
    """Encode all images of a data set into a code cache. Rerun the same call to resume an interrupted run.

    Each image is center-cropped to the tokenizer's size. Items that cannot be read are left out, and named with the
    reason in the cache's manifest. Processes started by a launcher (torchrun, accelerate) share the work. The bytes are
    those of one process, and any number of processes may resume what another number has begun.

    Args:
        tokenizer: A loaded tokenizer (moved to the device), or its directory or hub id.
        data: Images, as `open_images` takes them.
        out: Directory of the cache.
        settings: What is encoded. `batch_size` gives the same codes but for ties of rounding.
        run: Device, precision of the VAE (the quantizer stays in float32), workers.

    Raises:
        CodaError: If there is nothing to encode, the sizes do not fit, too many items cannot be read, `out` holds
            something else, or another of the processes has died.
    """
    if not isinstance(tokenizer, CodaTokenizer):
        tokenizer = CodaTokenizer.from_pretrained(tokenizer)
    size, (height, width) = settings.size, tokenizer.size
    if size is not None and (size, size) != (height, width):
        raise CodaError(f"size {size} does not fit the tokenizer, which takes images of {height}x{width} pixels")
    variants = variant_names(settings.flip, settings.ten_crop)
    accelerator = start_accelerator(run.device, run.dtype)
    processes = Processes()  # before the source: processes wait for each other here, and listing may take long
    source = open_images(data, settings.max_pixels, settings.num_classes)
    value_table = tokenizer.value_table().cpu()
    tokenizer.to(accelerator.device).eval()
    _keep_freed_memory()
    precision = "bfloat16" if accelerator.mixed_precision == "bf16" else str(tokenizer.vae.dtype).split(".")[-1]
    header = _describe(tokenizer, source, variants, precision, settings)
    most_skipped = 0 if run.strict else settings.max_skipped
    _advise_on_shards(len(source), settings.shard_size, processes)

    began = time.monotonic()
    with closing(CacheWriter(out, header, value_table, run.overwrite, processes)) as writer:
        encoded = 0
        if not writer.complete:
            image_size = size_for(variants, tokenizer.size)
            images = _read_remaining(writer, source, image_size, settings.batch_size, run.workers)
            encode = partial(encode_variants, tokenizer, accelerator, variants)
            encoded = _write_codes(writer, images, encode, source.location, most_skipped)
            encoded = sum(processes.gather(encoded))
            writer.join_others()
            _check_skipped(writer.skipped, source.location, most_skipped)
            writer.finish()
        seconds = time.monotonic() - began
        return processes.broadcast_from_main(lambda: _summarize(out, source, encoded, seconds))


@torch.inference_mode()
def encode_variants(
    tokenizer: CodaTokenizer, accelerator: Accelerator, variants: Sequence[str], pixels: torch.Tensor
) -> torch.Tensor:
    """Encode the variants of a batch of images. Nothing here waits for the accelerator, not even a check.

    Args:
        tokenizer: The tokenizer, on the accelerator.
        accelerator: Device and precision.
        variants: V names, see `variant_names`.
        pixels: (B, 3, H, W) uint8; (H, W) is `size_for` the variants.

    Returns:
        Codes (B, V, T), on the accelerator; -1 where an image's latents are NaN or infinite.
    """
    on_cpu = accelerator.device.type == "cpu"
    at_once = max(1, _CPU_PIXELS // math.prod(tokenizer.size)) if on_cpu else len(pixels)
    images = to_unit(pixels.to(accelerator.device)).contiguous(memory_format=torch.channels_last)
    codes = []
    for variant in each_variant(images, variants, tokenizer.size):
        with accelerator.autocast():
            latents = torch.cat([tokenizer.vae.encode(few, check=False) for few in variant.split(at_once)]).float()
        finite = latents.isfinite().flatten(1).all(dim=1, keepdim=True)
        codes.append(tokenizer.quantizer.encode(latents, check=False).where(finite, -1))
    return torch.stack(codes, dim=1)


def _keep_freed_memory() -> None:
    """Let the C library keep the memory that a layer frees for the next layer, instead of returning it to the system.

    glibc takes the largest block that it has seen freed, up to 32 MiB, as the measure of what to keep (mallopt(3)); on
    a CPU that is worth a quarter of the encoder's speed. Elsewhere it does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _advise_on_shards(items: int, shard_size: int, processes: Processes) -> None:
    """Say so if processes will wait for others because each shard is made by one process."""
    largest = max(1, items // (_FEWEST_SHARDS * processes.count))
    if processes.count > 1 and processes.rank == 0 and shard_size > largest:
        advice = f"--shard-size {largest} makes more"
        log_info(f"few shards for {processes.count} processes: some will wait for others; {advice}")


def _summarize(out: str | Path, source: ImageSource, encoded: int, seconds: float) -> TokenizeSummary:
    cache = CodeCache(out)
    skipped = [Skipped(**item) for item in cache.manifest["skipped"]]
    if skipped:
        first = f"{skipped[0].key}, {skipped[0].reason}"
        log_info(f"left out {len(skipped):,} items; the first, {first}; all in {MANIFEST}")
    ignored = source.describe_ignored()
    return TokenizeSummary(cache.path, cache.num_images, skipped, cache.num_classes, encoded, seconds, ignored)


def _describe(
    tokenizer: CodaTokenizer, source: ImageSource, variants: Sequence[str], precision: str, settings: TokenizeSettings
) -> dict[str, Any]:
    """The header of the manifest: everything that decides which bytes the cache holds."""
    preprocessing = {
        "size": list(tokenizer.size),
        "crop": crop_of(variants, tokenizer.size),
        "resampling": RESAMPLING,
        "orientation": ORIENTATION,
        "transparency": TRANSPARENCY,
        "precision": precision,
    }
    part = None if settings.part is None else [int(number) for number in settings.part.split("/")]
    return manifest_header(tokenizer, source, variants, preprocessing, settings.shard_size, part)


def _read_remaining(
    writer: CacheWriter, source: ImageSource, size: tuple[int, int], batch_size: int, workers: int
) -> Iterator[tuple[int, ImageBatch]]:
    """The batches that are left, none of which crosses the end of a shard: (one past the last item, images)."""
    batches = [
        range(start, min(span.stop, start + batch_size))
        for span in writer.remaining()
        for start in range(span.start, span.stop, batch_size)
    ]
    requests = ([(i, i) for i in batch] for batch in batches)
    loaded = read_batches(ImageDataset(source, size), requests, workers)
    return zip((batch.stop for batch in batches), loaded, strict=True)


def _write_codes(
    writer: CacheWriter,
    batches: Iterator[tuple[int, ImageBatch]],
    encode: Callable[[torch.Tensor], torch.Tensor],
    location: str,
    most_skipped: int | None,
) -> int:
    """Encode and append batch by batch; returns the number of images. An interruption loses some seconds of work."""
    encoded = 0
    skipped = writer.skipped
    _check_skipped(skipped, location, most_skipped)
    done = writer.items - sum(map(len, writer.remaining()))
    with progress("Tokenizing", writer.items, "images", completed=done) as bar, WriterThread(writer) as thread:
        for end, batch in batches:
            skipped += batch.skipped
            _check_skipped(skipped, location, most_skipped)
            codes = encode(batch.pixels) if len(batch) else torch.empty(0, *writer.shape, dtype=torch.int64)
            thread.append(ShardRows(codes, batch.labels, batch.indices, batch.keys), batch.skipped, end)
            encoded += len(batch)
            bar.advance(len(batch) + len(batch.skipped), skipped=len(skipped))
    return encoded


def _check_skipped(skipped: list[Skipped], location: str, most: int | None) -> None:
    if most is None or len(skipped) <= most:
        return
    last = skipped[most]
    allowed = f"; {most:,} others were left out already, which is as many as allowed" if most else ""
    raise CodaError(f"{last.key} in {location} {last.reason}{allowed}")
