"""Read a code cache in shuffled batches that do not depend on the number of processes."""

from __future__ import annotations

import torch
from torch.utils.data import Dataset

from ..foundation.seeding import EndlessOrder
from .reader import CodeCache


class ShuffledBatches(Dataset):
    """An endless sequence of batches, epoch after epoch, each epoch in its own order.

    The order of an epoch is a pure function of (seed, epoch), and batch `step` of (seed, step): nothing has to be saved
    to resume, and it does not matter which worker loads a batch. A batch may end one epoch and begin the next. Usage:

        batches = ShuffledBatches(cache, batch_size=256, seed=0, process=(rank, world_size))
        loader = DataLoader(batches, batch_size=None, sampler=range(first_step, steps), num_workers=4)

    Args:
        cache: The cache.
        batch_size: Samples per step, over all processes.
        seed: Seed of the order.
        process: (rank, count): the batches hold the rank-th of `count` equal shares.
        samples: The samples to read, int64; by default all.
    """

    def __init__(
        self,
        cache: CodeCache,
        batch_size: int,
        seed: int = 0,
        process: tuple[int, int] = (0, 1),
        samples: torch.Tensor | None = None,
    ) -> None:
        rank, count = process
        self._cache, self._batch_size = cache, batch_size
        self._samples = torch.arange(len(cache)) if samples is None else samples
        self._first, self._last = batch_size * rank // count, batch_size * (rank + 1) // count
        self._order = EndlessOrder(len(self._samples), seed)

    def __getitem__(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes (b, T) int64 and labels (b,) int64 of this process's share of one step's batch."""
        start = step * self._batch_size
        places = self._order.items(range(start + self._first, start + self._last))
        return self._cache.batch(self._samples[places])
