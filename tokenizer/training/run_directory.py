"""The directory of a training: killed at any instant, the same command goes on.

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

from ..foundation.atomic_io import publish_directory, save_tensors, write_bytes, write_json
from ..foundation.errors import CodaError


@dataclass(frozen=True)
class Checkpoint:
    """A training stopped after `step` steps."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]


class RunDirectory:
    """One training's directory.

    Args:
        out: The directory; made if it does not exist.
        kind: What is being made: "vae", "tokenizer", "generator".
        settings: Everything that changes the result, as JSON; not workers or device.
        overwrite: Replace a run that is complete or has other settings; an unfinished one of the same settings still
            goes on, and what is no run at all is never touched.

    Raises:
        CodaError: `out` holds something else, or a run with other settings (the message names them).
    """

    def __init__(self, out: str | Path, kind: str, settings: dict[str, Any], overwrite: bool = False) -> None:
        self.path = Path(out)
        self.kind = kind
        self.settings = json.loads(json.dumps(settings))  # as they will read back: tuples become lists
        self.complete = self._check(overwrite)
        if not self.complete and not self._manifest.exists():
            write_json(self._manifest, self._description(complete=False))

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
        if self.path.is_file():
            raise CodaError(f"{self.path} is a file; --out names a directory")
        if not self.path.exists() or not any(p for p in self.path.iterdir() if not p.name.endswith(".partial")):
            return False
        if not self._manifest.exists():
            raise CodaError(f"{self.path} holds something that is no run of coda; choose another --out")
        problem, complete = self._compare()
        if overwrite and (problem or complete):
            shutil.rmtree(self.path)
            return False
        if problem:
            raise CodaError(f"{self.path} {problem}; choose another --out or give --overwrite")
        return complete

    def _compare(self) -> tuple[str | None, bool]:
        """What keeps the run found here from being this one, if anything, and whether it is complete."""
        try:
            found = json.loads(self._manifest.read_text())
            kind, complete, settings = found["kind"], found["complete"], found["settings"]
        except (ValueError, KeyError, TypeError):
            return f"has a damaged {self._manifest.name}", False
        if kind != self.kind:
            return f"holds a {kind}, not a {self.kind}", complete
        there, asked = _flat(settings), _flat(self.settings)
        differences = [
            f"{name} {there.get(name)!r} there, {asked.get(name)!r} asked"
            for name in sorted(there.keys() | asked.keys())
            if there.get(name) != asked.get(name)
        ]
        return f"holds a run with other settings ({'; '.join(differences)})" if differences else None, bool(complete)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None at the start."""
        for folder in sorted(self._checkpoints.glob("step-*"), reverse=True):
            try:
                description = json.loads((folder / "state.json").read_text())
                tensors = load_file(folder / "tensors.safetensors")
            except (OSError, ValueError, SafetensorError):
                continue  # the one before it is still there
            return Checkpoint(description["step"], tensors, description["state"])
        return None

    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any] | None = None) -> None:
        """Checkpoint after `step` steps; older checkpoints are removed once this one is whole."""
        final = self._checkpoints / f"step-{step:08d}"
        partial = self._checkpoints / f".{final.name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            save_tensors(partial / "tensors.safetensors", tensors)
            write_json(partial / "state.json", {"step": step, "state": state or {}})
            publish_directory(partial, final, overwrite=True)
        except OSError:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        for folder in self._checkpoints.iterdir():
            if folder != final:
                shutil.rmtree(folder)

    def log(self, step: int, **scalars: float) -> None:
        """Add a line to `log.jsonl`; what a resumed run repeats replaces what was there."""
        with open(self.path / "log.jsonl", "a") as file:
            file.write(json.dumps({"step": step, **scalars}) + "\n")

    def forget_log_after(self, step: int) -> None:
        """Drop the lines that a run resumed at `step` will write again."""
        log = self.path / "log.jsonl"
        if log.exists():
            whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("}\n")]
            kept = [line for line in whole if json.loads(line)["step"] <= step]
            write_bytes(log, "".join(kept).encode())

    def finish(self, write: Callable[[Path], object]) -> Path:
        """Let `write` fill a folder aside, put its content in place, and mark the run complete."""
        aside = self.path / ".result.partial"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        write(aside)
        for item in sorted(aside.iterdir()):
            target = self.path / item.name
            if target.is_dir():
                shutil.rmtree(target)
            item.replace(target)
        aside.rmdir()
        write_json(self._manifest, self._description(complete=True))
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        self.complete = True
        return self.path


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings within settings by dotted names, so that a message can say which one differs."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        inner = _flat(value) if isinstance(value, dict) else {}
        flat |= {f"{name}.{key}": item for key, item in inner.items()} if inner else {name: value}
    return flat
