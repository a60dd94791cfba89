"""Randomness as a function of (seed, step), so that no random state has to be saved.

A training that draws from `step_generator(seed, step)` and visits images in `epoch_order(seed, epoch)` resumes exactly
where it stopped, given only the step.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager

import torch


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on all `parts` and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def step_generator(seed: int, step: int, stream: int | str = 0) -> torch.Generator:
    """A CPU generator for one step; `stream` separates independent uses within the step."""
    return torch.Generator().manual_seed(derived_seed("step", seed, step, stream))


def forked_random_state(device: torch.device) -> AbstractContextManager[None]:
    """As long as the context lasts, the CPU's and the device's own random state may be seeded; then it is restored."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def epoch_order(seed: int, epoch: int, n: int) -> torch.Tensor:
    """The order in which epoch `epoch` visits `n` items: a permutation, (n,) int64."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(derived_seed("epoch", seed, epoch)))


class EndlessOrder:
    """The sequence of all epochs of `n` items; keeps the permutation of the newest epoch.

    Args:
        n: Number of items.
        seed: Seed of the permutations, see `epoch_order`.
    """

    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed, self._epoch = n, seed, -1
        self._permutation = torch.empty(0, dtype=torch.int64)

    def items(self, places: range) -> torch.Tensor:
        """The items at these places of the sequence, (len(places),) int64."""
        epochs = range(places[0] // self._n, places[-1] // self._n + 1) if places else ()
        wanted = torch.arange(places.start, places.stop, places.step)
        found = [self._order(epoch)[wanted[wanted // self._n == epoch] % self._n] for epoch in epochs]
        return torch.cat(found) if found else wanted

    def _order(self, epoch: int) -> torch.Tensor:
        if epoch != self._epoch:
            self._epoch, self._permutation = epoch, epoch_order(self._seed, epoch, self._n)
        return self._permutation
