"""Exports and imports killed at any instant and given again: the same bytes, and finished shards are kept."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from coda.tokenizer import CodaError, CodaTokenizer, CodeCache, export_cache, import_npy
from coda.tokenizer.code_cache import CacheWriter, ShardRows

from ..conftest import content, start_and_kill
from .conftest import make_header

ITEMS, SHARD = 7, 2
Work = Callable[[Path], object]


@pytest.fixture
def cache(tokenizer: CodaTokenizer, tmp_path: Path) -> CodeCache:
    return make_cache(tokenizer, tmp_path / "cache", seed=0)


def make_cache(tokenizer: CodaTokenizer, out: Path, seed: int) -> CodeCache:
    """Seven images in four shards."""
    source = {"items": ITEMS, "fingerprint": f"{seed:064x}"}
    known = {"tokenizer_fingerprint": tokenizer.fingerprint, "source": source, "num_classes": 7}
    header = make_header(tokenizer.layout, ITEMS, SHARD, **known)
    writer = CacheWriter(out, header, tokenizer.value_table())
    codes = torch.randint(300, (ITEMS, 1, 74), generator=torch.Generator().manual_seed(seed))
    for span in writer.remaining():
        places = torch.tensor(span)
        writer.append(ShardRows(codes[places], places, places, list(map(str, span))), [], span.stop)
    writer.finish()
    writer.close()
    return CodeCache(out)


def killed(work: Callable[[], object], folder: Path, at: int) -> bool:
    """Do `work` in another process, which is killed as kill -9 does; False if it came to its end before.

    The moment is when it is about to open, rename, make or remove something in `folder` for the `at`-th time.
    """
    status = os.waitpid(start_and_kill(work, folder, at), 0)[1]
    assert status == 0 or os.WTERMSIG(status) == signal.SIGKILL
    return status != 0


def check_every_kill(work: Work, folder: Path, step: int) -> None:
    """Kill the work of making `folder`/made at every `step`-th moment; given again it gives the same bytes."""
    work(folder / "made")
    whole = content(folder / "made")
    for at in range(1, 1000, step):
        shutil.rmtree(folder)
        folder.mkdir()
        if not killed(lambda: work(folder / "made"), folder, at):
            assert at > 5 * step
            return
        work(folder / "made")
        assert content(folder / "made") == whole, at
        assert [path.name for path in folder.iterdir()] == ["made"], at
    raise AssertionError("it never came to its end")


@pytest.mark.parametrize("to", ["npy", "webdataset", "parquet"])
def test_an_export_killed_anywhere_ends_with_the_same_bytes(to: str, cache: CodeCache, tmp_path: Path) -> None:
    check_every_kill(lambda out: export_cache(cache, out, to), tmp_path / "watched", step=3)


def test_an_import_killed_anywhere_ends_with_the_same_bytes(
    cache: CodeCache, tokenizer: CodaTokenizer, tmp_path: Path
) -> None:
    codes = export_cache(cache, tmp_path / "export")
    check_every_kill(lambda out: import_npy(codes, tokenizer, out, shard_size=2), tmp_path / "watched", step=5)


def test_an_export_being_replaced_is_never_half_of_each(
    cache: CodeCache, tokenizer: CodaTokenizer, tmp_path: Path
) -> None:
    other = make_cache(tokenizer, tmp_path / "other", seed=1)
    old, new = (content(export_cache(c, tmp_path / f"{c.path.name}-export", "parquet")) for c in (other, cache))
    folder = tmp_path / "watched"
    for at in range(1, 1000, 5):
        shutil.rmtree(folder, ignore_errors=True)
        export_cache(other, folder / "made", "parquet")
        done = not killed(lambda: export_cache(cache, folder / "made", "parquet", overwrite=True), folder, at)
        assert not (folder / "made").exists() or content(folder / "made") in (old, new), at
        export_cache(cache, folder / "made", "parquet", overwrite=True)
        assert content(folder / "made") == new, at
        if done:
            break
    assert done and at > 20


def stop_at_the_last_shard(cache: CodeCache, out: Path, to: str) -> dict[str, int]:
    """Export up to a shard that is damaged, put it right, and say which files there are, by inode."""
    file = cache.path / "shard-00003.safetensors"
    sound = file.read_bytes()
    file.write_bytes(b"\xff" * len(sound))
    with pytest.raises(CodaError, match=r"shard-00003\.safetensors is damaged"):
        export_cache(cache, out, to)
    file.write_bytes(sound)
    assert not out.exists()
    return {path.name: path.stat().st_ino for path in (out.parent / f".{out.name}.partial" / "content").iterdir()}


def test_finished_shards_are_not_written_again(cache: CodeCache, tmp_path: Path) -> None:
    out = tmp_path / "export"
    before = stop_at_the_last_shard(cache, out, "webdataset")
    assert sorted(before) == [f"shard-0000{number}.tar" for number in range(3)]
    export_cache(cache, out, "webdataset")
    assert {name: (out / name).stat().st_ino for name in before} == before


def test_what_was_begun_of_another_cache_or_format_is_begun_anew(
    cache: CodeCache, tokenizer: CodaTokenizer, tmp_path: Path
) -> None:
    other = make_cache(tokenizer, tmp_path / "other", seed=1)
    for number, (begun, to) in enumerate([(cache, "npy"), (other, "webdataset"), (cache, "parquet")]):
        out = tmp_path / f"export-{number}"
        stop_at_the_last_shard(begun, out, to)
        export_cache(cache, out, "webdataset")
        assert content(out) == content(export_cache(cache, tmp_path / "fresh", "webdataset"))
        assert not (tmp_path / f".export-{number}.partial").exists()
