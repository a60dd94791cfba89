"""Write shards in a thread, so that encoding continues meanwhile."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType

from ..foundation.errors import CodaError
from ..images import Skipped
from .format import ShardRows
from .writer import CacheWriter

_MAX_WAITING = 16  # batches of codes, which are small; beyond this, the encoder waits for the writer


class WriterThread:
    """Appends batches to a cache in a separate thread.

    Inside the `with` statement only that thread uses the writer. At its end everything appended has been written; if it
    ends by an exception, the open shard is saved.
    """

    def __init__(self, writer: CacheWriter) -> None:
        self._writer = writer
        # The thread starts with the first batch, after the loading processes were forked.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._last: Future[None] | None = None
        self._waiting: deque[Future[None]] = deque()

    def append(self, rows: ShardRows, skipped: Sequence[Skipped], end: int) -> None:
        """Queue a batch of `encode_variants`, see `CacheWriter.append`; raises the error of an earlier batch."""
        while self._waiting and (len(self._waiting) == _MAX_WAITING or self._waiting[0].done()):
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
            before.result()  # nothing is appended after a batch that failed: its error passes on
        rows = replace(rows, codes=rows.codes.cpu())
        bad = (rows.codes.numpy() < 0).any(axis=(1, 2))
        if bad.any():
            key = rows.keys[int(bad.argmax())]
            raise CodaError(f"the latents of {key} are NaN or infinite: the VAE's weights are damaged or too large")
        self._writer.append(rows, skipped, end)

    def _save(self, before: Future[None] | None) -> None:
        if before is not None:
            before.result()
        self._writer.save_pending()
