"""The Hugging Face hub: files of a directory or a hub id, uploads, and the metadata of model cards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, HfApi, ModelCardData, snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from .errors import CodaError, first_line

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")
UPLOAD_OPTIONS = ("private", "token", "commit_message", "create_pr")
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


def upload(
    folder: str | Path, repo_id: str, private: bool | None = None, token: str | None = None, **commit: Any
) -> str:
    """Upload a directory to the hub; the repository is made if there is none.

    Args:
        folder: The directory.
        repo_id: Repository, such as `user/name`.
        private: Whether a new repository is private; the account's default if None.
        token: The hub's token; that of `hf auth login` if None.
        **commit: `commit_message`, `create_pr`, … of `HfApi.upload_folder`.

    Returns:
        The address of the commit.

    Raises:
        CodaError: If the hub cannot be reached or refuses.
    """
    api = HfApi(token=token)
    try:
        repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        return str(api.upload_folder(repo_id=repository, folder_path=folder, **commit))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise CodaError(f"{repo_id}: the hub did not take it: {first_line(error)}") from error


def card_metadata(name: str, results: Sequence[EvalResult] = (), **fields: Any) -> str:
    """The head of a README.md by which the hub knows a model, with its figures as `model-index`.

    Args:
        name: The model's name.
        results: The figures, such as `Report.to_eval_results` gives.
        **fields: `library_name`, `pipeline_tag`, `tags`, … of `ModelCardData`.
    """
    data = ModelCardData(model_name=name if results else None, eval_results=[*results] or None, **fields)
    return f"---\n{data.to_yaml()}\n---\n"
