"""Loading in worker processes, whose errors arrive as they were raised, in one line."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from .errors import CodaError


class Loader(Protocol):
    """Anything that loads the answer to a request."""

    def __getitem__(self, request: Any) -> Any: ...


def load_ahead(loader: Loader, requests: Iterable[Any], workers: int) -> Iterator[Any]:
    """`loader[request]` for each request, in order.

    Args:
        loader: Called in the worker processes.
        requests: Read as far ahead as the workers are.
        workers: Number of worker processes; 0 loads in this process.

    Raises:
        CodaError: If a worker was killed, or `loader` raised one.
        OSError: If `loader` raised one.
    """
    if workers == 0:
        yield from (loader[request] for request in requests)
        return
    # Each request is a batch already, so torch's own batching is off.
    ahead = DataLoader(
        _ErrorsAsValues(loader), batch_size=None, sampler=requests, num_workers=workers, collate_fn=_identity
    )  # type: ignore[arg-type]
    try:
        for loaded in ahead:
            if isinstance(loaded, Exception):
                raise loaded
            yield loaded
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise CodaError("a loading process was killed, perhaps for lack of memory; try fewer --workers") from error


class _ErrorsAsValues(Dataset):
    """Returns expected errors, since torch would bury their message in a traceback."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __getitem__(self, request: Any) -> Any:
        if get_worker_info() is not None:
            torch.set_num_threads(1)
        try:
            return self._loader[request]
        except (CodaError, OSError, MemoryError) as error:
            return error


def _identity(loaded: Any) -> Any:
    return loaded
