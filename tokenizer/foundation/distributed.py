"""This process among those that `torchrun` or `accelerate launch` has started for one piece of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch.distributed as dist

from .errors import CodaError
from .launcher import rank_and_world_size

T = TypeVar("T")
Item = TypeVar("Item")

# A process that is done waits for the slowest as long as that takes; one that dies is noticed at once all the same,
# because its connection breaks.
_PATIENCE = timedelta(days=30)


class Processes:
    """A process and its fellows, which all go through the same calls in the same order.

    Args:
        together: Whether those of a launcher count, where `torch.distributed` knows of any; else this one is alone.

    Attributes:
        rank: Which one this is, from 0.
        count: How many there are.
    """

    def __init__(self, together: bool = True) -> None:
        self.rank, self.count = rank_and_world_size() if together and dist.is_initialized() else (0, 1)
        # Whatever the devices, a few words go from processor to processor: gloo.
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE) if self.count > 1 else None

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's run of `items`; those of all processes, in order, are all items. It may be empty."""
        return items[len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; waits until all have got here.

        Raises:
            CodaError: One of them is dead.
        """
        found: list[T | None] = [value] * self.count
        if self.count > 1:
            with _report_dead_peer():
                dist.all_gather_object(found, value, group=self._group)
        return cast(list[T], found)

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """What `make` returns in the first process, which alone calls it; the others wait for it.

        Raises:
            CodaError: The first is dead, or has failed.
        """
        made: list[T | None] = [make() if self.rank == 0 else None]
        if self.count > 1:
            with _report_dead_peer():
                dist.broadcast_object_list(made, src=0, group=self._group)
        return cast(T, made[0])


@contextmanager
def _report_dead_peer() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what gloo makes of a broken connection
        raise CodaError(
            "another of the processes ended before its work was done; give the same command again to go on"
        ) from error
