"""Writing a code cache so that a kill at any instant loses some seconds of work and nothing else.

A shard's items are fixed by their place in the source, so each shard can be made by itself, again and with the same
bytes. What is done is in progress.json with its checksums; the shard at hand is saved every few seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ..durable import save_tensors, sha256_of, write_json
from ..errors import CodaError
from ..images import Skipped
from ..layout import CodeLayout
from .format import (
    MANIFEST,
    PENDING,
    PROGRESS,
    VALUE_TABLE,
    Shard,
    ShardRows,
    differences,
    finished_manifest,
    read_json,
    shard_name,
    shard_spans,
    write_shard,
)

try:
    import fcntl
except ImportError:  # Windows: two runs on one folder go unnoticed
    fcntl = None  # type: ignore[assignment]

_PENDING_SECONDS = 10.0
_PENDING_SHARE = 0.05  # of the time, at most, goes into saving what is not finished


@dataclass(frozen=True)
class _Begun:
    """The shard at hand; replaced as a whole, so that an interruption never finds it half changed."""

    number: int
    upto: int  # one past the last item
    rows: tuple[ShardRows, ...] = ()
    skipped: tuple[Skipped, ...] = ()


class CacheWriter:
    """Makes one cache, or goes on making it.

    Args:
        out: The cache's folder.
        head: All that decides the cache's content, see `describe_cache`; another head is refused.
        value_table: (K, C), what codes stand for among normalised latents.
        overwrite: Replace a cache that is whole or has another head. An unfinished one of the same head goes on
            all the same, and what is no cache is never touched.

    Attributes:
        complete: The same cache has been made here before; there is nothing left to do.
        skipped: Items left out so far, including those of runs before.

    Raises:
        CodaError: `out` holds something else or another cache (the message says what differs), or another process is
            at work there.
    """

    def __init__(
        self, out: str | Path, head: dict[str, Any], value_table: torch.Tensor, overwrite: bool = False
    ) -> None:
        self.path = Path(out)
        self._head = head = json.loads(json.dumps(head))  # as it will read back: tuples become lists
        self._layout = CodeLayout.from_json(head["layout"])
        self._spans = shard_spans(head["source"]["items"], head["shard_size"], head["part"])
        if self.path.exists() and not self.path.is_dir():
            raise CodaError(f"{self.path} is a file; --out names a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self._shards: dict[int, dict[str, Any]] = {}
        self._skipped: dict[int, Sequence[Skipped]] = {}
        self._begun: _Begun | None = None
        self._saved_at, self._pause = time.monotonic(), _PENDING_SECONDS
        self._lock = _lock(self.path)
        try:
            self.complete = self._clear_way(overwrite)
            if self.complete:
                self._tidy()
            else:
                self._take_up(value_table)
        except BaseException:
            self.close()
            raise

    @property
    def skipped(self) -> list[Skipped]:
        """Items left out so far, in the source's order."""
        begun = {self._begun.number: self._begun.skipped} if self._begun else {}
        found = {**self._skipped, **begun}
        return [item for number in sorted(found) for item in found[number]]

    @property
    def num_skipped(self) -> int:
        """How many those are."""
        return sum(map(len, self._skipped.values())) + (len(self._begun.skipped) if self._begun else 0)

    @property
    def shape(self) -> tuple[int, int]:
        """(V, T): variants and codes of one image."""
        return len(self._head["variants"]), self._layout.num_tokens

    @property
    def items(self) -> int:
        """Items this cache is made of, readable or not."""
        return sum(map(len, self._spans.values()))

    def remaining(self) -> list[range]:
        """The items still to be encoded, a range per shard; they must come in this order."""
        missing = {number: span for number, span in self._spans.items() if number not in self._shards}
        if self._begun is not None:
            number, upto = self._begun.number, self._begun.upto
            missing = {number: range(upto, missing.pop(number).stop), **missing}
        return list(missing.values())

    def append(self, rows: ShardRows, skipped: Sequence[Skipped], upto: int) -> None:
        """Add what became of the items up to (not including) place `upto`; never beyond the end of a shard.

        Args:
            rows: Those that were encoded.
            skipped: Those that could not be read.
            upto: One past the last item.
        """
        number = (upto - 1) // self._head["shard_size"]
        before = self._begun or _Begun(number, self._spans[number].start)
        assert before.number == number and upto - before.upto == len(rows) + len(skipped), "items are out of order"
        self._begun = _Begun(number, upto, (*before.rows, rows), (*before.skipped, *skipped))
        if upto == self._spans[number].stop:
            self._close_shard(self._begun)
        elif time.monotonic() - self._saved_at > self._pause:
            self.save_pending()

    def save_pending(self) -> None:
        """Save the shard at hand as far as it is, for a run that takes up from there."""
        if self._begun is None:
            return
        since = time.monotonic()
        skipped = [asdict(item) for item in self._begun.skipped]
        metadata = {"shard": self._begun.number, "upto": self._begun.upto, "skipped": skipped}
        write_shard(self.path / PENDING, self._joined(self._begun), self._layout, metadata)
        self._saved_at = time.monotonic()
        self._pause = max(_PENDING_SECONDS, (self._saved_at - since) / _PENDING_SHARE)

    def finish(self) -> Path:
        """Write the manifest: from now on the folder is a cache.

        Raises:
            CodaError: Not one item could be read.
        """
        assert len(self._shards) == len(self._spans), "there are items left to encode"
        skipped = self.skipped
        if len(skipped) == self.items:
            raise CodaError(
                f"none of {self.items:,} items can be read; the first, {skipped[0].key}, {skipped[0].reason}"
            )
        shards = [self._shards[number] for number in sorted(self._shards)]
        table = sha256_of(self.path / VALUE_TABLE)
        write_json(self.path / MANIFEST, finished_manifest(self._head, table, shards, [asdict(s) for s in skipped]))
        self.complete = True
        self._tidy()
        return self.path

    def close(self) -> None:
        """Let others write into the folder again."""
        os.close(self._lock)

    def _joined(self, begun: _Begun) -> ShardRows:
        return ShardRows.joined(begun.rows, *self.shape)

    def _close_shard(self, full: _Begun) -> None:
        """Put a full shard in its place, then note it as done."""
        number, span, rows = full.number, self._spans[full.number], self._joined(full)
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
        self._begun = None
        self._note_progress()
        (self.path / PENDING).unlink(missing_ok=True)
        self._saved_at = time.monotonic()

    def _note_progress(self) -> None:
        done = {
            str(number): {**shard, "skipped": [asdict(item) for item in self._skipped[number]]}
            for number, shard in sorted(self._shards.items())
        }
        write_json(self.path / PROGRESS, {"head": self._head, "shards": done})

    def _clear_way(self, overwrite: bool) -> bool:
        """Make sure that the folder is empty or holds this very cache; True if it is whole."""
        whole, begun = self.path / MANIFEST, self.path / PROGRESS
        found = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]
        if not found:
            return False
        if not whole.is_file() and not begun.is_file():
            raise CodaError(f"{self.path} holds something that is no code cache ({min(found)}); choose another --out")
        there = read_json(whole) if whole.is_file() else read_json(begun).get("head", {})
        if there.get("format") != self._head["format"]:
            raise CodaError(f"{self.path} holds something that is no code cache; choose another --out")
        different = differences({key: there.get(key) for key in self._head}, self._head)
        if overwrite and (different or whole.is_file()):
            self._remove_all()
            return False
        if different:
            which = "; ".join(different)
            raise CodaError(f"{self.path} holds another code cache ({which}); choose another --out or give --overwrite")
        return whole.is_file()

    def _take_up(self, value_table: torch.Tensor) -> None:
        """Find out what runs before have left, trusting only what has the right checksum."""
        self._remove_half_written()
        progress = read_json(self.path / PROGRESS) if (self.path / PROGRESS).is_file() else {}
        for number, shard in progress.get("shards", {}).items():
            file = self.path / shard["file"]
            if file.is_file() and sha256_of(file) == shard["sha256"]:
                self._skipped[int(number)] = tuple(Skipped(**item) for item in shard.pop("skipped"))
                self._shards[int(number)] = shard
        self._take_up_pending()
        self._note_progress()
        if not (self.path / VALUE_TABLE).is_file():
            save_tensors(self.path / VALUE_TABLE, {"value_table": value_table.float()})

    def _take_up_pending(self) -> None:
        pending = self.path / PENDING
        with suppress(CodaError, KeyError):
            shard = Shard(pending)
            number, upto = shard.metadata["shard"], shard.metadata["upto"]
            if number in self._spans and number not in self._shards:
                skipped = tuple(Skipped(**item) for item in shard.metadata["skipped"])
                self._begun = _Begun(number, upto, (shard.rows(),), skipped)
                if upto == self._spans[number].stop:
                    self._close_shard(self._begun)
                return
        pending.unlink(missing_ok=True)

    def _remove_all(self) -> None:
        """Remove a cache; the manifest first, because what is half removed must be no cache."""
        shards = self.path.glob("shard-*.safetensors")
        for file in (self.path / MANIFEST, self.path / PENDING, *shards, self.path / VALUE_TABLE):
            file.unlink(missing_ok=True)
        self._tidy()

    def _tidy(self) -> None:
        for leftover in (self.path / PROGRESS, self.path / PENDING):
            leftover.unlink(missing_ok=True)
        self._remove_half_written()

    def _remove_half_written(self) -> None:
        """Remove what a killed run was writing: under our names, or those that safetensors gives."""
        for leftover in (*self.path.glob(".*.partial"), *self.path.glob(".tmp*")):
            leftover.unlink()


def _lock(folder: Path) -> int:
    """Hold the folder for this process alone."""
    handle = os.open(folder, os.O_RDONLY)
    if fcntl is not None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise CodaError(f"{folder} is being written by another process") from None
        except OSError:  # a file system without locks
            pass
    return handle
