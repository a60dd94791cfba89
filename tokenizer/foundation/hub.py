"""Resolve a directory or a Hugging Face hub id to local files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from .errors import CodaError, first_line

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def local_path(path_or_name: str | Path) -> Path | None:
    """The local file or directory of that name; None if there is none and it could be a hub id.

    Raises:
        CodaError: If there is none, and it could not be a hub id.
    """
    path = Path(path_or_name).expanduser()
    if path.exists():
        return path
    if isinstance(path_or_name, Path) or not _HUB_ID.fullmatch(path_or_name):
        raise CodaError(f"{path_or_name}: no such file or directory")
    return None


def fetch(name: str, patterns: Sequence[str], **hub: Any) -> Path:
    """Download the files of a hub repository that match `patterns`; returns their folder.

    Args:
        name: Repository, such as `black-forest-labs/FLUX.1-dev`.
        patterns: Patterns of paths; `*` matches across folders.
        **hub: `revision`, `cache_dir`, `token`, `local_files_only`, … of `huggingface_hub.snapshot_download`.

    Raises:
        CodaError: If there is no such repository, no connection, or (with `local_files_only`) no local copy.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), **hub))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = first_line(error).removeprefix("Got: ").rstrip(".")
        raise CodaError(f"{name}: no such directory, and the hub did not give it: {reason}") from error
