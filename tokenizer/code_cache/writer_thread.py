"""Encoding goes on while a shard is being written."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from ..images import Skipped
from .format import ShardRows
from .writer import CacheWriter

_MOST_WAITING = 16  # batches of codes, which are small; a writer slower than that holds the encoder up


class WriterThread:
    """Appends to a cache in one thread of its own, batch after batch.

    Within the `with` statement the writer belongs to that thread alone. At its end all that was appended is written;
    if it ends by an exception, the shard at hand is saved as far as it is.
    """

    def __init__(self, writer: CacheWriter) -> None:
        self._writer = writer
        # The thread itself starts with the first batch, when the loading processes have been forked already.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None
        self._waiting: deque[Future[None]] = deque()

    def append(self, rows: ShardRows, skipped: Sequence[Skipped], end: int) -> None:
        """Hand a batch over, see `CacheWriter.append`; raises what went wrong with one before."""
        while self._waiting and (len(self._waiting) == _MOST_WAITING or self._waiting[0].done()):
            self._waiting.popleft().result()
        self._last = self._thread.submit(self._append, self._last, rows, skipped, end)
        self._waiting.append(self._last)

    def __enter__(self) -> WriterThread:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._thread.submit(self._save, self._last)
        self._thread.shutdown()
        if kind is None and self._last is not None:
            self._last.result()

    def _append(self, before: Future[None] | None, rows: ShardRows, skipped: Sequence[Skipped], end: int) -> None:
        if before is not None:
            before.result()  # after a batch that failed nothing is appended: its error goes from one to the next
        self._writer.append(rows, skipped, end)

    def _save(self, before: Future[None] | None) -> None:
        if before is not None:
            before.result()
        self._writer.save_pending()
