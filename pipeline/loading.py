"""Finding a saved pipeline and making sure that what was loaded is whole.

diffusers leaves a weight that is missing from a file on the `meta` device, or random, and says nothing. It also loads
whatever classes `model_index.json` names. Neither happens here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from coda.tokenizer.foundation.errors import CodaError, first_line
from coda.tokenizer.foundation.hub import fetch, local_path
from coda.tokenizer.foundation.reading import read_json
from coda.tokenizer.foundation.strict_loading import check_state_keys

_PATTERNS = ("*.json", "*.safetensors", "README.md")  # neither pickles nor code
_WEIGHTS = "diffusion_pytorch_model"


def pipeline_folder(name: str | os.PathLike[str], **hub: Any) -> Path:
    """The folder of the pipeline `name`: "bundled", a directory, or a hub id, of which a snapshot is taken.

    Args:
        name: What the user gave.
        **hub: `revision`, `token`, `cache_dir`, `local_files_only`, … for the hub.

    Raises:
        CodaError: There is no such thing, or the hub cannot be reached.
    """
    if name == "bundled":
        bundled = Path(__file__).with_name("bundled")
        if not (bundled / "model_index.json").is_file():
            raise CodaError("no model is bundled with this version; train one (coda train-maskgit) or name a pipeline")
        return bundled
    return local_path(name if isinstance(name, str) else Path(name)) or fetch(str(name), _PATTERNS, **hub)


def check_index(folder: Path, pipeline_class: str, components: Mapping[str, tuple[str, str]]) -> None:
    """Make sure that `folder` holds a pipeline of ours and names none but our classes.

    Args:
        folder: A saved pipeline.
        pipeline_class: Name that model_index.json must give.
        components: The (package, class) that it must give for each component.

    Raises:
        CodaError: It does not.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        part = (folder / "config.json").is_file() or (folder / "coda_tokenizer.json").is_file()
        what = "is only a part of a pipeline" if part else "is no saved pipeline"
        raise CodaError(f"{folder} {what}: it has no model_index.json")
    index = read_json(path)
    if index.get("_class_name") != pipeline_class:
        raise CodaError(f"{path} describes a {index.get('_class_name')}, not a {pipeline_class}")
    for name, pair in components.items():
        if index.get(name) != list(pair):
            raise CodaError(f"{path}: {name} is {index.get(name)}, expected {list(pair)}")


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turn what libraries raise about a damaged or foreign `folder` into one line.

    Raises:
        CodaError: Instead of their errors. Running out of memory stays what it is.
    """
    try:
        yield
    except (CodaError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a library meets in a damaged config or file
        raise CodaError(f"{folder} cannot be loaded: {first_line(error)}") from error


def stored_as_float32(folder: Path, variant: str | None) -> bool:
    """Whether a saved pipeline holds its tokenizer in float32, without which it cannot be told from another one."""
    for file in [*_weight_files(folder / "vae", variant), *_weight_files(folder / "quantizer", variant)]:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            if {"F16", "BF16"} & {tensors.get_slice(name).get_dtype() for name in names}:
                return False
    return True


def check_weights(module: nn.Module, folder: Path, variant: str | None = None) -> None:
    """Make sure that every tensor of `module` came from the files in `folder`, and nothing else was in them.

    Raises:
        CodaError: A weight is missing or unexpected.
    """
    stored = _stored_names(folder, variant)
    state = module.state_dict()
    on_meta = {name for name, tensor in state.items() if tensor.is_meta}
    check_state_keys(folder, (state.keys() - stored) | on_meta, stored - state.keys(), ())


def _stored_names(folder: Path, variant: str | None) -> set[str]:
    """Names of all tensors in a component's weights, of `variant` if it has that one."""
    names: set[str] = set()
    for shard in _weight_files(folder, variant):
        with one_line_errors(shard), safe_open(shard, framework="pt") as file:
            names.update(file.keys())
    return names


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    of_variant = list(folder.glob(f"{_WEIGHTS}.{variant}*.safetensors")) if variant else []
    return of_variant or list(folder.glob(f"{_WEIGHTS}*.safetensors"))
