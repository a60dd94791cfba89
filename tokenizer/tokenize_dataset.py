"""Every image of a source as codes, once and for all: what the generator trains from."""

from __future__ import annotations

import math
import re
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
from .tokenizer import CodaTokenizer
from .training.optimization import start_accelerator

# On a CPU the VAE takes few images at a time, so that what lies between its layers stays in the caches and is not
# fetched anew from the system: measured up to twice as fast at 128 and 256 pixels. Channels last are another tenth.
_CPU_PIXELS = 2**16

_FEWEST_SHARDS = 8  # of a process: with fewer, one shard more or less is a large part of its work


@dataclass(frozen=True)
class TokenizeSummary:
    """What a run has made.

    Attributes:
        path: The cache.
        images: Images in it, those of earlier, interrupted runs included.
        skipped: Items left out, likewise.
        encoded: Images that this run encoded, in all its processes; 0 if the cache was whole already.
        seconds: What this run took for them.
    """

    path: Path
    images: int
    skipped: list[Skipped]
    encoded: int
    seconds: float

    @property
    def images_per_second(self) -> float:
        """Throughput of this run, decoding and writing included."""
        return self.encoded / self.seconds if self.encoded else 0.0


def tokenize_dataset(
    tokenizer: str | Path | CodaTokenizer,
    data: str | Path | ImageSource,
    out: str | Path = "runs/cache",
    size: int | None = None,
    batch_size: int = 32,
    workers: int = 0,
    shard_size: int = 16384,
    flip: bool = False,
    ten_crop: bool = False,
    part: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
    strict: bool = False,
    max_skipped: int | None = None,
) -> TokenizeSummary:
    """Encode all images of a source into a code cache; interrupted, the same call goes on.

    Each image is centre-cropped to the tokenizer's size. Items that cannot be read are left out and named, with the
    reason, in the cache's manifest. Processes that a launcher (torchrun, accelerate) has started share the work; the
    bytes are those of one process, and any number of processes may go on with what another has begun.

    Args:
        tokenizer: The tokenizer, or its directory or hub id. One that is given itself is moved to the device.
        data: What `open_images` takes.
        out: The cache's folder.
        size: Pixels each way, to be sure of: any other than the tokenizer's is refused.
        batch_size: Images at a time. Other values give the same codes but for ties of rounding.
        workers: Processes that decode images; changes nothing but the speed.
        shard_size: Images per file.
        flip: Encode each image mirrored too, from mirrored pixels.
        ten_crop: Instead of each image encode ten crops of it, as LlamaGen does: corners and middle of a centre crop
            1.1 times as large, and those of the mirrored image.
        part: "2/4": encode the second of four parts, to be joined by `merge_caches`.
        device: "auto", "cpu", "mps", "cuda" or "cuda:N".
        dtype: Precision of the VAE's encoder, "float32", "bfloat16" or "auto" (the second on CUDA). The quantizer
            always works in float32.
        overwrite: Replace another cache in `out`, or make the same anew.
        strict: Stop at the first item that cannot be read.
        max_skipped: Stop when more than so many items cannot be read.

    Raises:
        CodaError: There is nothing to encode, `out` is taken, the size does not fit, items cannot be read, or another
            of the processes is dead.
    """
    if batch_size < 1 or shard_size < 1:
        raise CodaError(f"batch size {batch_size} and shard size {shard_size}: both must be at least 1")
    if not isinstance(tokenizer, CodaTokenizer):
        tokenizer = CodaTokenizer.from_pretrained(tokenizer)
    if size is not None and (size, size) != tokenizer.size:
        height, width = tokenizer.size
        raise CodaError(f"size {size} does not fit the tokenizer, which takes images of {height}x{width} pixels")
    variants = variant_names(flip, ten_crop)
    accelerator = start_accelerator(device, dtype)
    processes = Processes()  # before the source: processes wait for each other here, and listing may take long
    source = open_images(data)
    value_table = tokenizer.value_table().cpu()
    tokenizer.to(accelerator.device).eval()
    _keep_freed_memory()
    precision = "bfloat16" if accelerator.mixed_precision == "bf16" else str(tokenizer.vae.dtype).split(".")[-1]
    head = describe_cache(tokenizer, source, precision, shard_size, variants, _parse_part(part))
    most_skipped = 0 if strict else max_skipped
    _advise_on_shards(len(source), shard_size, processes)

    began = time.monotonic()
    with closing(CacheWriter(out, head, value_table, overwrite, processes)) as writer:
        encoded = 0
        if not writer.complete:
            images = _read_remaining(writer, source, size_for(variants, tokenizer.size), batch_size, workers)
            encode = partial(encode_variants, tokenizer, accelerator, variants)
            encoded = _write_codes(writer, images, encode, source.location, most_skipped)
            encoded = sum(processes.gather(encoded))
            writer.join_others()
            _check_skipped(writer.skipped, source.location, most_skipped)
            writer.finish()
        seconds = time.monotonic() - began
        return processes.broadcast_from_main(lambda: _sum_up(out, encoded, seconds))


