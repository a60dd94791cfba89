"""Killed at any instant, with any number of processes, and rerun: the same bytes, every item once."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from coda.tokenizer import CodaTokenizer, CodeCache, ResidualQuantizer
from coda.tokenizer.code_cache import writer
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.vae.continuous_vae import ContinuousVAE

from .conftest import content, finish, start_and_kill
from .conftest import tokenize as tokenize_dataset

KILLS = 30
Work = Callable[..., object]


@pytest.fixture
def tokenize(
    tokenizer: CodaTokenizer,
    odd_items: dict[str, tuple[bytes, Image.Image | str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Work:
    """Makes a cache of 20 items, five of them bad, and saves the open shard after every batch."""
    monkeypatch.setattr(writer, "_PENDING_SECONDS", 0)
    monkeypatch.setattr(writer, "_PENDING_SHARE", float("inf"))
    data = tmp_path / "photos"
    data.mkdir()
    for name, (image, _) in odd_items.items():
        (data / name).write_bytes(image)
    usual = {"tokenizer": tokenizer, "batch_size": 2, "shard_size": 5, "device": "cpu"}
    return lambda out, **changes: tokenize_dataset(data=data, out=out, **(usual | changes))


def start_on_a_disk_that_fills(work: Callable[[], object], folder: Path, full_at: int) -> int:
    """As `start_and_kill`, but the disk is full from the `full_at`-th file on that is to be written in `folder`."""
    child = os.fork()
    if child:
        return child
    torch.set_num_threads(1)
    left = iter(range(full_at, -(10**9), -1))

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        written = event == "open" and str(folder) in str(arguments[0]) and (arguments[2] or 0) & os.O_CREAT
        if written and next(left) <= 1:
            raise OSError(errno.ENOSPC, "No space left on device", str(arguments[0]))

    finish(work, refuse)


def launch(work: Callable[[], object], folder: Path, killed_at: dict[int, int], count: int) -> dict[int, int]:
    """`start_and_kill` in `count` processes that know of each other; their numbers by rank."""
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **common} for rank in range(count)]
    return {rank: start_and_kill(work, folder, killed_at.get(rank), **ranks[rank]) for rank in range(count)}


def ended_well(children: dict[int, int]) -> bool:
    """Wait for the processes; where one ends badly, the others are killed at once, as a launcher does."""
    well, left = True, set(children.values())
    while left:
        child, status = os.waitpid(-1, 0)
        left.discard(child)
        if status != 0 and well:
            well = False
            for other in left:
                os.kill(other, signal.SIGKILL)
    return well


def one_process(work: Callable[[], object], folder: Path, killed_at: int) -> bool:
    return ended_well({0: start_and_kill(work, folder, killed_at)})


def two_processes(work: Callable[[], object], folder: Path, killed_at: int) -> bool:
    return ended_well(launch(work, folder, {killed_at % 2: killed_at // 2 + 2}, 2))


def one_or_two(work: Callable[[], object], folder: Path, killed_at: int) -> bool:
    return (two_processes if killed_at % 3 else one_process)(work, folder, killed_at)


@pytest.mark.parametrize("run", [one_process, two_processes, one_or_two])
def test_killed_thirty_times_the_run_ends_with_the_same_bytes(tokenize: Work, tmp_path: Path, run: Any) -> None:
    tokenize(tmp_path / "whole")
    whole = content(tmp_path / "whole")
    chance, kills, caches = random.Random(0), 0, 0
    while kills < KILLS or not caches:
        out = tmp_path / f"cache-{caches}"
        if run(lambda out=out: tokenize(out), out, chance.randint(1, 60)):
            assert content(out) == whole
            caches += 1
            continue
        kills += 1
        if out.exists() and not (out / "manifest.json").exists():
            with pytest.raises(CodaError, match=r"unfinished|not a code cache"):
                CodeCache(out)
    cache = CodeCache(tmp_path / "whole")
    cache.verify()
    assert (cache.num_images, len(cache.manifest["skipped"])) == (15, 5)


def test_a_disk_that_is_full_at_any_instant_leaves_nothing_corrupt(
    tokenize: Work, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenize(tmp_path / "whole")
    filled = 0
    for full_at in range(1, 40):
        out = tmp_path / f"cache-{full_at}"
        if ended_well({0: start_on_a_disk_that_fills(lambda out=out: tokenize(out), out, full_at)}):
            break
        filled += 1
        assert "No space left on device" in capfd.readouterr().out
        assert not (out / "manifest.json").exists() and not list(out.glob("*.partial"))
        tokenize(out)
        assert content(out) == content(tmp_path / "whole"), full_at
    assert filled >= 10


def test_a_cache_being_replaced_is_at_every_instant_the_old_one_or_a_beginning(
    tokenize: Work, small_vae: ContinuousVAE, tmp_path: Path
) -> None:
    torch.manual_seed(9)
    other = CodaTokenizer(small_vae, ResidualQuantizer(4, 300, [1, 3, 8])).eval()
    tokenize(tmp_path / "old", tokenizer=other, shard_size=2)
    tokenize(tmp_path / "new")
    for killed_at in range(2, 26):
        out = tmp_path / f"cache-{killed_at}"
        shutil.copytree(tmp_path / "old", out)
        assert not one_process(lambda out=out: tokenize(out, overwrite=True), out, killed_at)
        if (out / "manifest.json").exists():
            CodeCache(out).verify()
            tokenize(out, overwrite=True)
        else:
            tokenize(out)
        assert content(out) == content(tmp_path / "new"), killed_at


def test_processes_share_the_work_and_more_of_them_than_shards_do_no_harm(
    tokenize: Work, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tokenize(tmp_path / "whole")
    for count in (2, 3, 5):
        out = tmp_path / f"cache-{count}"

        def work(out: Path = out) -> None:
            done: Any = tokenize(out)
            os.write(1, f"{done.images} {len(done.skipped)} {done.encoded}\n".encode())  # in one piece

        assert ended_well(launch(work, out, {}, count))
        assert content(out) == content(tmp_path / "whole")
        assert capfd.readouterr().out == "15 5 15\n" * count  # all know of all; no image was encoded twice


def test_processes_count_the_bad_items_together(
    tokenize: Work, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cache"
    assert not ended_well(launch(lambda: tokenize(out, max_skipped=4), out, {}, 2))  # neither meets five by itself
    assert "4 others were left out already" in capfd.readouterr().out
    assert ended_well(launch(lambda: tokenize(out, max_skipped=5), out, {}, 2))


def test_a_process_that_dies_is_the_end_of_the_others(
    tokenize: Work, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cache"
    children = launch(lambda: tokenize(out), out, {1: 12}, 2)
    statuses = {rank: os.waitpid(child, 0)[1] for rank, child in children.items()}
    assert os.WTERMSIG(statuses[1]) == signal.SIGKILL and os.WEXITSTATUS(statuses[0]) == 3
    assert "another of the processes ended before its work was done" in capfd.readouterr().out
