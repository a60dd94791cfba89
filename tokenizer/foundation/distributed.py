"""Processes that `torchrun` or `accelerate launch` has started for one piece of work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from .errors import CodaError
from .launcher import rank_and_world_size

T = TypeVar("T")
Item = TypeVar("Item")

# A process that is done waits for the slowest, however long that takes. One that dies is noticed at once, because its
# connection breaks.
_PATIENCE = timedelta(days=30)


class Processes:
    """A process and its peers, which all make the same calls in the same order.

    Args:
        together: Whether the processes of a launcher count, if `torch.distributed` knows of any. Otherwise this
            process is alone.

    Attributes:
        rank: Which process this is, from 0.
        count: How many there are.
    """

    def __init__(self, together: bool = True) -> None:
        self.rank, self.count = rank_and_world_size() if together and dist.is_initialized() else (0, 1)
        # Whatever the devices, a few words go from CPU to CPU: gloo.
        self._group = dist.new_group(backend="gloo", timeout=_PATIENCE) if self.count > 1 else None

    def shard(self, items: Sequence[Item]) -> Sequence[Item]:
        """This process's share of `items`, which may be empty; the shares of all, in order, are all items."""
        return items[len(items) * self.rank // self.count : len(items) * (self.rank + 1) // self.count]

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank; waits for all.

        Raises:
            CodaError: If a process has died.
        """
        found: list[T | None] = [value] * self.count
        if self.count > 1:
            with _report_dead_peer():
                dist.all_gather_object(found, value, group=self._group)
        return cast(list[T], found)

    def broadcast_from_main(self, make: Callable[[], T]) -> T:
        """Result of `make`, which only the main process calls; the others wait for it.

        Raises:
            CodaError: If the main process has died or failed.
        """
        made: list[T | None] = [make() if self.rank == 0 else None]
        if self.count > 1:
            with _report_dead_peer():
                dist.broadcast_object_list(made, src=0, group=self._group)
        return cast(T, made[0])


@torch.no_grad()
def mean_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The mean of all processes' tensors of one shape, without gradient; `tensor` itself if this process is alone.

    A training averages its gradients over the processes, so a loss that depends on such a mean needs no collective
    in its backward pass: the gradient by the mean, applied to this process's own tensor, is its share.
    """
    return sum_over_processes(tensor) / dist.get_world_size() if _work_together() else tensor


@torch.no_grad()
def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of all processes' tensors of one shape, without gradient; `tensor` itself if this process is alone."""
    if not _work_together():
        return tensor
    total = tensor.detach().clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


@torch.no_grad()
def gather_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """All processes' tensors of one shape, joined by rank along the first dimension; `tensor` itself if alone."""
    if not _work_together():
        return tensor
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor.contiguous())
    return torch.cat(found)


def _work_together() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@contextmanager
def _report_dead_peer() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # gloo's error for a broken connection
        raise CodaError(
            "another of the processes ended before its work was done; run the same command again to resume"
        ) from error
