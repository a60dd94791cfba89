"""What every command that makes a directory has in common: links, marks, locks, permissions, what reaches the disk."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from coda.tokenizer.foundation.atomic_io import publish_directory, save_tensors, write_atomically, write_json
from coda.tokenizer.foundation.directory_lock import DirectoryLock
from coda.tokenizer.foundation.errors import CodaError
from coda.tokenizer.foundation.output_directory import new_directory, read_mark
from coda.tokenizer.training.run_directory import RunDirectory


def make(out: Path, overwrite: bool = False) -> None:
    with new_directory(out, overwrite, lambda found: "made" in read_mark(found / "mark.json"), "is not ours") as folder:
        write_json(folder / "mark.json", {"made": True})


def train(out: Path, overwrite: bool = False) -> None:
    run = RunDirectory(out, "vae", {"lr": 0.1}, overwrite)
    run.save(3, {"weight": torch.ones(2)})
    run.finish(lambda folder: save_tensors(folder / "model" / "weights.safetensors", {"weight": torch.ones(2)}))


@pytest.fixture(params=[make, train])
def work(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Two ways to make a directory."""
    return request.param


@pytest.fixture
def other_process(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Lets another process hold a directory."""
    children = []

    def hold(folder: Path) -> None:
        code = f"import fcntl, os; fcntl.flock(os.open({str(folder)!r}, os.O_RDONLY), fcntl.LOCK_EX); print(); input()"
        children.append(subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1))
        assert children[-1].stdout.readline()

    yield hold
    for child in children:
        child.communicate(b"\n")


def test_a_second_run_says_that_the_first_is_running(work: Callable[..., None], other_process, tmp_path: Path) -> None:
    out = tmp_path / "out"
    held = out if work is train else tmp_path / ".out.partial"
    held.mkdir()
    other_process(held)
    with pytest.raises(CodaError, match=r"out is being written by another process"):
        work(out)
    assert list(held.iterdir()) == []


def test_a_lock_is_of_the_directory_that_is_there_now(tmp_path: Path) -> None:
    first = DirectoryLock(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    second = DirectoryLock(tmp_path / "a")
    for held in ("a", "b"):
        with pytest.raises(CodaError, match="being written"):
            DirectoryLock(tmp_path / held)
    DirectoryLock(tmp_path / "a", reentrant=True).close()
    first.close(), second.close()
    DirectoryLock(tmp_path / "a").close()


def test_a_link_is_resolved_first(work: Callable[..., None], tmp_path: Path) -> None:
    link, target = tmp_path / "link", tmp_path / "disk" / "target"
    link.symlink_to(target)
    for overwrite in (False, True):
        work(link, overwrite=overwrite)
        assert link.is_symlink() and any(target.iterdir())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
        assert [path.name for path in target.parent.iterdir()] == ["target"]
    link.unlink()
    link.symlink_to(link)
    with pytest.raises(CodaError, match="leads back to itself"):
        work(link)


@pytest.mark.parametrize("mark", [None, "", "{}", "[]", "{", '{"kind": "vae"}', '{"kind": 1, "complete": true}'])
def test_overwrite_replaces_only_what_its_mark_says_is_ours(
    work: Callable[..., None], mark: str | None, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    if mark is not None:
        (tmp_path / "out" / ("run.json" if work is train else "mark.json")).write_text(mark)
    before = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(CodaError, match="choose another --out"):
        work(tmp_path / "out", overwrite=True)
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == before


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "key").write_text("secret")
    (tmp_path / ".mark.json.partial").symlink_to(treasure / "key")
    write_json(tmp_path / "mark.json", {})
    for name in (".out.partial", ".out.old", ".mark.json.partial"):
        (tmp_path / name).symlink_to(treasure)
    for overwrite in (False, True):
        make(tmp_path / "out", overwrite)
    (tmp_path / "run").mkdir()
    for name in (".run.json.partial", ".result.partial", "checkpoints"):
        (tmp_path / "run" / name).symlink_to(treasure)
    (tmp_path / "run" / "checkpoints").unlink()
    train(tmp_path / "run")
    assert [path.read_text() for path in treasure.iterdir()] == ["secret"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_permissions_that_the_umask_gives(work: Callable[..., None], umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        work(tmp_path / "out")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert modes == {0o666 & ~umask}


def test_weights_are_on_the_disk_before_the_run_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def record(handle: int) -> None:
        synced.append(os.path.relpath(os.readlink(f"/proc/self/fd/{handle}"), tmp_path / "run"))
        fsync(handle)

    run = RunDirectory(tmp_path / "run", "vae", {})
    run.save(3, {"weight": torch.ones(2)})
    monkeypatch.setattr(os, "fsync", record)
    run.finish(lambda folder: (folder / "weights").write_bytes(b"weights"))
    assert synced.index(".result.partial/weights") < synced.index(".") < synced.index(".run.json.partial")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["complete"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = save_tensors(tmp_path / "a.safetensors", {"x": torch.ones(1)})
    before = path.read_bytes()

    def fail(partial: Path) -> None:
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_publishing_over_something_needs_leave(tmp_path: Path) -> None:
    for name in ("new", "old"):
        write_json(tmp_path / name / "x.json", name)
    with pytest.raises(CodaError, match="--overwrite"):
        publish_directory(tmp_path / "new", tmp_path / "old")
    publish_directory(tmp_path / "new", tmp_path / "old", overwrite=True)
    assert json.loads((tmp_path / "old" / "x.json").read_text()) == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
