"""Finding and checking a saved pipeline before diffusers loads it, which would load any class it names."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from coda.tokenizer.foundation.errors import CodaError, first_line
from coda.tokenizer.foundation.hub import fetch, local_path
from coda.tokenizer.foundation.reading import read_json

BUNDLED_MODEL = Path(str(resources.files("coda.pipeline.bundled"))) / "model"
_PATTERNS = ("*.json", "*.safetensors", "README.md")  # neither pickles nor code
_WEIGHTS = "diffusion_pytorch_model"


def pipeline_folder(name: str | os.PathLike[str], **hub: Any) -> Path:
    """The folder of a pipeline.

    Args:
        name: "bundled", a directory, or a hub id, of which a snapshot is downloaded.
        **hub: `revision`, `token`, `cache_dir`, `local_files_only`, … for the hub.

    Raises:
        CodaError: If there is no such pipeline, or the hub cannot be reached.
    """
    if name == "bundled":
        return bundled_model()
    return local_path(name if isinstance(name, str) else Path(name)) or fetch(str(name), _PATTERNS, **hub)


def bundled_model(folder: Path = BUNDLED_MODEL) -> Path:
    """The folder of the bundled model, which is a saved pipeline and, with its manifest, a saved tokenizer too.

    Raises:
        CodaError: If `folder`, by default that of the package, holds none.
    """
    if not (folder / "model_index.json").is_file():
        raise CodaError("no model is bundled with this version; train one (coda train-maskgit) or pass a pipeline")
    return folder


def check_index(folder: Path, pipeline_class: str, components: Mapping[str, tuple[str, str]]) -> None:
    """Check that `folder` holds a `pipeline_class` whose components are of the given (package, class).

    Raises:
        CodaError: If model_index.json is missing or names any other class.
    """
    path = folder / "model_index.json"
    if not path.is_file():
        part = (folder / "config.json").is_file() or (folder / "coda_tokenizer.json").is_file()
        what = "is only a part of a pipeline" if part else "is not a saved pipeline"
        raise CodaError(f"{folder} {what}: it has no model_index.json")
    index = read_json(path)
    if index.get("_class_name") != pipeline_class:
        raise CodaError(f"{path} describes a {index.get('_class_name')}, not a {pipeline_class}")
    for name, pair in components.items():
        if index.get(name) != list(pair):
            raise CodaError(f"{path}: {name} is {index.get(name)}, expected {list(pair)}")


@contextmanager
def one_line_errors(folder: Path) -> Iterator[None]:
    """Turn whatever a library raises about a damaged or foreign `folder` into one line, a CodaError."""
    try:
        yield
    except (CodaError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise CodaError(f"{folder} cannot be loaded: {first_line(error)}") from error


def stored_as_float32(folder: Path, variant: str | None) -> bool:
    """Whether a pipeline was saved with its tokenizer in float32; only then can its fingerprint be computed."""
    for file in [*_weight_files(folder / "vae", variant), *_weight_files(folder / "quantizer", variant)]:
        with safe_open(file, framework="pt") as tensors:
            names = list(tensors.keys())
            if {"F16", "BF16"} & {tensors.get_slice(name).get_dtype() for name in names}:
                return False
    return True


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    of_variant = list(folder.glob(f"{_WEIGHTS}.{variant}*.safetensors")) if variant else []
    return of_variant or list(folder.glob(f"{_WEIGHTS}*.safetensors"))
