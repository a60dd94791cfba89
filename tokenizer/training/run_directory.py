"""The directory of a training: rerun the same command to resume one that was killed at any instant.

out/
  run.json                  what is being made, with which settings; "complete": true comes last of all
  log.jsonl                 one line of figures per logged step
  checkpoints/step-00000200 the newest checkpoint (the one before it stays until this one is whole)
  …                         the finished files, put in place when the training ends
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..foundation.atomic_io import (
    finish_directory,
    flush,
    publish_directory,
    remove,
    save_tensors,
    write_bytes,
    write_json,
)
from ..foundation.directory_lock import DirectoryLock
from ..foundation.errors import CodaError
from ..foundation.launcher import rank_and_world_size
from ..foundation.output_directory import read_mark, resolve_out
from ..foundation.reading import read_json

_KINDS = ("vae", "tokenizer", "generator", "benchmark")  # last words of what a run makes


@dataclass(frozen=True)
class Checkpoint:
    """A training stopped after `step` steps."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


class RunDirectory:
    """One training's directory, held until the training is finished.

    Of several launched processes the first must come first, and only it writes.

    Args:
        out: The directory, or a link to it; made if it does not exist.
        kind: What is being made: "vae", "tokenizer", "generator", "… benchmark".
        settings: Everything that changes the result, as JSON; not workers or device.
        overwrite: Replace a run that is complete or has other settings. An unfinished one of the same settings is
            resumed all the same. Nothing is replaced without a sound `run.json`.

    Attributes:
        complete: Whether the same run has been completed here, and is to stay.

    Raises:
        CodaError: If `out` holds something else or a run with other settings (the message names them), or another
            process is training there.
    """

    def __init__(self, out: str | Path, kind: str, settings: dict[str, Any], overwrite: bool = False) -> None:
        self.path = resolve_out(out)
        self.kind = kind
        self.settings = json.loads(json.dumps(settings))  # as they will read back: tuples become lists
        rank, world_size = rank_and_world_size()
        self._is_main = rank == 0
        self._lock = DirectoryLock(self.path, shared=rank > 0, reentrant=True, name=out)
        try:
            self.complete = self._check(overwrite and self._is_main)
            if not self.complete and not self._manifest.exists():
                write_json(self._manifest, self._description(complete=False))
        except BaseException:
            self._lock.close()
            raise
        if self.complete:
            self._lock.close()
        elif world_size > 1:
            self._lock.share()

    @property
    def _manifest(self) -> Path:
        return self.path / "run.json"

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _description(self, complete: bool) -> dict[str, Any]:
        return {"kind": self.kind, "complete": complete, "settings": self.settings}

    def _check(self, overwrite: bool) -> bool:
        """Whether the same run has been completed here, and is to stay."""
        if not any(p for p in self.path.iterdir() if not p.name.endswith(".partial")):
            return False
        if not self._manifest.exists():
            raise CodaError(f"{self.path} holds something that is not a run of coda; choose another --out")
        problem, complete = self._compare()
        if overwrite and (problem or complete):
            write_json(self._manifest, self._description(complete=False))  # a kill leaves the old run or the new one
            for found in self.path.iterdir():
                if found != self._manifest:
                    remove(found)
            return False
        if problem:
            raise CodaError(f"{self.path} {problem}; choose another --out or give --overwrite")
        return complete

    def _compare(self) -> tuple[str | None, bool]:
        """The reason why the run found here is not this one, or None; and whether it is complete."""
        found = read_mark(self._manifest)
        kind, complete, settings = (found.get(name) for name in ("kind", "complete", "settings"))
        if not (str(kind).endswith(_KINDS) and isinstance(complete, bool) and isinstance(settings, dict)):
            raise CodaError(f"{self._manifest} is damaged, or not of a run of coda; choose another --out")
        if kind != self.kind:
            return f"holds a {kind}, not a {self.kind}", complete
        there, asked = _flat(settings), _flat(self.settings)
        differences = [
            f"{name} {there.get(name)!r} there, {asked.get(name)!r} asked"
            for name in sorted(there.keys() | asked.keys())
            if there.get(name) != asked.get(name)
        ]
        return f"holds a run with other settings ({'; '.join(differences)})" if differences else None, complete

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None at the start."""
        for folder in sorted(self._checkpoints.glob("step-*"), reverse=True):
            try:
                description = read_json(folder / "state.json")
                tensors = load_file(folder / "tensors.safetensors")
                return Checkpoint(description["step"], tensors, description["state"])
            except (CodaError, KeyError, OSError, SafetensorError):
                continue  # the one before it is still there
        return None

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any] | None = None) -> None:
        """Checkpoint after `step` steps; older checkpoints are removed once this one is whole."""
        if not self._is_main:
            return
        final = self._checkpoints / f"step-{step:08d}"
        partial = self._checkpoints / f".{final.name}.partial"
        remove(partial)
        try:
            save_tensors(partial / "tensors.safetensors", tensors)
            write_json(partial / "state.json", {"step": step, "state": state or {}})
            publish_directory(partial, final, overwrite=True)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for folder in [*self._checkpoints.glob("step-*"), *self._checkpoints.glob(".step-*")]:
            if folder != final:
                remove(folder)

    def scratch_file(self, name: str) -> Path:
        """Where a file may lie until the run is complete."""
        return self._checkpoints / name

    def log(self, step: int, **scalars: float) -> None:
        """Add a line to `log.jsonl`; what a resumed run repeats replaces what was there."""
        if self._is_main:
            with open(self.path / "log.jsonl", "a") as file:
                file.write(json.dumps({"step": step, **scalars}) + "\n")

    def read_log(self) -> list[dict[str, Any]]:
        """The lines of `log.jsonl`; none before the first."""
        log = self.path / "log.jsonl"
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    def forget_log_after(self, step: int) -> None:
        """Drop the lines that a run resumed at `step` will write again."""
        log = self.path / "log.jsonl"
        if self._is_main and log.exists():
            whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("}\n")]
            kept = [line for line in whole if json.loads(line)["step"] <= step]
            write_bytes(log, "".join(kept).encode())

    def finish(self, write: Callable[[Path], object]) -> Path:
        """Let `write` fill a folder aside, put its content in place, and mark the run complete.

        All of it is on the disk before the run says so and its checkpoints go.
        """
        if self._is_main:
            aside = self.path / ".result.partial"
            remove(aside)
            aside.mkdir(parents=True)
            write(aside)
            finish_directory(aside)
            for item in sorted(aside.iterdir()):
                remove(self.path / item.name)
                item.replace(self.path / item.name)
            aside.rmdir()
            flush(self.path)
            write_json(self._manifest, self._description(complete=True))
            remove(self._checkpoints)
        self.complete = True
        self._lock.close()
        return self.path


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings within settings by dotted names, so that a message can say which one differs."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": item for key, item in inner.items()} if inner else {name: value}
    return flat
