"""Loading and saving of models, with every weight accounted for.

diffusers says nothing about a weight that is missing from a file (it stays on the `meta` device) and only warns about
one that the model does not have. Here both are errors, and so are damaged files and weights that are not finite: one
line each.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import ConfigMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from .atomic_io import finish_directory
from .errors import CodaError, first_line
from .hub import HUB_OPTIONS, fetch, local_path
from .reading import read_json

Model = TypeVar("Model", bound=nn.Module)


class StrictModel(ModelMixin, ConfigMixin):
    """A diffusers model that is loaded whole or not at all, and saved without leaving old weights behind."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Self:
        """Load what `save_pretrained` wrote, in evaluation mode.

        Args:
            pretrained_model_name_or_path: Directory or hub id.
            **kwargs: As in diffusers: `subfolder`, `torch_dtype`, `variant`, `revision`, `cache_dir`, ….

        Raises:
            CodaError: If the files are missing or damaged, or a weight is missing, unexpected, misshapen or not finite.
        """
        subfolder = kwargs.pop("subfolder", None) or ""
        hub = {key: kwargs.pop(key) for key in HUB_OPTIONS if key in kwargs}
        folder = local_path(pretrained_model_name_or_path)
        if folder is None:
            prefix = f"{subfolder}/" if subfolder else ""
            folder = fetch(str(pretrained_model_name_or_path), [f"{prefix}*.json", f"{prefix}*.safetensors"], **hub)
        folder = folder / subfolder
        if not (folder / "config.json").is_file():
            raise CodaError(f"{folder} has no config.json: it does not hold a {cls.__name__}")
        name = read_json(folder / "config.json").get("_class_name")
        if name != cls.__name__:
            raise CodaError(f"{folder} holds a {name}, not a {cls.__name__}")
        return load_strictly(cls, folder, **kwargs)

    def save_pretrained(  # diffusers' pipelines look for these arguments by name
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs: Any,
    ) -> None:
        """Write config and weights for `from_pretrained`; earlier weights of the same variant in the folder go."""
        self.check_savable()
        if is_main_process:
            remove_weights(Path(save_directory), variant)
        kwargs |= {"safe_serialization": safe_serialization, "variant": variant, "max_shard_size": max_shard_size}
        super().save_pretrained(str(save_directory), is_main_process=is_main_process, **kwargs)
        if is_main_process:
            finish_directory(Path(save_directory), "diffusion_pytorch_model*.safetensors")

    def check_savable(self) -> None:
        """Raise a CodaError if the model cannot be saved as it is; for classes to override."""


def load_strictly(cls: type[Model], folder: str | Path, **kwargs: Any) -> Any:
    """`cls.from_pretrained(folder, **kwargs)` as diffusers' ModelMixin has it, with every weight accounted for.

    Args:
        cls: A ModelMixin.
        folder: Local folder with `config.json` and weights.
        **kwargs: As in diffusers (`torch_dtype`, `variant`, `output_loading_info`, …).

    Raises:
        CodaError: If the files are missing or damaged, or a weight is missing, unexpected, misshapen or not finite.
    """
    folder = Path(folder)
    with_info = kwargs.pop("output_loading_info", False)
    kwargs.pop("local_files_only", None)
    try:
        # ModelMixin's own method, since a class may call this function from its `from_pretrained`.
        load = ModelMixin.from_pretrained.__func__
        model, found = load(cls, str(folder), output_loading_info=True, local_files_only=True, **kwargs)
    except (CodaError, torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # a damaged or hostile config makes a library raise anything
        raise CodaError(f"{folder} does not hold a whole {cls.__name__}: {first_line(error)}") from error
    on_meta = [name for name, tensor in model.state_dict().items() if tensor.is_meta]
    mismatched = [key[0] if isinstance(key, tuple) else key for key in found["mismatched_keys"]]
    check_state_keys(folder, {*found["missing_keys"], *on_meta}, found["unexpected_keys"], mismatched)
    check_weights_finite(model.state_dict(), folder)
    return (model, found) if with_info else model


def load_state_dict_strict(module: nn.Module, state: Mapping[str, torch.Tensor], source: object) -> None:
    """Copy `state` into `module`, which it must fit exactly.

    Raises:
        CodaError: If a weight is missing, unexpected, misshapen or not finite.
    """
    own = module.state_dict()
    misshapen = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    check_state_keys(source, own.keys() - state.keys(), state.keys() - own.keys(), misshapen)
    check_weights_finite(state, source)
    module.load_state_dict(state)


def check_state_keys(
    source: object, missing: Iterable[str], unexpected: Iterable[str], misshapen: Iterable[str]
) -> None:
    """Raise a CodaError that names the weights, if there are any to name."""
    lists = {"missing": sorted(missing), "unexpected": sorted(unexpected), "misshapen": sorted(misshapen)}
    said = [f"{_named(names)} {what}" for what, names in lists.items() if names]
    if said:
        raise CodaError(f"{source} does not fit: {'; '.join(said)}")


def check_weights_finite(state: Mapping[str, torch.Tensor], source: object) -> None:
    """Check that weights hold no NaN or infinite values.

    Raises:
        CodaError: If some do; names them.
    """
    damaged = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not tensor.is_meta and not tensor.isfinite().all()
    ]
    if damaged:
        raise CodaError(f"{source} is damaged: NaN or infinite values in {_named(sorted(damaged))}")


def tensor_shape(state: Mapping[str, torch.Tensor], name: str, ndim: int, source: object) -> torch.Size:
    """Shape of a tensor from a foreign file.

    Raises:
        CodaError: If it is missing or does not have `ndim` axes.
    """
    if name not in state:
        raise CodaError(f"{source} does not fit: {name} missing")
    if state[name].ndim != ndim or not state[name].numel():
        raise CodaError(f"{source}: {name} has shape {tuple(state[name].shape)}, expected {ndim} axes")
    return state[name].shape


def remove_weights(folder: Path, variant: str | None = None, stem: str = "diffusion_pytorch_model") -> None:
    """Delete a model's weights from a folder: one file or shards with their index, of one variant (None: of none)."""
    ending = f".{re.escape(variant)}" if variant else ""
    whole_or_shard = rf"{stem}{ending}(-\d+-of-\d+)?\.(safetensors|bin)"
    index = rf"{stem}\.(safetensors|bin)\.index{ending}\.json"
    for path in folder.glob(f"{stem}*"):
        if re.fullmatch(f"{whole_or_shard}|{index}", path.name) and (path.is_file() or path.is_symlink()):
            path.unlink()


def read_tensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read named tensors from a .safetensors file or a published pickle, without running code.

    A dictionary inside `model` or `state_dict`, as trainers write it, is unwrapped.

    Raises:
        CodaError: If the file is damaged or holds anything else.
    """
    path = Path(path)
    if not path.is_file():
        raise CodaError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError, pickle.UnpicklingError) as error:
        raise CodaError(f"{path} is damaged, or holds more than tensors: {first_line(error)}") from error
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise CodaError(f"{path} holds something other than named tensors")
    return dict(state)


def _named(names: list[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