@torch.inference_mode()
def encode_variants(
    tokenizer: CodaTokenizer, accelerator: Accelerator, variants: Sequence[str], pixels: torch.Tensor
) -> torch.Tensor:
    """Codes (B, V, T), on the accelerator, of the variants of pixels (B, 3, H, W) uint8, which are of `size_for` them.

    Nothing here waits for an accelerator: it may work on while the next images are fetched.
    """
    on_cpu = accelerator.device.type == "cpu"
    at_once = max(1, _CPU_PIXELS // math.prod(tokenizer.size)) if on_cpu else len(pixels)
    images = to_unit(pixels.to(accelerator.device)).contiguous(memory_format=torch.channels_last)
    codes = []
    for variant in each_variant(images, variants, tokenizer.size):
        with accelerator.autocast():
            latents = [tokenizer.vae.encode(few) for few in variant.split(at_once)]
        codes.append(tokenizer.quantizer.encode(torch.cat(latents).float()))
    return torch.stack(codes, dim=1)


def _keep_freed_memory() -> None:
    """Let the C library keep what a layer frees for the next, instead of giving it back and fetching it anew.

    glibc takes the largest block that it has seen freed, up to 32 MiB, as the measure of what to keep (mallopt(3)); on
    a CPU that is worth a quarter of the encoder's speed. Elsewhere it does nothing.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def _advise_on_shards(items: int, shard_size: int, processes: Processes) -> None:
    """Say so if processes will wait for others because shards are shared out whole."""
    largest = max(1, items // (_FEWEST_SHARDS * processes.count))
    if processes.count > 1 and processes.rank == 0 and shard_size > largest:
        log_info(
            f"few shards for {processes.count} processes: some will wait for others; --shard-size {largest} makes more"
        )


def _sum_up(out: str | Path, encoded: int, seconds: float) -> TokenizeSummary:
    cache = CodeCache(out)
    skipped = [Skipped(**item) for item in cache.manifest["skipped"]]
    if skipped:
        log_info(
            f"left out {len(skipped):,} items; the first, {skipped[0].key}, {skipped[0].reason}; all in {MANIFEST}"
        )
    return TokenizeSummary(cache.path, cache.num_images, skipped, encoded, seconds)


def describe_cache(
    tokenizer: CodaTokenizer,
    source: ImageSource,
    precision: str,
    shard_size: int,
    variants: Sequence[str],
    part: tuple[int, int] | None,
) -> dict[str, Any]:
    """All that decides which bytes a cache holds: the first half of its manifest."""
    preprocessing = {
        "size": list(tokenizer.size),
        "crop": crop_of(variants, tokenizer.size),
        "resampling": RESAMPLING,
        "orientation": ORIENTATION,
        "transparency": TRANSPARENCY,
        "precision": precision,
    }
    return manifest_header(tokenizer, source, variants, preprocessing, shard_size, part)


def _read_remaining(
    writer: CacheWriter, source: ImageSource, size: tuple[int, int], batch_size: int, workers: int
) -> Iterator[tuple[int, ImageBatch]]:
    """What is left to encode, in batches that end where a shard ends: (one past the last item, images)."""
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
    """Encode and append batch by batch; returns the number of images. What is done survives an interruption."""
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
    raise CodaError(
        f"{last.key} in {location} {last.reason}"
        + (f"; {most:,} others were left out already, which is as many as may be" if most else "")
    )


def _parse_part(part: str | None) -> tuple[int, int] | None:
    """The two numbers of a part such as "2/4"."""
    if part is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", part)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise CodaError(f"part {part!r} is none; the second of four parts is 2/4")
    return int(match[1]), int(match[2])
