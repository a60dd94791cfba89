"""Writing so that a kill at any instant leaves either the old content or the new, never half of it.

Everything is written beside its place under a hidden name, flushed to the disk, renamed, and the folder flushed too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from .errors import CodaError

_MANY_FILES = 1000  # from there on everything is flushed at once: a file costs a millisecond or more, written or not


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path`, then put it in place; returns `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode  # what the user's umask gives; safetensors would make it private
        write(partial)
        partial.chmod(mode)
        _flush(partial)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)  # a full disk must not be left fuller
        raise
    _flush(path.parent)
    return path


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write `content` to `path`."""
    return write_atomically(path, lambda partial: partial.write_bytes(content))


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON; the same value gives the same bytes."""
    return write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def save_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors (any device) as one safetensors file."""
    on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}

    def write(partial: Path) -> None:
        try:
            save_file(on_cpu, partial, dict(metadata) if metadata else None)
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise OSError(f"{path} cannot be written: {error}") from error

    return write_atomically(path, write)


def publish_directory(partial: str | Path, final: str | Path, overwrite: bool = False) -> Path:
    """Rename a finished directory into place.

    Raises:
        CodaError: `final` holds something and `overwrite` is not set.
    """
    partial, final = Path(partial), Path(final)
    files = sorted(p for p in partial.rglob("*") if p.is_file())
    if len(files) > _MANY_FILES and hasattr(os, "sync"):
        os.sync()
    else:
        for file in files:
            _flush(file)
    if final.exists() and any(final.iterdir()):
        if not overwrite:
            raise CodaError(f"{final} exists already; choose another --out or give --overwrite")
        old = final.with_name(f".{final.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(final, old)
        os.replace(partial, final)
        shutil.rmtree(old)
    else:
        if final.exists():
            final.rmdir()
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, final)
    _flush(final.parent)
    return final


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Flush a file or a folder's list of names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
