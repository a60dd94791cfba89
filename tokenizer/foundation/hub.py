"""From what a user gave, a directory or a name on the Hugging Face hub, to files that are here."""

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
    """The file or directory of that name; None if there is none and it could be a name on the hub.

    Raises:
        CodaError: There is none, and it could not.
    """
    path = Path(path_or_name).expanduser()
    if path.exists():
        return path
    if isinstance(path_or_name, Path) or not _HUB_ID.fullmatch(path_or_name):
        raise CodaError(f"{path_or_name}: no such file or directory")
    return None


def fetch(name: str, patterns: Sequence[str], **hub: Any) -> Path:
    """A folder with those files of a hub repository that match `patterns`.

    Args:
        name: Repository, such as `black-forest-labs/FLUX.1-dev`.
        patterns: Of paths within it; `*` matches across folders.
        **hub: `revision`, `cache_dir`, `token`, `local_files_only`, … as `huggingface_hub.snapshot_download` has them.

    Raises:
        CodaError: There is no such repository, no connection, or (with `local_files_only`) no copy here.
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), **hub))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = first_line(error).removeprefix("Got: ").rstrip(".")
        raise CodaError(f"{name}: no such directory, and the hub did not give it: {reason}") from error
