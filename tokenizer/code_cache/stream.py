"""Reading a code cache in shuffled batches, the same whatever number of processes reads it."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from ..foundation.seeding import EndlessOrder
from .reader import CodeCache


class ShuffledBatches(Dataset):
    """The batches of an endless reading, epoch after epoch, each epoch in an order of its own.

    Batch `step` holds the samples at places step · batch_size … of the sequence of epochs, whose order is a pure
    function of (seed, epoch): nothing has to be saved to go on where a reading stopped, and which loading process makes
    a batch makes no difference. A batch may end one epoch and begin the next. In a training:

        batches = ShuffledBatches(cache, batch_size=256, seed=0, process=(rank, world_size))
        loader = DataLoader(batches, batch_size=None, sampler=range(first_step, steps), num_workers=4)

    Args:
        cache: What is read.
        batch_size: Samples per step, of all processes together.
        seed: Of the order.
        process: (rank, count): this one's run of every batch, the rank-th of `count` equal ones.
    """

    def __init__(self, cache: CodeCache, batch_size: int, seed: int = 0, process: tuple[int, int] = (0, 1)) -> None:
        rank, count = process
        self._cache, self._batch_size = cache, batch_size
        self._first, self._last = batch_size * rank // count, batch_size * (rank + 1) // count
        self._order = EndlessOrder(len(cache), seed)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (b, T) int64 and labels (b,) int64 of this process's share of one step's batch."""
        start = step * self._batch_size
        return self._cache.batch(self._order.items(range(start + self._first, start + self._last)))
