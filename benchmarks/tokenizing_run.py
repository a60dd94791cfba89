"""How long `tokenize_dataset` takes with many processes: on paper, and as a simulation of what the code does.

Per process: images n, loading processes w, seconds k of an image in one of them (a request to the storage, the bytes,
decoding) and m on the device. On paper the process with the most images, or the storage that all read from, decides:

    seconds = listing + max(max n / min(1/m, w/k), all bytes / bandwidth) + first batch + last shard's writing

and without loading processes max n · (k + m) takes the place of the first quotient. The simulation knows, besides, in
which order things happen: torch's loader deals batches to its processes in turn, keeps two per process on the way and
hands them over in order; the storage serves one request after the other; the writer thread lets 16 batches wait, writes
shards and progress notes, and saves a shard at hand every ten seconds; images and devices are not equally fast.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapify, heappop, heappush

import numpy as np

from coda.tokenizer.code_cache.format import shard_spans
from coda.tokenizer.foundation.distributed import Processes

_ON_THE_WAY = 2  # batches per loading process: torch's prefetch_factor
_MOST_WAITING = 16  # batches, as WriterThread has it
_PENDING_SECONDS, _PENDING_SHARE = 10.0, 0.05  # as CacheWriter has them
_FLUSHES_OF_A_SHARD = 4  # the shard and its folder, the progress note and its folder
_FLUSHES_OF_A_SAVE = 2


@dataclass(frozen=True)
class TokenizingRun:
    """A run of `tokenize_dataset`, described by what its parts can do.

    Attributes:
        images: Items of the source.
        gpus: Processes, each with one device.
        shard_size: Items per shard.
        batch_size: Items per batch.
        workers: Loading processes of each process; 0 decodes in the process itself.
        encode_rate: Images per second of one device.
        decode_rate: Images per second of one loading process, out of memory.
        decode_spread: Standard deviation of the logarithm of an image's decoding time.
        device_spread: The same of whole processes, device and loaders alike.
        image_bytes: Bytes of an encoded image, on average.
        row_bytes: Bytes of an image's codes, labels and key in a shard.
        bandwidth: Bytes per second of the storage, for all processes together.
        request_seconds: From asking the storage for one thing to its first byte.
        flush_seconds: Of one fsync.
        listing_seconds: Until a process knows its source; every process lists all of it.
    """

    images: int
    gpus: int
    shard_size: int
    batch_size: int
    workers: int
    encode_rate: float
    decode_rate: float
    decode_spread: float
    device_spread: float
    image_bytes: float
    row_bytes: float
    bandwidth: float
    request_seconds: float
    flush_seconds: float
    listing_seconds: float

    @cached_property
    def shares(self) -> list[list[range]]:
        """The shards of each process, each as the items in it: the run's own arithmetic."""
        spans = list(shard_spans(self.images, self.shard_size, None).values())
        shares = []
        for rank in range(self.gpus):
            process = Processes(together=False)
            process.rank, process.count = rank, self.gpus
            shares.append(list(process.share_of(spans)))
        return shares

    @cached_property
    def most_images(self) -> int:
        """Images of the process that has the most."""
        return max(sum(map(len, share)) for share in self.shares)

    @property
    def seconds_in_loader(self) -> float:
        """k: one image in a loading process, if the storage serves no other."""
        return self.request_seconds + self.image_bytes / self.bandwidth + 1 / self.decode_rate

    @property
    def workers_needed(self) -> int:
        """Loading processes that keep up with one device."""
        return math.ceil(self.encode_rate * self.seconds_in_loader)

    def writing_seconds(self, rows: int, flushes: int, times: int) -> float:
        """Writing (or reading) `rows` so many `times`, with a process's share of the bandwidth."""
        return flushes * self.flush_seconds + times * rows * self.row_bytes * self.gpus / self.bandwidth

    def on_paper(self) -> dict[str, float]:
        """What each part alone would take, in seconds: encoding, loading, reading; those that are added, last.

        The names are those of the bottlenecks.
        """
        m, k = 1 / self.encode_rate, self.seconds_in_loader
        loading = self.most_images * k / self.workers if self.workers else self.most_images * (k + m)
        last = self.writing_seconds(min(self.shard_size, self.most_images), _FLUSHES_OF_A_SHARD, 2)
        return {
            "devices": self.most_images * m,
            "decoding": loading,
            "storage": self.images * self.image_bytes / self.bandwidth,
            "listing": self.listing_seconds,
            "ends": last + (min(self.batch_size, self.most_images) * k if self.workers else 0.0),
        }

    @property
    def paper_seconds(self) -> float:
        """The formula at the head of this file."""
        parts = self.on_paper()
        return max(parts[name] for name in ("devices", "decoding", "storage")) + parts["listing"] + parts["ends"]

    @property
    def bottleneck(self) -> str:
        """Which part takes longest: "devices", "decoding", "storage" or "listing"."""
        parts = self.on_paper()
        return max(("devices", "decoding", "storage", "listing"), key=parts.__getitem__)


