"""The directory that a command makes: links resolved, one run at a time, whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from .atomic_io import publish_directory, remove
from .directory_lock import DirectoryLock
from .errors import CodaError
from .reading import read_json


def resolve_out(out: str | Path) -> Path:
    """The directory that `out` names; where it is a link, the place that it points to.

    Raises:
        CodaError: If there is a file, or the link leads nowhere.
    """
    path = Path(out)
    try:
        path = path.resolve() if path.is_symlink() else path
    except (OSError, RuntimeError):
        raise CodaError(f"{out} is a link that leads back to itself; choose another --out") from None
    if path.exists() and not path.is_dir():
        raise CodaError(f"{out} is a file; --out names a directory")
    return path


def read_mark(path: Path) -> dict[str, Any]:
    """The JSON object in a file by which a directory is known; without keys if it is missing or damaged."""
    try:
        return read_json(path)
    except CodaError:
        return {}


def check_free(out: Path, overwrite: bool, is_ours: Callable[[Path], bool], problem: str) -> None:
    """Check that a command may make the directory `out`: it is missing, empty, or what the same command made before.

    Args:
        out: The directory.
        overwrite: Whether it may be replaced.
        is_ours: Whether this command has made the directory, by what its files say.
        problem: The message if it has not, such as "is not a code cache".

    Raises:
        CodaError: If it may not.
    """
    names = sorted(entry.name for entry in out.iterdir()) if out.is_dir() else []
    found = [name for name in names if not (name.startswith(".") and name.endswith(".partial"))]  # left by a kill
    if found and not is_ours(out):
        raise CodaError(f"{out} {problem} ({found[0]}); choose another --out")
    if found and not overwrite:
        raise CodaError(f"{out} exists already; choose another --out or give --overwrite")


@contextmanager
def staging_directory(out: Path, keep: bool = False) -> Iterator[Path]:
    """A hidden directory beside `out` to prepare it in, held by this process alone and removed at the end.

    Args:
        out: The directory to make.
        keep: Leave the hidden directory for the next run if something goes wrong.

    Raises:
        CodaError: If another process is making `out`.
    """
    final = Path(os.path.abspath(out))
    staging = final.with_name(f".{final.name}.partial")
    if staging.is_symlink() or staging.is_file():
        remove(staging)
    with closing(DirectoryLock(staging, name=out)):
        done = False
        try:
            yield staging
            done = True
        finally:
            if done or not keep:
                shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def new_directory(out: str | Path, overwrite: bool, is_ours: Callable[[Path], bool], problem: str) -> Iterator[Path]:
    """A folder to write into; it becomes `out`, which may be a link, at the end, and vanishes if anything goes wrong.

    Args and raises: as `check_free`, and as `staging_directory`.
    """
    final = resolve_out(out)
    check_free(final, overwrite, is_ours, problem)
    with staging_directory(final) as staging:
        check_free(final, overwrite, is_ours, problem)  # another run may have made it in the meantime
        content = staging / "content"
        remove(content)
        content.mkdir()
        yield content
        publish_directory(content, final, overwrite)
