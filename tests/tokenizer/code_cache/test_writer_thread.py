from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from coda.tokenizer.code_cache import ShardRows
from coda.tokenizer.code_cache.writer_thread import WriterThread

ROWS = ShardRows(torch.zeros(1, 1, 7).long(), torch.zeros(1).long(), torch.zeros(1).long(), ["a"])


class Recorder:
    """Takes a cache writer's place: notes what it is given, and stops or fails where it is told to."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.done: list[Any] = []
        self.fails_at = fails_at
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def append(self, rows: ShardRows, skipped: Any, end: int) -> None:
        assert self.may_go_on.wait(timeout=20)
        if end == self.fails_at:
            raise OSError(28, "No space left on device")
        self.done.append(end)

    def save_pending(self) -> None:
        self.done.append("saved")


def test_the_next_batch_is_encoded_while_the_last_is_written() -> None:
    writer = Recorder()
    writer.may_go_on.clear()
    with WriterThread(writer) as thread:  # type: ignore[arg-type]
        for end in (1, 2, 3):
            thread.append(ROWS, [], end)
        assert writer.done == []  # the encoder is ahead by three batches
        writer.may_go_on.set()
    assert writer.done == [1, 2, 3]


def test_a_slow_writer_holds_the_encoder_up() -> None:
    writer = Recorder()
    writer.may_go_on.clear()
    handed_over = 0

    def encode() -> None:
        nonlocal handed_over
        with WriterThread(writer) as thread:  # type: ignore[arg-type]
            for end in range(1, 101):
                thread.append(ROWS, [], end)
                handed_over = end

    encoder = threading.Thread(target=encode)
    encoder.start()
    encoder.join(timeout=0.3)
    assert encoder.is_alive() and handed_over < 20
    writer.may_go_on.set()
    encoder.join(timeout=20)
    assert writer.done == list(range(1, 101))


@pytest.mark.parametrize("fails_at", [2, 99, 100])
def test_what_goes_wrong_with_writing_ends_the_encoding_and_nothing_is_written_after_it(fails_at: int) -> None:
    writer = Recorder(fails_at)
    with pytest.raises(OSError, match="No space left"), WriterThread(writer) as thread:  # type: ignore[arg-type]
        for end in range(1, 101):
            thread.append(ROWS, [], end)
    assert writer.done == list(range(1, fails_at))


def test_an_interruption_loses_nothing_that_was_encoded() -> None:
    writer = Recorder()
    with pytest.raises(KeyboardInterrupt), WriterThread(writer) as thread:  # type: ignore[arg-type]
        for end in (1, 2, 3):
            thread.append(ROWS, [], end)
        raise KeyboardInterrupt
    assert writer.done == [1, 2, 3, "saved"]