@dataclass(frozen=True)
class Simulated:
    """What a simulated run came to.

    Attributes:
        seconds: Until the last process has written its last shard.
        finished: When each process had, in seconds.
        bytes_written: Shards and what was saved of unfinished ones.
    """

    seconds: float
    finished: Sequence[float]
    bytes_written: float

    @property
    def waiting_share(self) -> float:
        """Share of the processes' time, in [0, 1), that goes into waiting for the slowest."""
        return 1 - sum(self.finished) / (len(self.finished) * self.seconds)


def simulate(run: TokenizingRun, seed: int = 0) -> Simulated:
    """Go through the run event by event, an event being that a loading process begins a batch."""
    random = np.random.default_rng(seed)
    processes = [_Process(run, share, random) for share in run.shares]
    events = [(run.listing_seconds, rank, b) for rank, process in enumerate(processes) for b in process.first_batches]
    heapify(events)
    storage_free = 0.0
    while events:
        now, rank, batch = heappop(events)
        process = processes[rank]
        storage_free = max(storage_free, now) + process.sizes[batch] * run.image_bytes / run.bandwidth
        for begin, following in process.load(batch, max(storage_free, now)):
            heappush(events, (begin, rank, following))
    finished = [process.written for process in processes]
    return Simulated(max(finished), finished, sum(process.bytes_written for process in processes))


class _Process:
    """One process: its loading processes, its device and its writer thread.

    Batch b is loaded by loading process b mod w, once that is done with b − w, and not before b − 2w is handed over.
    """

    def __init__(self, run: TokenizingRun, share: Sequence[range], random: np.random.Generator) -> None:
        self._run = run
        self._slowness = math.exp(random.normal(0, run.device_spread))
        self.sizes: list[int] = []
        self._loads: list[float] = []
        self._closes: list[int] = []  # rows of the shard that a batch ends, else 0
        for span in share:
            starts = np.arange(0, len(span), run.batch_size)
            decoding = np.add.reduceat(_decoding_seconds(run, len(span), random), starts)
            sizes = np.diff([*starts, len(span)])
            self.sizes += sizes.tolist()
            self._loads += ((decoding + sizes * run.request_seconds) * self._slowness).tolist()
            self._closes += [0] * (len(starts) - 1) + [len(span)]
        count = len(self.sizes)
        self._loaders = max(1, run.workers)
        self._ahead = _ON_THE_WAY * run.workers or 1
        self._ready: list[float | None] = [None] * count
        self._asked: list[float | None] = [run.listing_seconds] * self._ahead + [None] * count
        self._next = 0  # batch to be handed over
        self._free = self.written = self._saved = run.listing_seconds
        self._waiting: deque[float] = deque(maxlen=_MOST_WAITING)
        self._rows, self._pause = 0, _PENDING_SECONDS
        self.bytes_written = 0.0

    @property
    def first_batches(self) -> range:
        """Those that the loading processes begin at once."""
        return range(min(self._loaders, len(self.sizes)))

    def load(self, batch: int, read: float) -> list[tuple[float, int]]:
        """A batch whose bytes are there at `read` is decoded; returns when which others begin."""
        self._ready[batch] = read + self._loads[batch]
        asked = [batch + self._loaders]
        while self._next < len(self.sizes) and (ready := self._ready[self._next]) is not None:
            asked.append(self._next + self._ahead)
            self._hand_over(self._next, max(self._free, ready))
            self._next += 1
        begin = []
        for number in dict.fromkeys(asked):
            if number < len(self.sizes) and (when := self._asked[number]) is not None:
                before = self._ready[number - self._loaders]
                if before is not None:
                    begin.append((max(when, before), number))
        return begin

    def _hand_over(self, batch: int, now: float) -> None:
        """The device encodes a batch and the writer gets it; then, or at once, another is asked for."""
        encoded = now + self.sizes[batch] / self._run.encode_rate * self._slowness
        self._free = max(encoded, self._waiting[0]) if len(self._waiting) == _MOST_WAITING else encoded
        self._asked[batch + self._ahead] = now if self._run.workers else self._free
        self._write(batch, encoded)
        self._waiting.append(self.written)

    def _write(self, batch: int, encoded: float) -> None:
        self.written = max(encoded, self.written)
        self._rows += self.sizes[batch]
        if rows := self._closes[batch]:
            self.written += self._run.writing_seconds(rows, _FLUSHES_OF_A_SHARD, 2)
        elif self.written - self._saved > self._pause:
            rows, taken = self._rows, self._run.writing_seconds(self._rows, _FLUSHES_OF_A_SAVE, 1)
            self.written += taken
            self._pause = max(_PENDING_SECONDS, taken / _PENDING_SHARE)
        else:
            return
        self.bytes_written += rows * self._run.row_bytes
        self._saved = self.written
        self._rows = 0 if self._closes[batch] else self._rows


def _decoding_seconds(run: TokenizingRun, count: int, random: np.random.Generator) -> np.ndarray:
    """(count,) lognormal seconds, on average those of the rate."""
    middle = -math.log(run.decode_rate) - run.decode_spread**2 / 2
    return random.lognormal(middle, run.decode_spread, count)
