"""Writing a code cache so that a kill at any instant loses some seconds of work and nothing else.

A shard's items are fixed by their place in the source, so each shard can be made by itself, again and with the same
bytes. progress.json lists finished shards with their checksums; the open shard is saved every few seconds. Each of
several processes makes its share of the shards, and the first writes the manifest when all are done.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..foundation.atomic_io import save_tensors, sha256_of, to_json, write_bytes, write_json
from ..foundation.directory_lock import DirectoryLock
from ..foundation.distributed import Processes
from ..foundation.errors import CodaError
from ..foundation.output_directory import check_free, resolve_out
from ..foundation.reading import read_json
from ..images import Skipped
from ..layout import CodeLayout
from .format import (
    MANIFEST,
    PROGRESS,
    VALUE_TABLE,
    Shard,
    ShardRows,
    shard_name,
    shard_spans,
    write_shard,
)
from .manifest import differences, finished_manifest, is_code_cache, read_progress

_PENDING_SECONDS = 10.0
_PENDING_SHARE = 0.05  # of the time, at most, goes into saving open shards
_HALF_WRITTEN = (".*.partial", ".tmp*")  # left by a killed run: our names, and those of safetensors


@dataclass(frozen=True)
class _OpenShard:
    """A shard being filled; replaced as a whole, so that an interruption never finds it half changed."""

    number: int
    end: int  # one past the last item
    rows: tuple[ShardRows, ...] = ()
    skipped: tuple[Skipped, ...] = ()


class CacheWriter:
    """Writes a cache, or resumes writing it, whatever the number of processes that began it.

    Args:
        out: The cache's folder.
        header: Everything that decides the cache's content, see `manifest_header`; another header is refused.
        value_table: (K, C), the latent vector of each code.
        overwrite: Replace a cache that is complete or has another header. An unfinished one with the same header is
            resumed all the same, and what is not a cache is never touched.
        processes: Processes that share the work, each with a writer; this process alone if None.

    Attributes:
        complete: Whether the same cache has been made here before; nothing is left to do then.
        items: Items of this process, readable or not, in this run and earlier ones.
        shape: (V, T), variants and codes of one image.

    Raises:
        CodaError: If `out` holds something else or another cache (the message says what differs), or another process
            is writing there.
    """

    def __init__(
        self,
        out: str | Path,
        header: dict[str, Any],
        value_table: torch.Tensor,
        overwrite: bool = False,
        processes: Processes | None = None,
    ) -> None:
        self.path = resolve_out(out)
        self._header = header = json.loads(json.dumps(header))  # as JSON reads it back: tuples become lists
        self._layout = CodeLayout.from_json(header["layout"])
        self._spans = shard_spans(header["source"]["items"], header["shard_size"], header["part"])
        self._processes = processes or Processes(together=False)
        self._own = {number: self._spans[number] for number in self._processes.shard(sorted(self._spans))}
        self.items = sum(map(len, self._own.values()))
        self.shape = (len(header["variants"]), self._layout.num_tokens)
        self._shards: dict[int, dict[str, Any]] = {}
        self._skipped: dict[int, Sequence[Skipped]] = {}
        self._open_shards: dict[int, _OpenShard] = {}
        self._saved_at, self._pause = time.monotonic(), _PENDING_SECONDS
        self._lock: DirectoryLock | None = None
        try:
            found = self._processes.broadcast_from_main(lambda: self._open(value_table, overwrite))
            self.complete, shards, skipped = found
            mine = shards.keys() & self._own if self._processes.rank else shards  # the first knows of all
            self._shards, self._skipped = ({n: known[n] for n in mine} for known in (shards, skipped))
            self._lock = self._lock or DirectoryLock(self.path, shared=True)
            if not self.complete:
                self._resume_pending()
        except BaseException:
            self.close()
            raise

    @property
    def skipped(self) -> list[Skipped]:
        """Items left out so far, including those of earlier runs, in the source's order."""
        found = {**self._skipped, **{number: open_shard.skipped for number, open_shard in self._open_shards.items()}}
        return [item for number in sorted(found) for item in found[number]]

    def remaining(self) -> list[range]:
        """The items that this process still has to encode, a range per shard."""
        missing = [number for number in self._own if number not in self._shards]
        return [range(self._so_far(number).end, self._own[number].stop) for number in missing]

    def append(self, rows: ShardRows, skipped: Sequence[Skipped], end: int) -> None:
        """Add the items before `end`, all in one shard, in order.

        Args:
            rows: Encoded items.
            skipped: Items that could not be read.
            end: One past the last item.
        """
        number = (end - 1) // self._header["shard_size"]
        before = self._so_far(number)
        assert end - before.end == len(rows) + len(skipped), "items are out of order"
        open_shard = _OpenShard(number, end, (*before.rows, rows.on_disk(self._layout)), (*before.skipped, *skipped))
        self._open_shards[number] = open_shard
        if end == self._own[number].stop:
            self._close_shard(open_shard)
        elif time.monotonic() - self._saved_at > self._pause:
            self._save(open_shard)

    def save_pending(self) -> None:
        """Save open shards, so that the next run can resume them."""
        for open_shard in self._open_shards.values():
            self._save(open_shard)

    def join_others(self) -> None:
        """Wait until all processes have encoded their shards, and collect what they made.

        Raises:
            CodaError: If a process has died.
        """
        for shards, skipped in self._processes.gather((self._shards, self._skipped)):
            self._shards |= shards
            self._skipped |= skipped

    def finish(self) -> Path:
        """Write the manifest, in the first process: only then is the folder a cache.

        Raises:
            CodaError: If not a single item could be read.
        """
        assert len(self._shards) == len(self._spans), "there are items left to encode"
        skipped, items = self.skipped, sum(map(len, self._spans.values()))
        # A part without images may still belong to a cache that has some.
        if len(skipped) == items and self._header["part"] is None:
            raise CodaError(f"none of {items:,} items can be read; the first, {skipped[0].key}, {skipped[0].reason}")
        if self._processes.rank == 0:
            shards = [self._shards[number] for number in sorted(self._shards)]
            table = sha256_of(self.path / VALUE_TABLE)
            write_json(
                self.path / MANIFEST, finished_manifest(self._header, table, shards, [asdict(s) for s in skipped])
            )
            self._tidy()
        self.complete = True
        return self.path

    def close(self) -> None:
        """Release the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _so_far(self, number: int) -> _OpenShard:
        return self._open_shards.get(number) or _OpenShard(number, self._own[number].start)

    def _save(self, open_shard: _OpenShard) -> None:
        since = time.monotonic()
        skipped = [asdict(item) for item in open_shard.skipped]
        metadata = {"shard": open_shard.number, "upto": open_shard.end, "skipped": skipped}
        write_shard(self._pending(open_shard.number), self._joined(open_shard), self._layout, metadata)
        self._saved_at = time.monotonic()
        self._pause = max(_PENDING_SECONDS, (self._saved_at - since) / _PENDING_SHARE)

    def _pending(self, number: int) -> Path:
        return self.path / f"pending-{shard_name(number)}"

    def _joined(self, open_shard: _OpenShard) -> ShardRows:
        return ShardRows.joined(open_shard.rows, self.shape[0], self._layout)

    def _close_shard(self, full: _OpenShard) -> None:
        """Put a full shard in its place, then record it as done."""
        number, span, rows = full.number, self._own[full.number], self._joined(full)
        file = self.path / shard_name(number)
        write_shard(file, rows, self._layout, {"shard": number, "start": span.start, "stop": span.stop})
        self._skipped[number] = full.skipped
        self._shards[number] = {
            "file": file.name,
            "sha256": sha256_of(file),
            "bytes": file.stat().st_size,
            "images": len(rows),
            "start": span.start,
            "stop": span.stop,
        }
        del self._open_shards[number]
        self._note_progress()
        self._pending(number).unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def _note_progress(self) -> None:
        done = {
            str(number): {**shard, "skipped": [asdict(item) for item in self._skipped[number]]}
            for number, shard in sorted(self._shards.items())
        }
        rank = self._processes.rank
        file = self.path / (PROGRESS if rank == 0 else f"progress-{rank}.json")
        # Without indentation: for thousands of shards Python is over three times as fast.
        write_bytes(file, to_json({"head": self._header, "shards": done}).encode())

    def _open(self, value_table: torch.Tensor, overwrite: bool) -> tuple[bool, dict, dict]:
        """Whether the cache is complete, and its shards with the items they left out; runs in the first process."""
        self._lock = DirectoryLock(self.path)
        complete = self._clear_way(overwrite)
        if complete:
            self._tidy()
        else:
            self._resume(value_table)
        if self._processes.count > 1:
            self._lock.share()
        return complete, self._shards, self._skipped

    def _clear_way(self, overwrite: bool) -> bool:
        """Make sure that the folder is empty or holds this very cache; True if it is complete."""
        check_free(self.path, True, is_code_cache, "is not a code cache")
        whole, unfinished = self.path / MANIFEST, self.path / PROGRESS
        if not whole.is_file() and not unfinished.is_file():
            return False
        there = read_json(whole) if whole.is_file() else read_json(unfinished)["head"]
        different = differences({key: there.get(key) for key in self._header}, self._header)
        if overwrite and (different or whole.is_file()):
            self._start_over()
            return False
        if different:
            which = "; ".join(different)
            raise CodaError(f"{self.path} holds another code cache ({which}); choose another --out or give --overwrite")
        return whole.is_file()

    def _start_over(self) -> None:
        """Turn the cache that is here into the beginning of another; a kill leaves one or the other."""
        self._remove("pending-shard-*", "progress-*.json")
        self._note_progress()
        self._remove(MANIFEST)

    def _resume(self, value_table: torch.Tensor) -> None:
        """Find the shards of earlier runs, trusting only those with the right checksum."""
        for notes in sorted(self.path.glob("progress*.json")):
            for number, skipped, shard in read_progress(notes):
                file = self.path / shard["file"]
                is_missing = (
                    number in self._spans and number not in self._shards and shard["file"] == shard_name(number)
                )
                if is_missing and file.is_file() and sha256_of(file) == shard["sha256"]:
                    self._skipped[number] = tuple(Skipped(**item) for item in skipped)
                    self._shards[number] = shard
        self._note_progress()
        save_tensors(self.path / VALUE_TABLE, {"value_table": value_table.float()})
        known = {shard["file"] for shard in self._shards.values()}
        strays = {file.name for file in self.path.glob("shard-[0-9]*.safetensors")} - known
        self._remove(*strays, "progress-*.json", *_HALF_WRITTEN)

    def _resume_pending(self) -> None:
        """Load the shards of this process that earlier runs left open; damaged files are ignored."""
        for pending in self.path.glob("pending-shard-*"):
            with suppress(CodaError, KeyError, TypeError):
                shard = Shard(pending)
                number, end = shard.metadata["shard"], shard.metadata["upto"]
                if number in self._own and number not in self._shards:
                    skipped = tuple(Skipped(**item) for item in shard.metadata["skipped"])
                    self._open_shards[number] = _OpenShard(number, end, (shard.rows(),), skipped)
                    if end == self._own[number].stop:
                        self._close_shard(self._open_shards[number])

    def _tidy(self) -> None:
        self._remove("pending-shard-*", "progress*.json", *_HALF_WRITTEN)

    def _remove(self, *patterns: str) -> None:
        for pattern in patterns:
            for file in self.path.glob(pattern):
                file.unlink()
