"""Which process this is, among those that `torchrun` or `accelerate launch` started. Needs no torch."""

from __future__ import annotations

import os
import sys

from .errors import CodaError

_SET_BY_LAUNCHERS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # one of them alone means nothing


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process, and the number of processes that work together; (0, 1) for a process on its own."""
    distributed = sys.modules.get("torch.distributed")  # if torch is not imported, no process group exists
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return (int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) if was_launched() else (0, 1)


def is_main_process() -> bool:
    """Whether this process is the one that speaks and writes for all."""
    return rank_and_world_size()[0] == 0


def was_launched() -> bool:
    """Whether a launcher started this process, and said which one it is."""
    values = [os.environ.get(name, "") for name in _SET_BY_LAUNCHERS]
    return all(values) and values[0].isdecimal() and values[1].isdecimal()


def check_batch_size(batch_size: int, parts: int = 1) -> None:
    """Check that all processes can take equal shares of a batch, and split them into `parts` equal parts.

    Raises:
        CodaError: If they cannot.
    """
    world_size = rank_and_world_size()[1]
    if parts > 1 and batch_size % (world_size * parts):
        share = f"the share of each of {world_size} processes in " if world_size > 1 else ""
        raise CodaError(f"{share}a batch of {batch_size} cannot be accumulated in {parts} equal parts")
    if batch_size % world_size:
        raise CodaError(f"a batch of {batch_size} cannot be shared by {world_size} processes; use a multiple of them")


def check_world_size(in_use: int) -> None:
    """Check that the processes that were started are those that work together.

    Args:
        in_use: Processes that work together.

    Raises:
        CodaError: If WORLD_SIZE says otherwise: each process would believe that it is alone, and write over the others.
    """
    asked = os.environ.get("WORLD_SIZE", "1")
    if asked != str(in_use):
        raise CodaError(
            f"WORLD_SIZE is {asked}, but {in_use} process{'es' if in_use > 1 else ''} would work together here; "
            "start all with torchrun or accelerate launch and a device that they can share, or unset WORLD_SIZE"
        )
