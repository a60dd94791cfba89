"""Writing so that a kill at any instant leaves either the old content or the new, never half of it.

Everything is written beside its place under a hidden name, gets the permissions that the user's umask asks for, is
flushed to the disk and renamed; then the folder is flushed too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import CodaError

if TYPE_CHECKING:
    import torch

_MANY_FILES = 1000  # from there on everything is flushed at once: a file costs a millisecond or more, written or not


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path`, then put it in place; returns `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        mode = _create(partial)
        write(partial)
        partial.chmod(mode)  # safetensors makes its files private
        flush(partial)
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)  # a full disk must not be left fuller
        raise
    flush(path.parent)
    return path


def write_bytes(path: str | Path, content: bytes) -> Path:
    """Write `content` to `path`."""
    return write_atomically(path, lambda partial: partial.write_bytes(content))


def write_json(path: str | Path, value: Any) -> Path:
    """Write `value` as indented JSON; the same value gives the same bytes."""
    return write_bytes(path, (to_json(value, indent=2) + "\n").encode())


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON that can be encoded as UTF-8: bytes of a file name that are not text are escaped."""
    return json.dumps(value, indent=indent, ensure_ascii=False).encode(errors="backslashreplace").decode()


def save_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None
) -> Path:
    """Write tensors (any device) as one safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    on_cpu = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}

    def write(partial: Path) -> None:
        try:
            save_file(on_cpu, partial, dict(metadata) if metadata else None)
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise OSError(f"{path} cannot be written: {error}") from error

    return write_atomically(path, write)


def finish_directory(folder: Path, pattern: str = "*") -> None:
    """Give files the permissions that the umask asks for, and flush them to the disk with the folders that name them.

    Args:
        folder: A folder that this program has written.
        pattern: Files to look at, in it and in all folders below.
    """
    probe = folder / ".mode.partial"
    mode = _create(probe)
    probe.unlink()
    files = sorted(path for path in folder.rglob(pattern) if not path.is_symlink() and path.is_file())
    for file in files:
        status = file.stat()
        if stat.S_IMODE(status.st_mode) != mode and status.st_nlink == 1:  # others may hold a link to the same file
            file.chmod(mode)
    if len(files) > _MANY_FILES and hasattr(os, "sync"):
        os.sync()
        return
    for path in [*files, *{file.parent for file in files}, folder]:
        flush(path)


def publish_directory(partial: str | Path, final: str | Path, overwrite: bool = False) -> Path:
    """Finish a directory and rename it into place.

    Raises:
        CodaError: If `final` holds something and `overwrite` is not set.
    """
    partial, final = Path(partial), Path(final)
    finish_directory(partial)
    if final.exists() and any(final.iterdir()):
        if not overwrite:
            raise CodaError(f"{final} exists already; choose another --out or give --overwrite")
        old = final.with_name(f".{final.name}.old")
        remove(old)
        os.replace(final, old)
        os.replace(partial, final)
        shutil.rmtree(old)
    else:
        if final.exists():
            final.rmdir()
        final.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, final)
    flush(final.parent)
    return final


def remove(path: Path) -> None:
    """Remove a file, a link (not what it points to) or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Flush a file or a folder's list of names to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _create(path: Path) -> int:
    """Make an empty file in place of whatever is there, never through a link; returns its permissions, see umask(2)."""
    remove(path)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)
